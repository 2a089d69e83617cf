"""One job on a real API server, and an operator that passes over it."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.experiments import Experiment, Plan
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.settings import Settings
from cluster_builders import Scene, play
from judge_builders import Bench, make_plan
from kube_builders import install_crds, see_job
from pod_builders import make_template
from testbed.cluster import Cluster


@dataclass
class Passes:
    """One job in a namespace, and an operator that passes over it."""

    scene: Scene
    operator: Operator
    key: JobKey

    async def settle(self, most: int = 20) -> SeenJob:
        """Passes until one of them wants to rest; the job as it stands then."""
        for _ in range(most):
            rest_s = await self.operator.advance(self.key)
            if rest_s:
                return await see_job(self.scene.client, self.scene.namespace)
        raise AssertionError("the job does not settle")

    async def ledger(self) -> KubeLedger:
        """The ledger, as a pass sees it."""
        seen = await see_job(self.scene.client, self.scene.namespace)
        return KubeLedger(self.scene.client, self.operator.recollection.index, seen, self.scene.clock)

    async def record(self, experiment: Experiment) -> KubeLedger:
        """An experiment of the job is on record with its blocks, and its verdict where it has one."""
        ledger, name = await self.ledger(), experiment.name
        await ledger.add_plan(experiment.plan)
        for block in experiment.blocks:
            await ledger.add_block(name, block)
        if experiment.verdict is not None:
            await ledger.add_verdict(name, experiment.verdict, self.scene.clock())
        return ledger

    async def plan(self, name: str, knob: KnobName, before: Knobs, after: Knobs) -> Plan:
        """One that changes a knob of this job."""
        uid = (await self.ledger()).seen.uid
        plan = make_plan(
            knob=knob, before=before.get(knob), after=after.get(knob), name=name, job="pydocs", job_uid=uid
        )
        return plan.model_copy(update={"baseline": before, "variant": after})

    async def win(self, name: str, before: Knobs, after: Knobs, knob: KnobName = KnobName.DATALOADER_WORKERS) -> None:
        """An experiment is on record as won, with all its evidence, and applied."""
        plan = await self.plan(name, knob, before, after)
        ledger = await self.record(Bench(plan, gain=0.3).close())
        await ledger.add_application(self.application(plan, after))

    def application(self, plan: Plan, knobs: Knobs) -> Application:
        """These values were put in force because of an experiment."""
        return Application(
            job="pydocs",
            job_uid=plan.job_uid,
            fingerprint=plan.fingerprint,
            at_s=self.scene.clock(),
            kind=ApplicationKind.APPLIED,
            experiment=plan.name,
            declared=plan.baseline,
            knobs=knobs,
        )

    async def forge(self, plan: Plan, **entry: Any) -> None:
        """Somebody writes an entry of `status.applications` by hand."""
        known = {"atTime": to_timestamp(self.scene.clock()), "kind": "applied", "fingerprint": plan.fingerprint}
        entry = known | {"declared": {"dataloaderWorkers": 0}} | entry
        status = {"status": {"applications": [entry]}}
        answer = await self.scene.client.patch_status(Kind.EXPERIMENT, self.scene.namespace, plan.name, status)
        assert isinstance(answer, dict), answer
        self.operator.recollection.index.learn(answer)

    async def requests(self) -> list[tuple[str, str]]:
        """What one pass asks of the server; the job must want to rest after it."""
        self.scene.transport.requests.clear()
        assert await self.operator.advance(self.key)
        return [(r.method, r.path.split(f"/{self.scene.namespace}/")[1]) for r in self.scene.transport.requests]

    async def values(self) -> dict[str, str]:
        """The values that pods are started with."""
        return dict((await self.scene.objects(Kind.CONFIG_MAP))["pydocs-knobs"]["data"])


def said(seen: SeenJob, type_name: str) -> tuple[str, str, str]:
    """Status, reason and message of one condition."""
    (found,) = (c for c in seen.document["status"]["conditions"] if c["type"] == type_name)
    return found["status"], found["reason"], found.get("message", "")


@pytest.fixture
def passes(api_server: Cluster, api_namespace: str) -> Callable[..., None]:
    """Plays a scenario with one job."""
    install_crds(api_server)

    def run(scenario: Callable[[Passes], Coroutine[Any, Any, None]], **spec: Any) -> None:
        async def go(scene: Scene) -> None:
            template = spec.pop("template", make_template())
            await scene.create_job(spec={"template": template, "knobs": {"dataloaderWorkers": 0}} | spec)
            index = await load_index(scene.client, [scene.namespace])
            operator = Operator(
                client=scene.client,
                settings=Settings(),
                probe=scene.probe,
                recollection=Recollection(since_s=0.0, index=index),
                clock=scene.clock,
                metrics=Metrics(list, lambda: (0, 0.0)),
                fetch=scene.fetch,
            )
            await scenario(Passes(scene, operator, JobKey(scene.namespace, "pydocs")))

        play(api_server, api_namespace, go)

    return run

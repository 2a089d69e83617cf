"""What does one pass of the operator do for a job, on a real API server with pods played by hand?"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest

from amdahl_loop.adapters.kube.experiments import load_index
from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.experiments import Experiment, Plan
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.policy import TuningPolicySpec
from amdahl_loop.domain.tuning import Mode
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.resting import RESYNC_IDLE_S
from amdahl_loop.returning import find_left
from amdahl_loop.settings import Settings
from cluster_builders import Scene, play
from judge_builders import Bench, make_plan
from kube_builders import install_crds, see_job
from pod_builders import make_template
from testbed.cluster import Cluster

NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="Saves nothing.", effect=0.0, effect_se=0.01)
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


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


def said(seen: SeenJob, type_name: str) -> tuple[str, str, str]:
    """Status, reason and message of one condition."""
    (found,) = (c for c in seen.document["status"]["conditions"] if c["type"] == type_name)
    return found["status"], found["reason"], found.get("message", "")


def test_a_new_job_takes_six_requests(passes: Callable[..., None]) -> None:
    """Read it, ask for pods of a namesake, make values, Service and Job, and say so; the probe is there already."""

    async def scenario(job: Passes) -> None:
        scene, another = job.scene, JobKey(job.scene.namespace, "another")
        await job.settle()
        await scene.create_job("another", spec={"template": make_template(), "knobs": {"dataloaderWorkers": 0}})
        scene.transport.requests.clear()
        assert await job.operator.advance(another)
        asked = [
            (request.method, request.path.split(f"/{scene.namespace}/")[1]) for request in scene.transport.requests
        ]
        assert asked == [
            ("GET", "trainingjobs/another"),
            ("GET", "pods"),
            ("POST", "configmaps"),
            ("POST", "services"),
            ("POST", "jobs"),
            ("PATCH", "trainingjobs/another/status"),
        ]

    passes(scenario)


def test_a_job_that_has_lost_its_status_and_its_values_goes_on(passes: Callable[..., None]) -> None:
    """It looks as if it were new, but its pods are there: its revision stays, and nothing runs twice."""

    async def scenario(job: Passes) -> None:
        scene = job.scene
        await job.settle()
        await scene.play_pods("pydocs-r0")
        values = (await scene.objects(Kind.CONFIG_MAP))["pydocs-knobs"]["metadata"]
        await scene.client.delete(Kind.CONFIG_MAP, scene.namespace, "pydocs-knobs", values["uid"])
        seen = await see_job(scene.client, scene.namespace)
        bare = {"status": dict.fromkeys(seen.document["status"])}
        await scene.client.patch_status(Kind.TRAINING_JOB, scene.namespace, "pydocs", bare)
        before = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]["uid"]
        seen = await job.settle()
        assert seen.status.observed_generation == seen.generation
        assert {name: raw["metadata"]["uid"] for name, raw in (await scene.objects(Kind.JOB)).items()} == {
            "pydocs-r0": before
        }
        assert "pydocs-knobs" in await scene.objects(Kind.CONFIG_MAP)

    passes(scenario)


def test_what_a_policy_takes_away_is_said(passes: Callable[..., None]) -> None:
    """The owner reads whose word it is that experiments do not run."""

    async def scenario(job: Passes) -> None:
        job.operator.recollection.policies[job.scene.namespace] = {
            "night": TuningPolicySpec(paused=True, modes=(Mode.OBSERVE,))
        }
        seen = await job.settle()
        assert said(seen, "Experimenting")[:2] == ("False", "Paused")
        message = seen.document["status"]["message"]
        assert "TuningPolicy night: experiments are paused." in message
        assert "TuningPolicy night: mode Auto becomes Observe" in message

    passes(scenario)


def test_storage_that_one_pod_holds_alone_blocks_trials(passes: Callable[..., None]) -> None:
    """The claim's own word counts, and it is read before anything is spent."""
    template = make_template()
    template["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "corpus"}}]

    async def scenario(job: Passes) -> None:
        spec = {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}
        await job.scene.client.create(Kind.CLAIM, job.scene.namespace, {"metadata": {"name": "corpus"}, "spec": spec})
        status, reason, message = said(await job.settle(), "TrialsBlocked")
        assert (status, reason) == ("True", "ExclusiveStorage")
        assert "corpus, which is ReadWriteOncePod" in message

    passes(scenario, template=template)


def test_a_claim_that_was_not_there_is_asked_about_again(passes: Callable[..., None]) -> None:
    """One claim of two is made later: what was known of the other does not answer for it."""
    template = make_template()
    template["spec"]["volumes"] = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("corpus", "late")
    ]

    async def make(job: Passes, name: str, mode: str) -> None:
        spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
        await job.scene.client.create(Kind.CLAIM, job.scene.namespace, {"metadata": {"name": name}, "spec": spec})

    async def scenario(job: Passes) -> None:
        await make(job, "corpus", "ReadOnlyMany")
        assert said(await job.settle(), "TrialsBlocked")[0] == "False"
        await make(job, "late", "ReadWriteOncePod")
        status, reason, message = said(await job.settle(), "TrialsBlocked")
        assert (status, reason) == ("True", "ExclusiveStorage")
        assert "late, which is ReadWriteOncePod" in message

    passes(scenario, template=template)


def test_a_crash_loop_that_is_not_ours_is_stalled(passes: Callable[..., None]) -> None:
    """No value of the loop's is in force: there is nothing to take back, and the owner is told."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.scene.set_job("pydocs-r0", active=0, ready=0, failed=3)
        status, reason, message = said(await job.settle(), "Stalled")
        assert (status, reason) == ("True", "CrashLooping")
        assert "failed 3 times" in message

    passes(scenario)


def test_a_program_that_the_probe_keeps_from_running_says_so(passes: Callable[..., None]) -> None:
    """Observed and TrialsBlocked name the variable and the way out, whole; the job runs on, and is not called stalled."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        pods = await job.scene.play_pods("pydocs-r0")
        await job.scene.restart_trainer(pods[0], lasted_s=2, times=2)
        await job.scene.set_job("pydocs-r0", active=1, ready=0)
        await job.settle()
        await job.scene.delete_pods(*pods)
        await job.settle()
        await job.scene.play_pods("pydocs-r1")
        seen = await job.settle()
        for type_name, status in (("Observed", "False"), ("TrialsBlocked", "True")):
            assert said(seen, type_name)[:2] == (status, "ProbeRemoved")
            message = said(seen, type_name)[2]
            assert "spec.template.spec.containers[trainer].env names no PYTHONPATH" in message
            assert message.endswith("the probe is put before what the template says.")
        assert said(seen, "Ready")[:2] == ("True", "AsDeclared")
        assert said(seen, "Stalled")[0] == "False"

    passes(scenario, template=make_template({"restartPolicy": "OnFailure"}))


def test_a_crash_loop_under_a_proven_value_takes_it_back(passes: Callable[..., None]) -> None:
    """At once, without statistics; the spec follows."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0), Knobs(dataloader_workers=2))
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=2)
        await job.scene.set_job("pydocs-r0", active=0, ready=0, failed=3)
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=0)
        assert said(seen, "Tuned")[:2] == ("False", "RolledBack")
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"

    passes(scenario)


def test_a_verdict_that_was_written_by_hand_is_not_put_in_force(passes: Callable[..., None]) -> None:
    """Without the policies an administrator may write it: no block shows the win, so nothing is changed, and the job says so."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        ledger = await job.ledger()
        plan = make_plan(name="pydocs-e0", job="pydocs", job_uid=ledger.seen.uid)
        before, after = Knobs(dataloader_workers=0), Knobs(dataloader_workers=2)
        await ledger.add_plan(plan.model_copy(update={"baseline": before, "variant": after}))
        await ledger.add_verdict("pydocs-e0", WON, job.scene.clock())
        seen = await job.settle()
        assert seen.declared.knobs == before
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
        status, reason, message = said(seen, "Tuned")
        assert (status, reason) == ("False", "Unproven")
        assert "pydocs-e0 says that it has won" in message

    passes(scenario)


@pytest.mark.parametrize(
    ("verdict", "has_blocks", "knobs", "why"),
    [
        (None, False, {"dataloaderWorkers": 2}, "the experiment ended Inconclusive"),
        (NO_GAIN, False, {"dataloaderWorkers": 2}, "the experiment ended NoGain"),
        (WON, False, {"dataloaderWorkers": 2}, "its recorded blocks do not show it"),
        (WON, True, {"dataloaderWorkers": 9}, "are not those of the experiment"),
    ],
    ids=["open", "found nothing", "won by its word alone", "other values than the proven ones"],
)
def test_an_application_that_was_written_by_hand_is_not_in_force(
    passes: Callable[..., None], verdict: Verdict | None, has_blocks: bool, knobs: dict[str, int], why: str
) -> None:
    """Without the policies an administrator may write it. The job runs on as declared, and names what is not believed.

    The open experiment is cancelled by the same pass, since it is of other work than this job's.
    """

    async def scenario(job: Passes) -> None:
        await job.settle()
        before, after = Knobs(dataloader_workers=0), Knobs(dataloader_workers=2)
        plan = await job.plan("pydocs-e0", KnobName.DATALOADER_WORKERS, before, after)
        won = Bench(plan, gain=0.3).close()
        blocks = won.blocks if has_blocks else ()
        await job.record(won.model_copy(update={"blocks": blocks, "verdict": won.verdict if has_blocks else verdict}))
        await job.forge(plan, knobs=knobs)
        seen = await job.settle()
        status, reason, message = said(seen, "Tuned")
        if has_blocks:  # the true win is put in force beside it
            assert seen.declared.knobs == after
            assert (status, reason) == ("True", "ProvenValues")
        else:
            assert seen.declared.knobs == before
            assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
            assert (status, reason) == ("False", "Unproven")
        assert "status.applications of Experiment pydocs-e0 holds an entry that is ignored" in message
        assert why in message

    passes(scenario)


def test_a_job_at_rest_takes_one_request(passes: Callable[..., None]) -> None:
    """It is read, and it is as it was left; somebody else's annotation makes no difference, and its owner's word does."""

    async def scenario(job: Passes) -> None:
        scene, names = job.scene, (job.scene.namespace, "pydocs")
        seen = await job.settle()
        assert said(seen, "Suspended")[0] == "True"
        only = [("GET", "trainingjobs/pydocs")]
        assert await job.requests() == only
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"metadata": {"annotations": {"example.com/woken": "now"}}})
        assert await job.requests() == only
        job.operator.recollection.rests.hear(job.key)
        assert await job.requests() == [*only, ("GET", "jobs"), ("GET", "pods")]
        assert await job.requests() == only
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"spec": {"suspend": False}})
        await job.settle()
        assert "pydocs-r0" in await scene.objects(Kind.JOB)

    passes(scenario, suspend=True)


def test_a_suspended_job_that_had_nothing_at_the_start_takes_two_requests(passes: Callable[..., None]) -> None:
    """The lists of the start answer for it; once it is resumed, and has a Job, they do not any more."""

    async def scenario(job: Passes) -> None:
        scene, known = job.scene, job.operator.recollection
        known.since_s = scene.clock() + 1.0
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        assert await job.requests() == [("GET", "trainingjobs/pydocs"), ("PATCH", "trainingjobs/pydocs/status")]
        for suspend in (False, True):
            change = {"spec": {"suspend": suspend}}
            await scene.client.patch(Kind.TRAINING_JOB, scene.namespace, "pydocs", change)
            seen = await job.settle()
        assert said(seen, "Suspended")[0] == "True"
        assert (await scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is True

    passes(scenario, suspend=True)


def test_a_job_that_was_left_at_rest_needs_no_look_after_a_restart(passes: Callable[..., None]) -> None:
    """The next pass, some minutes later, only reads it; once its owner has resumed it, it is looked at."""

    async def scenario(job: Passes) -> None:
        scene, names = job.scene, (job.scene.namespace, "pydocs")
        shown = await job.settle()
        known = Recollection(since_s=scene.clock() + 1.0, index=await load_index(scene.client, [scene.namespace]))
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        left = find_left(shown, known, scene.clock())
        assert left is not None
        assert "Suspended" in left.told.holds
        known.rests.keep(job.key, left.rest)
        job.operator = replace(job.operator, recollection=known)
        assert await job.requests() == [("GET", "trainingjobs/pydocs")]
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"spec": {"suspend": False}})
        assert find_left(await see_job(scene.client, scene.namespace), known, scene.clock()) is None

    passes(scenario, suspend=True)


def test_a_new_job_that_was_there_before_the_operator_takes_five_requests(passes: Callable[..., None]) -> None:
    """The lists of the start say that there is no pod of a namesake."""

    async def scenario(job: Passes) -> None:
        scene, known = job.scene, job.operator.recollection
        known.since_s = scene.clock() + 1.0
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        asked = await job.requests()
        assert [(method, what) for method, what in asked if not what.startswith("configmaps")] == [
            ("GET", "trainingjobs/pydocs"),
            ("POST", "services"),
            ("POST", "jobs"),
            ("PATCH", "trainingjobs/pydocs/status"),
        ]

    passes(scenario)


def test_a_spec_that_cannot_be_used_is_looked_at_again_when_somebody_changes_it(passes: Callable[..., None]) -> None:
    """Nothing of the job can run, so nothing is measured: a long rest, and what is wrong is said."""
    template = make_template()
    template["spec"]["volumes"] = [{"name": "amdahl-probe", "emptyDir": {}}]

    async def scenario(job: Passes) -> None:
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        seen = await see_job(job.scene.client, job.scene.namespace)
        assert said(seen, "Stalled")[:2] == ("True", "InvalidSpec")
        assert "amdahl-probe" in seen.document["status"]["message"]
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        assert await job.scene.objects(Kind.JOB) == {}

    passes(scenario, template=template)


def test_an_old_manifest_over_two_wins_never_runs_its_old_values(passes: Callable[..., None]) -> None:
    """The revert is on record before anything runs by the spec: pods are never started with values that nobody wants."""
    first, second = (
        Knobs(dataloader_workers=2, prefetch_factor=2),
        Knobs(dataloader_workers=2, prefetch_factor=4),
    )
    begun = {"dataloaderWorkers": 0, "prefetchFactor": 2}

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0, prefetch_factor=2), first)
        await job.settle()
        await job.win("pydocs-e1", first, second, KnobName.PREFETCH_FACTOR)
        seen = await job.settle()
        assert seen.declared.knobs == second
        await job.scene.client.apply(
            Kind.TRAINING_JOB, job.scene.namespace, "pydocs", {"spec": {"knobs": begun}}, force=True
        )
        written = []
        for _ in range(8):
            await job.operator.advance(job.key)
            written.append((await job.values())["AMDAHL_DATALOADER_WORKERS"])
        seen = await job.settle()
        assert set(written) == {"2"}
        assert seen.declared.knobs == Knobs.model_validate(begun)
        assert said(seen, "ApplyConflict")[:2] == ("True", "Reverted")
        assert said(seen, "Tuned")[:2] == ("True", "ProvenValues")

    passes(scenario, knobs=begun)


def test_in_mode_spec_a_value_that_may_not_be_written_does_not_run(passes: Callable[..., None]) -> None:
    """Spec or nothing: with a GitOps tool on the field the old value runs, is measured and reported."""
    declared = {"dataloaderWorkers": 0}

    async def scenario(job: Passes) -> None:
        body = {"spec": {"knobs": declared}, "metadata": {"name": "pydocs", "namespace": job.scene.namespace}}
        job.scene.cluster.admin.kubectl(
            "apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-",
            stdin={"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TrainingJob"} | body,
        )  # fmt: skip
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0), Knobs(dataloader_workers=2))
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=0)
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
        assert said(seen, "ApplyConflict")[:2] == ("True", "ManagedByArgoCD")
        assert said(seen, "Tuned")[:2] == ("False", "WonUnapplied")
        (knob,) = seen.status.effective_knobs
        assert (knob.value, knob.source) == ("0", "Spec")

    passes(scenario, tuning={"mode": "Spec"})

"""Parity: what was measured on a cluster, given to one machine, leads to the same decisions, letter for letter; and a replay agrees."""

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.manifests import parse_manifest
from amdahl_loop.adapters.recorded import RecordedRunner, finished_block, finished_observation
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Measured, Observed, parse_export
from amdahl_loop.cli.main import main
from amdahl_loop.cli.session import World
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.ledger import Application
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, block_request
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.passing import identify
from amdahl_loop.reconcile import Ports, tick
from cluster_operator import TIMEOUT_S, operator, read, wait_for_condition
from fakes import SimulatedRunner, Truth, loader_bound
from hollow import HollowNodes
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

TRUTH = Truth(phases_s=loader_bound)
MOST_TICKS = 200
MANIFEST = {
    "apiVersion": "amdahl-loop.io/v1alpha1",
    "kind": "TrainingJob",
    "spec": {
        "knobs": {"dataloaderWorkers": 0, "checkpointEverySteps": 50},
        "template": {
            "spec": {"containers": [{"name": "trainer", "image": "example/train:1", "command": ["python", "t.py"]}]}
        },
        "tuning": {"profile": "quick", "budget": {"deviceHours": "100"}, "pin": ["checkpointEverySteps"]},
    },
}


def call(*words: str | Path) -> tuple[int, str, str]:
    """One command: its code, what it printed, what it said beside."""
    out, err = io.StringIO(), io.StringIO()
    code = main([str(word) for word in words], World(stdout=out, stderr=err))
    return code, out.getvalue(), err.getvalue()


def tune_on_cluster(plane: Cluster, namespace: str, log: Path) -> Any:
    """The scenario through the operator, to its end: the win is applied and measured. Returns the TrainingJob."""
    manifest = {**MANIFEST, "metadata": {"name": "waits"}}
    plane.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=manifest)

    def is_measured() -> bool:
        job = read(plane, namespace, "trainingjobs", "waits")
        return str(job["status"].get("observation", {}).get("run", "")).endswith("-o1")

    with (
        HollowNodes(plane.admin, TRUTH, prefix="parity"),
        operator(plane.admin.kubeconfig, log, NAMESPACES=namespace),
    ):
        wait_for_condition(plane, namespace, "waits", "Tuned", "True", log)
        wait_for(is_measured, TIMEOUT_S, "the applied value is measured")
    return read(plane, namespace, "trainingjobs", "waits")


def play_locally(job: TrainingJob, recorded: Sequence[Body], path: Path) -> tuple[Body, ...]:
    """The same scenario on one machine, into a file: every run that the loop asks for is the one that the cluster measured."""
    plans = {body.name: body for body in recorded if isinstance(body, Plan)}
    runs: dict[str, Finished] = {}
    for body in recorded:
        match body:
            case Measured():
                runs[plans[body.experiment].run_name(body.record.spec)] = finished_block(body.record)
            case Observed():
                runs[body.observation.run] = finished_observation(body.observation)
    moments = iter(range(1, MOST_TICKS * 10))

    async def play() -> None:
        with SqliteLedger.open(path) as ledger:
            ports = Ports(runner=RecordedRunner(runs), ledger=ledger, clock=lambda: float(next(moments)))
            for _ in range(MOST_TICKS):
                if (await tick(job, identify(job), ports)).is_over:
                    return
        raise AssertionError("the loop does not end")

    asyncio.run(play())
    code, out, err = call("export", "--ledger", path)
    assert code == 0, err
    return tuple(parse_export(out.splitlines()))


def decisions(bodies: Sequence[Body]) -> list[Any]:
    """Entries without what a clock says, and without what the spec says of the knobs once the win is written into it."""
    told = []
    for body in bodies:
        content = json.loads(body.model_dump_json())
        content.pop("at_s", None)
        if isinstance(body, Observed):
            content["observation"].pop("at_s")
            content["observation"]["job"]["spec"].pop("knobs")
        told.append((type(body).__name__, content))
    return told


def test_a_cluster_and_one_machine_decide_alike(plane: Cluster, tmp_path: Path) -> None:
    """The same plan, blocks, verdict and application from the same measurements; no replay of either deviates."""
    namespace, exported = plane.create_namespace("parity"), tmp_path / "cluster.jsonl"
    found = tune_on_cluster(plane, namespace, tmp_path / "operator.log")
    way = ("--kubeconfig", plane.admin.kubeconfig, "-n", namespace)
    assert call("export", exported, *way)[0] == 0
    cluster = tuple(parse_export(exported.read_text().splitlines()))

    manifest = {**MANIFEST, "metadata": {key: found["metadata"][key] for key in ("name", "namespace", "uid")}}
    job = parse_manifest(Path("job.yaml"), json.dumps(manifest))
    local = play_locally(job, cluster, tmp_path / "local.sqlite")

    kinds = [type(body) for body in cluster]
    assert kinds == [Observed, Plan, *[Measured] * (len(kinds) - 5), Closed, Application, Observed]
    assert [body.verdict.word for body in cluster if isinstance(body, Closed)] == [VerdictWord.WON]
    assert decisions(local) == decisions(cluster)

    assert call("import", exported, "--ledger", tmp_path / "imported.sqlite")[0] == 0
    for ledger in (exported, tmp_path / "imported.sqlite", tmp_path / "local.sqlite"):
        code, out, err = call("replay", ledger, "-o", "json")
        told = json.loads(out)
        assert (code, told["agree"], told["not_derived"], told["decisions"]) == (0, True, [], len(cluster)), err
    assert_pods_measured_what_a_machine_does(cluster)
    assert_read_only_commands_agree(way, cluster)
    plane.delete_namespace(namespace)


def assert_pods_measured_what_a_machine_does(bodies: Sequence[Body]) -> None:
    """A pod that tells what a formula says comes back, through its termination message, as a machine by the same formula."""
    (plan,) = (body for body in bodies if isinstance(body, Plan))
    simulated = SimulatedRunner(TRUTH)
    for body in bodies:
        if isinstance(body, Measured):
            request = block_request(plan, body.record.spec, startup_s=0.0, step_s=0.0)
            assert body.record.report is not None
            assert body.record.report.windows == tuple(simulated.measure(request.run, w) for w in request.windows)


def assert_read_only_commands_agree(way: Sequence[str | Path], bodies: Sequence[Body]) -> None:
    """`fleet`, `ledger`, `show` and `explain` tell of the same experiment what the export holds."""
    (plan,) = (body for body in bodies if isinstance(body, Plan))
    (verdict,) = (body.verdict for body in bodies if isinstance(body, Closed))
    told = {
        command: json.loads(call(command, *words, *way, "-o", "json")[1])
        for command, words in {"fleet": [], "ledger": [], "show": [plan.name[:9]], "explain": ["waits"]}.items()
    }
    (listed,) = told["ledger"]["experiments"]
    assert listed == told["show"]["experiment"]
    assert (listed["id"], listed["sentence"], listed["namespace"]) == (plan.name, verdict.sentence, way[-1])
    assert len(told["show"]["runs"]) == sum(isinstance(body, Measured) for body in bodies)
    (job,) = told["fleet"]["jobs"]
    assert (job["job"], job["tuned"], job["trial"]["experiment"]) == ("waits", "ProvenValues", None)
    spent_h = told["ledger"]["experiments"][0]["device_seconds"] / 3600
    assert job["bank"]["spent"] == pytest.approx(spent_h, rel=1e-3)
    assert told["explain"]["ideas"] == []

"""Blocks and the running job on real kubelets, in an image that holds no package of ours: what pods say, and their ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.runner import KubeRunner, Memory
from amdahl_loop.adapters.kube.running import RunningJob
from amdahl_loop.adapters.kube.scrape import fetch_metrics
from amdahl_loop.domain.evidence import read_block
from amdahl_loop.domain.experiments import BlockRecord, Plan
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, block_request, observation_request
from amdahl_loop.domain.telemetry import BlockReport, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName
from cluster_builders import PRIORITY_CLASS, Scene, play
from judge_builders import make_constants, make_plan
from kube_builders import install_crds
from testbed.cluster import Cluster
from testbed.python_images import python_image

pytestmark = pytest.mark.slow

IMAGE = "amdahl-testbed/python:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
LIMIT_S = 240
OBSERVATION = "pydocs-ffffffff-o0"

# Trains nothing, and speaks the telemetry contract with the probe's own code, which only PYTHONPATH can have brought.
PROGRAM = """
import os, pathlib, sys, time

from amdahl_probe import metrics
from amdahl_probe.emit import Batches, Recorder, StepRecord
from amdahl_probe.spans import Ledger

workers = int(os.environ["AMDAHL_DATALOADER_WORKERS"])
assert os.environ["MINE"] == f"{workers} of {sys.argv[1]}", os.environ["MINE"]
if os.environ.get("AMDAHL_TRIAL") == "1":
    pathlib.Path("/out/scratch").write_text("a trial may write here")
    if workers == 7:
        held = [bytearray(8 << 20) for _ in range(64)]
recorder = Recorder(os.environ.get("AMDAHL_TELEMETRY_DIR"))
recorder.start("cpu", live=False, by="probe")
if "AMDAHL_METRICS_PORT" in os.environ:
    metrics.serve(recorder.metrics, int(os.environ["AMDAHL_METRICS_PORT"]), os.environ["AMDAHL_METRICS_HOST"])
recorder.startup(5)
ledger, done = Ledger(), 0
while True:
    with ledger.span("input"):
        time.sleep(0.02 if workers else 0.04)
    ledger.rest("compute")
    time.sleep(0.02)
    phases = ledger.take()
    digest = f"{done:08x}"
    recorder.step(StepRecord(done, ledger.mark_ns, phases, 8, 64, digest, "0000abcd", digest, 1.0, 0, Batches(1, 40_000_000, 1_600_000_000)))
    done += 1
"""


@pytest.fixture(scope="module", autouse=True)
def ready(cluster: Cluster) -> None:
    """Our kinds and the priority class are there, and every node has the image."""
    install_crds(cluster)
    cluster.admin.kubectl("apply", "-f", "-", stdin=PRIORITY_CLASS)
    cluster.load_image(python_image(IMAGE))


@pytest.fixture
def namespace(cluster: Cluster) -> Any:
    """A namespace under the restricted standard, with the user's program in it."""
    name = cluster.create_namespace("trials", RESTRICTED)
    script = {"metadata": {"name": "script"}, "data": {"train.py": PROGRAM}, "apiVersion": "v1", "kind": "ConfigMap"}
    cluster.admin.kubectl("apply", "--namespace", name, "-f", "-", stdin=script)
    yield name
    cluster.delete_namespace(name)


def template(pod: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """The user's own pods: restricted, with a program that reads a knob and a variable that depends on it."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "/job/train.py", "$(AMDAHL_REPLICAS)"],
        "env": [{"name": "MINE", "value": "$(AMDAHL_DATALOADER_WORKERS) of $(AMDAHL_REPLICAS)"}],
        "securityContext": security,
        "resources": {"limits": {"cpu": "1", "memory": "256Mi"}},
        "volumeMounts": [{"name": "script", "mountPath": "/job"}],
    }
    volumes = [{"name": "script", "configMap": {"name": "script"}}]
    return {"spec": {"containers": [container | trainer], "volumes": volumes, **(pod or {})}}


class Loop:
    """The operator's side of one job."""

    def __init__(self, scene: Scene, job: TrainingJob, plan: Plan) -> None:
        self.scene, self.job, self.plan, self.memory = scene, job, plan, Memory()
        self.probe = pack_probe()

    @classmethod
    async def begin(cls, scene: Scene, after: int = 2, **spec: Any) -> "Loop":
        """A job and its plan on the server; the variant has so many workers."""
        fields = {
            "template": template(),
            "knobs": {"dataloaderWorkers": 0},
            "tuning": {"trial": {"scratchPaths": ["/out"]}},
        }
        job = await scene.create_job(spec=fields | spec)
        constants = make_constants(launch_warmup_s=0.2, warmup_steps=3, window_s=1.0, min_steps=10)
        plan = make_plan(
            constants, after=after, live=False, name="pydocs-0123456789", job="pydocs", job_uid=job.metadata.uid
        )
        await scene.client.create(Kind.EXPERIMENT, scene.namespace, render(plan, scene.namespace))
        return cls(scene, job, plan)

    @property
    def runner(self) -> KubeRunner:
        """As a fresh pass sees it."""

        async def reserve(*_: object) -> None:
            """There is budget enough."""

        return KubeRunner(
            self.scene.client,
            self.job,
            self.probe,
            self.memory,
            reserve=reserve,
            clock=self.scene.clock,
            fetch=fetch_metrics,
        )

    @property
    def running(self) -> RunningJob:
        """The running job."""
        scene = self.scene
        return RunningJob(scene.client, self.job, self.probe, scene.saves, clock=scene.clock, fetch=fetch_metrics)

    async def run_block(self, index: int) -> tuple[Finished, BlockReport | None]:
        """One planned block to its end, and what it reported."""
        request = block_request(self.plan, self.plan.blocks[index], startup_s=0.5, step_s=0.06)
        await self.runner.submit(self.job, request)

        async def is_over() -> Finished | None:
            state = await self.runner.find(request.run)
            return state if isinstance(state, Finished) else None

        state = await until(is_over)
        report = parse_block_summary(state.summary, request.run)
        return state, report if isinstance(report, BlockReport) else None


async def until(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is one."""
    for _ in range(LIMIT_S * 2):
        answer = await ask()
        if answer:
            return answer
        await asyncio.sleep(0.5)
    raise AssertionError("it does not come about")


def test_a_block_measures_both_arms_in_real_pods(cluster: Cluster, namespace: str) -> None:
    """Four windows in one restricted pod; the variant's are faster; nothing is left of it after it is stopped."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene)
        spec = loop.plan.blocks[2]
        state, report = await loop.run_block(2)
        assert state.failure == "", state
        assert report is not None, state.summary
        record = BlockRecord(
            spec=spec,
            node=state.node,
            started_at_s=state.started_at_s,
            held_device_s=state.held_device_s,
            report=report,
        )
        seen = read_block(loop.plan, record)
        assert seen.is_measured, (seen.problem, state.summary)
        assert 0.2 < seen.effect < 0.6  # 60 ms against 40 ms a step: log 1.5 is 0.41
        assert state.node in cluster.node_names
        assert 4 < state.held_device_s < 200
        await loop.runner.stop(report.run)

        async def is_gone() -> bool:
            return not await scene.objects(Kind.POD)

        await until(is_gone)

    play(cluster, namespace, scenario)


def test_a_block_of_two_pods_is_one_report(cluster: Cluster, namespace: str) -> None:
    """Both pods run the same recorded schedule; devices and samples of both count, the slower one's time is judged."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene, replicas=2)
        state, report = await loop.run_block(2)
        assert state.failure == "", state
        assert report is not None, state.summary
        assert [window.devices for window in report.windows] == [2, 2, 2, 2]
        assert all(window.samples == pytest.approx(2 * 8 * window.steps, rel=0.3) for window in report.windows)

    play(cluster, namespace, scenario)


def test_the_running_job_is_observed_by_its_counters(cluster: Cluster, namespace: str) -> None:
    """The pod is the user's own, the probe came by PYTHONPATH, and two scrapes of the pod's address are a report."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene)

        async def is_running() -> bool:
            return (await loop.running.ensure()).note.reason is Reason.AS_DECLARED

        await until(is_running)
        request = observation_request(OBSERVATION, loop.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
        await loop.runner.submit(loop.job, request)

        async def is_over() -> Finished | None:
            state = await loop.runner.find(OBSERVATION)
            return state if isinstance(state, Finished) else None

        state = await until(is_over)
        report = parse_block_summary(state.summary, OBSERVATION)
        assert isinstance(report, BlockReport), state
        (window,) = report.windows
        assert 600 < window.phases_ppk[3] < 720  # 40 of 60 ms wait for data

    play(cluster, namespace, scenario)


def test_a_variant_that_eats_all_memory_loses(cluster: Cluster, namespace: str) -> None:
    """Whoever ends it, supervisor or kernel, the report says which arm it was, and the arm is at fault."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene, after=7)
        state, report = await loop.run_block(2)
        assert report is not None, state
        record = BlockRecord(
            spec=loop.plan.blocks[2], started_at_s=0, held_device_s=0, report=report, failure=state.failure
        )
        seen = read_block(loop.plan, record)
        assert (seen.culprit, seen.fault) == ("B", "oom"), (state, seen)

    play(cluster, namespace, scenario)


@pytest.mark.parametrize(
    ("fields", "trial", "word"),
    [
        pytest.param({}, {"python": "python9"}, "no_python", id="no such interpreter"),
        pytest.param({"image": "amdahl-testbed/nothing:1"}, {}, "image_pull", id="no such image"),
        pytest.param(
            {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "nobody", "key": "k"}}}]}, {}, "config_error",
            id="no such ConfigMap",
        ),
        pytest.param({"workingDir": "/proc/nowhere"}, {}, "config_error", id="no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_so(
    cluster: Cluster, namespace: str, fields: dict[str, Any], trial: dict[str, Any], word: str
) -> None:
    """Each in its own word, from what a real kubelet writes."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene, template=template(**fields), tuning={"trial": trial})
        state, _ = await loop.run_block(2)
        assert state.failure.startswith(word), state

    play(cluster, namespace, scenario)


def test_a_block_is_stopped_within_half_a_minute(cluster: Cluster, namespace: str) -> None:
    """The supervisor ends what it runs, whatever the user's own grace period."""

    async def scenario(scene: Scene) -> None:
        slow = template({"terminationGracePeriodSeconds": 3600})
        loop = await Loop.begin(scene, template=slow)
        request = block_request(loop.plan, loop.plan.blocks[2], startup_s=0.5, step_s=60.0)
        await loop.runner.submit(loop.job, request)

        async def is_running() -> bool:
            return any(pod["status"].get("phase") == "Running" for pod in (await scene.objects(Kind.POD)).values())

        await until(is_running)
        loss = await loop.runner.stop(request.run)
        assert loss is not None
        for _ in range(60):
            if not await scene.objects(Kind.POD):
                return
            await asyncio.sleep(0.5)
        raise AssertionError("the pod is still there after 30 s")

    play(cluster, namespace, scenario)

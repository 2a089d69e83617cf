"""The operator's side of one job on real nodes, and a program that trains nothing in an image that holds nothing of ours."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.runner import KubeRunner, Memory
from amdahl_loop.adapters.kube.running import RunningJob
from amdahl_loop.adapters.kube.scrape import fetch_metrics
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, block_request
from amdahl_loop.domain.telemetry import BlockReport, parse_block_summary
from cluster_builders import Scene
from cluster_operator import CONFINED
from judge_builders import make_constants, make_plan

IMAGE = "amdahl-testbed/python-with-a-path:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
LIMIT_S = 1200
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
    assert "/image/lib" in sys.path, "the image's own path stays"
    if workers == 7:
        held = [bytearray(8 << 20) for _ in range(64)]
counters = metrics.Metrics()
recorder = Recorder(os.environ.get("AMDAHL_TELEMETRY_DIR"), metrics=counters)
recorder.start("cpu", live=False, by="probe")
if "AMDAHL_METRICS_PORT" in os.environ:
    metrics.serve(counters, int(os.environ["AMDAHL_METRICS_PORT"]), os.environ["AMDAHL_METRICS_HOST"])
recorder.startup(5)
saved = pathlib.Path("/out/step")
begun = int(saved.read_text()) if saved.exists() else 0
assert begun or not (os.environ.get("SAVES") and os.environ.get("AMDAHL_TRIAL")), "a trial begins from the checkpoint"
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
    if os.environ.get("SAVES") and done % 20 == 0:
        saved.with_suffix(".new").write_text(str(begun + done))
        saved.with_suffix(".new").replace(saved)
        counters.checkpoints += 1
"""


def template(pod: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """The user's own pods: restricted, with a program that reads a knob and a variable that depends on it."""
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "/job/train.py", "$(AMDAHL_REPLICAS)"],
        "env": [{"name": "MINE", "value": "$(AMDAHL_DATALOADER_WORKERS) of $(AMDAHL_REPLICAS)"}],
        "securityContext": CONFINED,
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

        async def reserve(*_: object) -> bool:
            """There is budget enough."""
            return True

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

    async def run_block(self, index: int, startup_s: float = 0.5) -> tuple[Finished, BlockReport | None]:
        """One planned block to its end, and what it reported. A launch may take ten times the startup that was seen."""
        request = block_request(self.plan, self.plan.blocks[index], startup_s=startup_s, step_s=0.06)
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

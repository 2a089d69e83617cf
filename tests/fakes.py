"""Fakes that behave, at our own ports: a machine whose jobs cost what a formula says, with noise from a recorded seed."""

import hashlib
import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState, WindowRequest
from amdahl_loop.domain.telemetry import PHASES, BlockReport, Loader, Phase, Saves, Window, WindowOutcome

COMPUTE_S = 0.05
BATCH_S = 0.12


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a simulated job does under given knobs: seconds a step, by phase; and how it fails, if it does."""

    phases_s: Callable[[Knobs], dict[Phase, float]]
    batch: Callable[[Knobs], int] = lambda _: 16
    outcome: Callable[[Knobs], WindowOutcome] = lambda _: WindowOutcome.OK
    noise_sd: float = 0.01
    live: bool = False


def loader_bound(knobs: Knobs) -> dict[Phase, float]:
    """The loader law: 120 ms a batch beside a 50 ms step."""
    workers = knobs.dataloader_workers or 0
    wait_s = BATCH_S if workers == 0 else max(0.0, BATCH_S / workers - COMPUTE_S)
    return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: wait_s}


def compute_bound(knobs: Knobs) -> dict[Phase, float]:
    """Nothing but computing."""
    return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0005}


@dataclass
class SimulatedRunner:
    """The `Runner` port over a formula: a run is over as soon as it was submitted and looked at twice."""

    truth: Truth
    now_s: float = 0.0
    runs: dict[str, RunState] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)

    async def find(self, run: str) -> RunState:
        """Absent, then running, then finished."""
        return self.runs.get(run, Absent())

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Run it at once; the same request always gives the same numbers."""
        del job
        assert not isinstance(self.runs.get(request.run), Running), "one run is submitted once"
        self.submitted.append(request.run)
        windows = tuple(self.measure(request.run, window) for window in request.windows)
        report = BlockReport(run=request.run, state="done", live=self.truth.live, cpus=4, windows=windows)
        held_s = sum(window.wall_s * max(1, window.devices) for window in windows)
        self.runs[request.run] = Finished(
            summary=encode_report(report), node="here", started_at_s=self.now_s, held_device_s=held_s
        )
        self.now_s += sum(window.wall_s for window in windows)

    async def stop(self, run: str) -> Loss | None:
        """Forget it, and say what it had held."""
        state = self.runs.pop(run, None)
        if not isinstance(state, Finished):
            return None
        return Loss(run=run, started_at_s=state.started_at_s, held_device_s=state.held_device_s)

    async def sweep(self, keep: Collection[str]) -> tuple[Loss, ...]:
        """Forget what is not kept."""
        stopped = [await self.stop(run) for run in sorted(self.runs) if run not in keep]
        return tuple(loss for loss in stopped if loss is not None)

    def measure(self, run: str, window: WindowRequest) -> Window:
        """What one window of a run measures."""
        knobs, outcome = window.knobs, self.truth.outcome(window.knobs)
        if outcome is not WindowOutcome.OK:
            return Window(arm=window.arm, index=window.index, outcome=outcome, exit_code=1)
        draw = random.Random(f"{run}:{window.index}")
        phases = self.truth.phases_s(knobs)
        step_s = sum(phases.values()) * math.exp(draw.gauss(0, self.truth.noise_sd))
        steps = window.steps or max(window.min_steps, round(window.measure_s / step_s))
        every = window.save_every or knobs.checkpoint_every_steps or 0
        batch = self.truth.batch(knobs)
        return Window(
            arm=window.arm,
            index=window.index,
            outcome=outcome,
            steps=steps,
            samples=steps * batch,
            devices=knobs.gpus_per_replica or 1,
            wall_s=round(steps * step_s, 6),
            phases_ppk=_shares(phases),
            shape="00000001",
            elements_per_sample=64.0,
            distinct_ppk=1000,
            sample_ids=_digest(f"{batch} samples from {window.offset}"),
            losses=_digest(f"loss of seed {window.seed}"),
            loss_mean=2.5,
            saves=Saves(count=steps // every, block_s=0.001) if every else Saves(),
            quiet_step_s=round(step_s, 6),
            quiet_step_sd_s=0.001,
            startup_s=3.0,
            loader=Loader(batch_s=BATCH_S, cv=0.1),
            peak_mem_mib=500,
            offset_applied=True,
        )


def _shares(phases: dict[Phase, float]) -> tuple[int, ...]:
    total = sum(phases.values())
    ppk = {phase: round(1000 * seconds / total) for phase, seconds in phases.items() if phase is not Phase.COMPUTE}
    ppk[Phase.COMPUTE] = 1000 - sum(ppk.values())
    return tuple(ppk.get(phase, 0) for phase in PHASES)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


WRITES = (
    "add_observation",
    "add_plan",
    "add_block",
    "add_loss",
    "add_verdict",
    "add_application",
    "submit",
    "stop",
)
"""What a loop may be killed before or after."""


class Killed(BaseException):
    """SIGKILL: nothing catches it."""


class Fuse:
    """Counts writes of the loop and kills it before or after a given one."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.count, self.at, self.after = 0, at, after

    def wrap(self, target: Any) -> Any:
        """The same object, its writes counted."""
        return _Fused(target, self)


class _Fused:
    def __init__(self, target: Any, fuse: Fuse) -> None:
        self._target, self._fuse = target, fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if name not in WRITES:
            return method

        async def counted(*args: Any) -> Any:
            mine = self._fuse.count
            self._fuse.count += 1
            if mine == self._fuse.at and not self._fuse.after:
                raise Killed
            result = await method(*args)
            if mine == self._fuse.at and self._fuse.after:
                raise Killed
            return result

        return counted

"""What do programs do under given knobs, and what do kubelets say of their pods? Formulas, and statuses as the API has them."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.runs import WindowRequest
from amdahl_loop.domain.telemetry import PHASES, Arm, BlockReport, Window
from fakes import SimulatedRunner, Truth
from reliability.wire import Object

HEAD_START_S = 20.0
HASTE = 1.6
MOST_HASTE_S = 3.0
HASTE_FOR_S = 15.0
"""A program's clock runs ahead by so much, but never by more than 3 s in 15 s: the operator grants clocks 5 s, and an observation of
5 s of steps is over in two."""


@dataclass
class Program:
    """A running job's counters, by the values that its pod was started with."""

    truth: Truth
    knobs: Knobs
    now_s: float = field(default_factory=time.monotonic)
    passed_s: float = HEAD_START_S
    haste: list[tuple[float, float]] = field(default_factory=list)
    looks: int = 0

    def _pass_time(self) -> None:
        """Move the program's clock to now, and a little further."""
        before_s, self.now_s = self.now_s, time.monotonic()
        self.haste = [(at_s, by_s) for at_s, by_s in self.haste if self.now_s - at_s < HASTE_FOR_S]
        since_s = self.now_s - before_s
        by_s = min(HASTE * since_s, MOST_HASTE_S - sum(by_s for _, by_s in self.haste))
        self.haste.append((self.now_s, by_s))
        self.passed_s += since_s + by_s

    def render(self) -> str:
        """Prometheus text, as the probe serves it; a checkpoint is written between two looks."""
        self.looks += 1
        self._pass_time()
        phases = self.truth.phases_s(self.knobs)
        step_s = sum(phases.values())
        steps = int(self.passed_s / step_s)
        lines = [
            'amdahl_info{rank="0",world="1",device="cpu",by="probe"} 1',
            f"amdahl_steps_total {steps}",
            f"amdahl_samples_total {steps * self.truth.batch(self.knobs)}",
            f"amdahl_step_seconds_sum {steps * step_s}",
            f"amdahl_checkpoints_total {self.looks}",
            f"amdahl_checkpoint_block_seconds_total {0.001 * self.looks}",
            f"amdahl_loader_batches_total {steps}",
            f"amdahl_loader_batch_seconds_total {steps * 0.12}",
        ]
        lines += [f'amdahl_phase_seconds_total{{phase="{p}"}} {steps * phases.get(p, 0.0)}' for p in PHASES]
        return "\n".join(lines) + "\n"


def measure(truth: Truth, block: str, run: str, requests: Iterable[WindowRequest]) -> BlockReport:
    """What a supervisor would report of a run. The noise hangs on block, arm and turn, never on names or the coin's fall."""
    turns: Counter[Arm] = Counter()
    windows: list[Window] = []
    for request in requests:
        turn = request.model_copy(update={"index": turns[request.arm]})
        turns[request.arm] += 1
        measured = SimulatedRunner(truth).measure(f"{block}{request.arm}", turn)
        windows.append(measured.model_copy(update={"index": request.index}))
    return BlockReport(run=run, state="done", live=False, cpus=4, windows=tuple(windows))


def read_windows(plan: Object) -> list[WindowRequest]:
    """The windows of a plan as a supervisor gets it."""
    names = ("arm", "index", "scored", "offset", "seed", "warmup_s", "warmup_steps", "measure_s", "min_steps", "steps")
    return [
        WindowRequest(
            knobs=Knobs.model_validate(raw["knobs"]), save_every=raw["save_every"], **{key: raw[key] for key in names}
        )
        for raw in plan["windows"]
    ]


def pod_status(phase: str, state: Object, at: str = "", **more: Any) -> Object:
    """A pod's status with one container, in this phase and state."""
    at = at or stamp()
    is_ready = phase == "Running"
    container = {"name": "trainer", "image": "hollow", "imageID": "", "restartCount": 0, "state": state}
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
        {"type": "Ready", "status": "True" if is_ready else "False", "lastTransitionTime": at},
    ]
    return {
        "phase": phase,
        "startTime": at,
        "conditions": conditions,
        "containerStatuses": [container | {"ready": is_ready, "started": is_ready}],
        **more,
    }


def stamp(at_s: float | None = None) -> str:
    """RFC 3339 to the second, as controllers write it."""
    moment = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

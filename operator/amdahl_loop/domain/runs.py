"""What exactly is to be run for a block or an observation?

A `RunRequest` is the loop's wish, free of commands, images and paths: windows with knob values, seeds and offsets. The
adapters turn it into a supervised process tree or a Kubernetes Job; both hand the same plan to the supervisor.
"""

from pydantic import Field

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import Plan, arm_knobs
from amdahl_loop.domain.hypotheses import judged_by
from amdahl_loop.domain.knob_values import KnobName, Knobs, knob_environment
from amdahl_loop.domain.telemetry import Arm, BlockReport, Seconds
from amdahl_loop.domain.tuning import Placement
from amdahl_loop.domain.values import Frozen

FORCED_SAVE_EVERY_STEPS = 10
"""Slowest cadence of a window that measures what a save costs: three saves come soon, with quiet steps between them."""

SMALLEST_HALVED = 4
"""Below this, half a cadence is a step or two: three times as many steps tell the arms apart instead."""

SLOWEST_WORK_FACTOR = 6.0
"""A window may take this many times its planned length before it counts as hung: slow steps, saves, a busy machine."""


OVERRUN_S = 90.0
"""What ending a run may take beyond its deadline: the supervisor's own grace, then that of whoever keeps it."""

TURN_S = 240.0
"""What a job that makes way for a block may stand still before and after it, beside its own startup."""

COMPILE_TIMEOUT_S = 900.0
"""What compiling a model may take beyond an ordinary first step: minutes for tens of blocks, on a busy machine."""

LEAST_ROOM = 1.5
"""A block starts only where the budget carries this many times the time that it is expected to take."""


class WindowRequest(Frozen):
    """One window: the arm it is reported as, the knobs it runs with, and what is measured."""

    arm: Arm
    index: int
    scored: bool = True
    knobs: Knobs
    seed: int
    offset: int
    warmup_s: Seconds
    warmup_steps: int
    measure_s: Seconds
    min_steps: int
    steps: int | None = None
    save_every: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Knob variables of this window, with the forced cadence where saves are to be measured."""
        values = self.knobs.declared()
        if self.save_every is not None:
            values[KnobName.CHECKPOINT_EVERY_STEPS] = self.save_every
        return knob_environment(values)


class RunRequest(Frozen):
    """One supervised run, named deterministically before it is submitted. `trace`: it leaves a time line."""

    run: str
    plan_hash: str = ""
    live: bool
    trace: bool = False
    windows: tuple[WindowRequest, ...] = Field(min_length=1)
    startup_timeout_s: Seconds
    step_timeout_s: Seconds
    deadline_s: Seconds
    expected_s: Seconds = 0.0
    """What it takes if all goes well: launches, warm-ups and windows."""
    idle_s: Seconds = 0.0
    """What the job stands still before and after it, at most, where the two take turns."""

    @property
    def max_devices(self) -> int:
        """Devices of the larger arm: what each replica of the run holds."""
        return max(window.knobs.gpus_per_replica or 1 for window in self.windows)

    def reserved_device_s(self, replicas: int = 1) -> float:
        """Device-seconds that the run can hold at most: what the budget must carry before it starts."""
        return (self.deadline_s + OVERRUN_S + self.idle_s) * self.max_devices * replicas

    def needed_device_s(self, replicas: int = 1) -> float:
        """Device-seconds without which it is not worth a start."""
        return (LEAST_ROOM * self.expected_s + OVERRUN_S + self.idle_s) * self.max_devices * replicas

    def fit(self, left_device_s: float, replicas: int = 1) -> "RunRequest | None":
        """The run with a deadline that the rest of a budget can pay for; None where too little is left for it."""
        if left_device_s < self.needed_device_s(replicas) or left_device_s <= 0:
            return None
        most_s = left_device_s / (self.max_devices * replicas) - OVERRUN_S - self.idle_s
        return self if self.deadline_s <= most_s else self.model_copy(update={"deadline_s": most_s})


class Absent(Frozen):
    """No such run is known."""


class Running(Frozen):
    """The run goes on; `report` is its latest summary, if any."""

    report: BlockReport | None = None


class Finished(Frozen):
    """The run is over. `summary` is the untrusted text it left; `failure` says why there is none."""

    summary: str = ""
    failure: str = ""
    node: str = ""
    started_at_s: float
    held_device_s: Seconds
    is_taken: bool = False
    """The cluster refused it or took it away, which says nothing about either arm."""


class Unplaced(Frozen):
    """The run found no place: nothing of it has run, nor will. `why` begins with a word for machines."""

    why: str


RunState = Absent | Running | Unplaced | Finished


def block_request(
    plan: Plan,
    spec: BlockSpec,
    startup_s: float,
    step_s: float,
    attempt: int = 0,
    placement: Placement = Placement.SPARE,
) -> RunRequest:
    """The run of one planned block. `startup_s` and `step_s` were observed and only size the time limits."""
    windows = tuple(_window(plan, spec, position) for position in range(len(spec.order)))
    live = plan.live and spec.stage is not Stage.PROOF
    compiles = bool(plan.baseline.compile or plan.variant.compile)  # whichever arms run: limits favour none
    return _limit(plan.run_name(spec, attempt), windows, live, startup_s, step_s, compiles).model_copy(
        update={"plan_hash": plan.hash, "idle_s": TURN_S + startup_s if placement is Placement.IN_TURN else 0.0}
    )


def _window(plan: Plan, spec: BlockSpec, position: int) -> WindowRequest:
    constants = plan.constants
    relaunched = not plan.live or position == 0
    soak, proof = spec.stage is Stage.SOAK, spec.stage is Stage.PROOF
    warmup_s = constants.launch_warmup_s if relaunched else constants.switch_warmup_s
    if soak:
        warmup_s = constants.soak_warmup_s
    cadence = judged_by(plan.hypothesis) == "cadence" and not proof
    run_as = Arm(spec.order[position])
    return WindowRequest(
        arm=Arm(spec.labels[position]),
        index=position,
        knobs=arm_knobs(plan, run_as),
        seed=spec.seeds[position],
        offset=spec.offsets[position],
        warmup_s=0 if proof else warmup_s,
        warmup_steps=0 if proof else constants.warmup_steps,
        measure_s=constants.soak_window_s if soak else constants.window_s,
        min_steps=constants.min_steps,
        steps=constants.proof_steps if proof else None,
        save_every=measuring_cadence(plan, run_as) if cadence else None,
    )


def measuring_cadence(plan: Plan, arm: Arm) -> int:
    """Steps between saves in an arm's windows where its cadence is judged; the arms' are always a factor 2 apart.

    Were they alike, a script that ignores the knob could look as if it obeyed in both.
    """
    baseline, variant = _measuring(plan.baseline), _measuring(plan.variant)
    if arm is Arm.BASELINE:
        return baseline
    if max(baseline, variant) >= 2 * min(baseline, variant):
        return variant
    return baseline // 2 if baseline >= SMALLEST_HALVED else 3 * baseline


def _measuring(knobs: Knobs) -> int:
    """The job's own cadence where that saves often enough, else the forced one."""
    return min(knobs.checkpoint_every_steps or FORCED_SAVE_EVERY_STEPS, FORCED_SAVE_EVERY_STEPS)


def observation_request(run: str, knobs: Knobs, constants: Constants, seed: int) -> RunRequest:
    """The run that observes a job: its own settings, then once more with saves forced where the cadence is a knob."""
    plain = WindowRequest(
        arm=Arm.BASELINE,
        index=0,
        knobs=knobs,
        seed=seed,
        offset=0,
        warmup_s=constants.launch_warmup_s,
        warmup_steps=constants.warmup_steps,
        measure_s=2 * constants.window_s,
        min_steps=2 * constants.min_steps,
    )
    windows = [plain]
    if knobs.checkpoint_every_steps is not None:
        windows.append(plain.model_copy(update={"index": 1, "scored": False, "save_every": _measuring(knobs)}))
    return _limit(run, tuple(windows), live=False, startup_s=0.0, step_s=0.0, compiles=bool(knobs.compile))


def _limit(
    run: str, windows: tuple[WindowRequest, ...], live: bool, startup_s: float, step_s: float, compiles: bool
) -> RunRequest:
    """Time limits that only a hang or a runaway can reach: generous multiples of what was observed."""
    startup_timeout_s = max(180.0, 10 * startup_s)
    compiling_s = COMPILE_TIMEOUT_S if compiles else 0.0
    step_timeout_s = max(60.0, 20 * step_s) + compiling_s
    launches = 1 if live else len(windows)
    planned_s = sum(
        w.warmup_s + w.measure_s + (w.warmup_steps + w.min_steps + (w.steps or 0)) * step_s for w in windows
    )
    return RunRequest(
        run=run,
        live=live,
        windows=windows,
        startup_timeout_s=startup_timeout_s,
        step_timeout_s=step_timeout_s,
        deadline_s=launches * (startup_timeout_s + compiling_s) + SLOWEST_WORK_FACTOR * planned_s + step_timeout_s,
        expected_s=launches * startup_s + planned_s,
    )

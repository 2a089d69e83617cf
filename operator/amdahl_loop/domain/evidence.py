"""What does one finished block say?

A block yields four window costs, or it is missing, or an arm failed. Which of its numbers count is decided here alone;
what they mean together is the judge's. A failing variant is a fault, never missing data.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amdahl_loop.domain import cadence
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import BlockRecord, Plan, arm_knobs
from amdahl_loop.domain.hypotheses import judged_by
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.stats import mean, median
from amdahl_loop.domain.telemetry import Arm, BlockReport, Window, WindowOutcome
from amdahl_loop.domain.tuning import Objective

CLOCK_SHARE_PPK = 20
"""A process whose clock differs from the supervisor's by more than 2 % is not believed (research 1.5)."""

CLOCK_SLACK_S = 0.15
"""What a busy machine may delay the reading of one record by; it weighs on short windows only."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One finished block, read once. Effects and gaps mean something only where `is_measured`.

    `effect` is the cost of A less the cost of B, positive where the variant is cheaper; `wall_effect` the same for wall
    time per sample. `gaps` say how far A's two windows, and B's, disagree: blind to which arm is cheaper.
    """

    spec: BlockSpec
    node: str
    windows: tuple[Window, ...] = ()
    is_measured: bool = False
    effect: float = 0.0
    wall_effect: float = 0.0
    gaps: tuple[float, float] = (0.0, 0.0)
    problem: str = ""
    culprit: Arm | None = None
    fault: WindowOutcome | None = None

    def gap(self, arm: Arm) -> float:
        """How far an arm's two windows disagree."""
        return self.gaps[0] if arm is Arm.BASELINE else self.gaps[1]

    @property
    def widest_gap(self) -> float:
        """The larger of both arms' disagreements."""
        return max(self.gaps)

    def arm_windows(self, arm: Arm) -> tuple[Window, ...]:
        """The windows labelled with an arm."""
        return tuple(window for window in self.windows if window.arm is arm)


@dataclass(frozen=True, slots=True)
class Sifted:
    """Blocks sorted by what they may be used for: `kept` are valid ones and those void through the variant alone."""

    blocks: tuple[Evidence, ...]
    gate: float

    @property
    def measured(self) -> tuple[Evidence, ...]:
        """Blocks with an effect, void or not."""
        return tuple(block for block in self.blocks if block.is_measured)

    @property
    def valid(self) -> tuple[Evidence, ...]:
        """Blocks whose arms each agree with themselves."""
        return tuple(block for block in self.measured if block.widest_gap <= self.gate)

    @property
    def kept(self) -> tuple[Evidence, ...]:
        """Valid blocks and those that only the variant spoilt: a bad launch of its own is a finding, not noise."""
        return tuple(block for block in self.measured if block.gap(Arm.BASELINE) <= self.gate)

    @property
    def void_count(self) -> int:
        """Blocks that do not count."""
        return len(self.blocks) - len(self.valid)

    def spoilt_by(self, arm: Arm) -> int:
        """How often an arm made a block void, by disagreeing with itself or by failing to report."""
        return sum(block.gap(arm) > self.gate if block.is_measured else block.culprit is arm for block in self.blocks)

    def missing_by(self, arm: Arm) -> int:
        """How often an arm failed to report."""
        return sum(not block.is_measured and block.culprit is arm for block in self.blocks)


def sift(blocks: Iterable[Evidence], constants: Constants, reference: Iterable[Evidence] = ()) -> Sifted:
    """Apply the void gate: the wider of its floor and a multiple of the usual within-arm disagreement.

    The gate looks at A against A and B against B only, so that it cannot favour an arm.
    """
    own = tuple(blocks)
    gaps = [block.widest_gap for block in (*reference, *own) if block.is_measured]
    return Sifted(own, void_gate(gaps, constants))


def void_gate(gaps: Sequence[float], constants: Constants) -> float:
    """The largest disagreement of an arm with itself that a block may show, given those that were seen."""
    usual = median(gaps) if gaps else 0.0
    return max(constants.void_gate, constants.void_factor * usual)


def read_block(plan: Plan, record: BlockRecord) -> Evidence:
    """The evidence that a finished block holds."""
    spec, report = record.spec, record.report
    if report is None:
        return Evidence(spec, record.node, problem=record.failure or "no report")
    garbled = _garbled(plan, spec, report)
    if garbled:
        return Evidence(spec, record.node, problem=garbled)
    fault = _find_fault(spec, report, record.failure)
    if fault:
        arm, outcome = fault
        problem = f"{_arm_word(arm)} ended in {outcome}"
        return Evidence(spec, record.node, report.windows, problem=problem, culprit=arm, fault=outcome)
    missing = _find_missing(spec, report)
    if missing:
        return Evidence(spec, record.node, report.windows, problem=missing[1], culprit=missing[0])
    if spec.stage is Stage.PROOF:
        return Evidence(spec, record.node, report.windows)
    costs = _costs(plan, spec, report.windows)
    if isinstance(costs, str):
        return Evidence(spec, record.node, report.windows, problem=costs)
    is_cadence = judged_by(plan.hypothesis) == "cadence"
    wall_costs = costs if is_cadence else tuple(window.wall_cost for window in report.windows)
    return Evidence(
        spec,
        record.node,
        report.windows,
        is_measured=True,
        effect=_difference(spec, costs),
        wall_effect=_difference(spec, wall_costs),
        gaps=(_gap(spec, costs, Arm.BASELINE), _gap(spec, costs, Arm.VARIANT)),
    )


def effect_at(plan: Plan, block: Evidence, rate: float) -> float:
    """The effect that a cadence's block shows at another interruption rate; the block must be measured."""
    costs = cadence.window_costs(plan, block.windows, _window_knobs(plan, block.spec, block.windows), rate)
    assert not isinstance(costs, str), costs
    return _difference(block.spec, costs)


def run_arm(spec: BlockSpec, index: int) -> Arm:
    """The arm whose knobs window `index` ran with; differs from its label in null blocks."""
    return Arm(spec.order[index])


def clock_tolerance_ppk(window: Window) -> float:
    """How far reported and own wall time may differ, in parts per thousand."""
    return max(CLOCK_SHARE_PPK, 1000 * CLOCK_SLACK_S / window.wall_s)


def _garbled(plan: Plan, spec: BlockSpec, report: BlockReport) -> str:
    """Why a report cannot be the one of this block, or nothing."""
    name = plan.run_name(spec)
    if report.run != name and not report.run.startswith(f"{name}-t"):
        return f"report is of run {report.run}, expected {name}"
    if report.state == "error":
        return f"supervisor failed: {report.why}"
    if [window.index for window in report.windows] != list(range(len(report.windows))):
        return "windows are not numbered 0, 1, 2, ..."
    labels = "".join(window.arm for window in report.windows)
    if not spec.labels.startswith(labels):
        return f"windows are labelled {labels}, planned {spec.labels}"
    for arm in Arm:
        devices = {window.devices for window in report.windows if window.arm is arm and window.is_measured}
        if len(devices) > 1:
            return f"{_arm_word(arm)} used {sorted(devices)} devices within one block"
    return ""


def _find_fault(spec: BlockSpec, report: BlockReport, failure: str) -> tuple[Arm, WindowOutcome] | None:
    """An arm that crashed, ran out of memory or hung. Where the baseline failed too, the variant is not to blame."""
    faults = {run_arm(spec, window.index): window.outcome for window in report.windows if window.outcome.is_own_fault}
    killed = report.state == "running" and "oom" in failure.lower()
    if killed and report.running_index is not None and report.running_index < len(spec.order):
        faults.setdefault(run_arm(spec, report.running_index), WindowOutcome.OOM)
    arm = Arm.BASELINE if Arm.BASELINE in faults else Arm.VARIANT
    return (arm, faults[arm]) if faults else None


def _find_missing(spec: BlockSpec, report: BlockReport) -> tuple[Arm | None, str] | None:
    """Whose windows are missing and why: a variant that hides its bad launches must not gain by it.

    A proof is not timed, so a clock that a pause of the machine moved does not spoil it.
    """
    if report.state == "running":
        index = report.running_index
        known = index is not None and index < len(spec.order)
        return (run_arm(spec, index) if known and index is not None else None), "the block was cut short"
    is_timed = spec.stage is not Stage.PROOF
    absent = [window for window in report.windows if not window.is_measured or (is_timed and _is_late(window))]
    if absent:
        arms = {run_arm(spec, w.index) for w in absent if w.outcome is not WindowOutcome.SIGNAL}
        what = "clock disagrees" if absent[0].is_measured else str(absent[0].outcome)
        return (arms.pop() if len(arms) == 1 else None), f"window {absent[0].arm}{absent[0].index}: {what}"
    if len(report.windows) != len(spec.order):
        return None, f"{len(report.windows)} of {len(spec.order)} windows"
    return None


def _is_late(window: Window) -> bool:
    """A single window whose clock disagrees is no evidence of time; an arm that always does so is vetoed (meter)."""
    return abs(window.clock_ppk) > clock_tolerance_ppk(window)


def _costs(plan: Plan, spec: BlockSpec, windows: tuple[Window, ...]) -> tuple[float, ...] | str:
    if judged_by(plan.hypothesis) == "cadence":
        knobs = _window_knobs(plan, spec, windows)
        costs = cadence.window_costs(plan, windows, knobs, cadence.planned_rate(plan).expected)
        if isinstance(costs, str):
            return costs
    elif plan.objective is Objective.DEVICE_HOURS:
        costs = tuple(window.device_cost for window in windows)
    else:
        costs = tuple(window.wall_cost for window in windows)
    return costs if all(math.isfinite(cost) for cost in costs) else "a cost is not finite"


def _window_knobs(plan: Plan, spec: BlockSpec, windows: Sequence[Window]) -> list[Knobs]:
    return [arm_knobs(plan, run_arm(spec, window.index)) for window in windows]


def _difference(spec: BlockSpec, costs: Sequence[float]) -> float:
    return mean(_arm_costs(spec, costs, Arm.BASELINE)) - mean(_arm_costs(spec, costs, Arm.VARIANT))


def _gap(spec: BlockSpec, costs: Sequence[float], arm: Arm) -> float:
    own = _arm_costs(spec, costs, arm)
    return max(own) - min(own)


def _arm_costs(spec: BlockSpec, costs: Sequence[float], arm: Arm) -> list[float]:
    return [cost for cost, label in zip(costs, spec.labels, strict=True) if label == arm]


def _arm_word(arm: Arm) -> str:
    return "the baseline" if arm is Arm.BASELINE else "the variant"

"""What ends a win alone, however many votes it has?

`work` and `meter` are looked at in every block before any statistics. `soak` and `null` have blocks of their own.
`harm`, `cost` and `quality` read the blocks that are there. A veto that is silent names the proof it used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amdahl_loop.domain import cadence
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.evidence import Evidence, Sifted, clock_tolerance_ppk, run_arm
from amdahl_loop.domain.experiments import Plan, arm_knobs
from amdahl_loop.domain.hypotheses import judged_by
from amdahl_loop.domain.stats import Estimate, mean, pair_sd
from amdahl_loop.domain.telemetry import Arm, Window
from amdahl_loop.domain.verdicts import Veto, VetoName

WORK_TOLERANCE = 0.02
"""Relative difference between arms that needs no explanation."""

WORK_LIMIT = 0.10
"""Above this no spread within an arm excuses a difference."""

REPEATED_BATCHES = 0.05
"""The variant may show this share fewer distinct batches: more means the same data again."""

QUIET_EXCESS = 1.25
"""Quiet steps cannot take longer than all steps; a quarter is left for windows with few quiet ones."""

MEMORY_LIMIT_SHARE = 0.90
MEMORY_FACTOR = 2.0
MEMORY_SLACK_MIB = 4096
"""Without a known limit: twice the memory and 4 GiB more. Loader workers alone cost a few hundred MiB each."""

SOAK_FIRST_ALPHA = 0.01
SOAK_PASS_ALPHA = 0.10
SOAK_FAIL_ALPHA = 0.02
"""One block passes only where it is very clear, and never fails: a neighbour may have come."""

NULL_LEVEL = 0.95
NULL_EARLY_LEVEL = 0.999
NULL_EARLY_BLOCKS = 4
"""A veto before the last null block needs more than the final one: it is looked at after every block."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """A guard that could not be read, and why: never a win."""

    reason: str
    sentence: str


def check_block(block: Evidence) -> Veto | None:
    """The loud veto of one block, looked at before any statistics: equal work, honest clocks, losses still reported."""
    if block.spec.stage is Stage.PROOF:
        return None
    for name, find in _BLOCK_GUARDS.items():
        found = find(block)
        if found:
            return loud(name, f"{found} (block {block.spec.name})")
    return None


def judge_memory(plan: Plan, blocks: Sequence[Evidence]) -> Veto:
    """Harm: the variant's peak memory against the limit, or against the baseline where no limit is known."""
    peaks = {arm: max((w.peak_mem_mib for b in blocks for w in b.arm_windows(arm)), default=0) for arm in Arm}
    baseline, variant = peaks[Arm.BASELINE], peaks[Arm.VARIANT]
    limit = plan.mem_limit_mib
    sentence = f"peak memory {variant} MiB, baseline {baseline} MiB" + (f", limit {limit} MiB" if limit else "")
    if limit:
        is_harmful = variant > MEMORY_LIMIT_SHARE * limit and variant > baseline
    else:
        is_harmful = variant > MEMORY_FACTOR * baseline and variant - baseline > MEMORY_SLACK_MIB
    return Veto(name=VetoName.HARM, silent=not is_harmful, sentence=sentence)


def judge_lost_work(plan: Plan, blocks: Sequence[Evidence]) -> Veto | None:
    """Harm: a cadence at which one interruption costs more work than the owner can bear; None for other knobs."""
    if judged_by(plan.hypothesis) != "cadence":
        return None
    knobs = arm_knobs(plan, Arm.VARIANT)
    windows = [w for block in blocks for w in block.arm_windows(Arm.VARIANT) if w.is_measured]
    worst_s = max((cadence.lost_work_s(window, knobs) for window in windows), default=math.inf)
    sentence = f"one interruption costs up to {worst_s:.0f} s of work, {plan.max_lost_work_s:.0f} s are allowed"
    return Veto(name=VetoName.HARM, silent=worst_s <= plan.max_lost_work_s, sentence=sentence)


def judge_cost(plan: Plan, effect: float, wall_effect: float) -> Veto:
    """Cost: the price in wall time, and a restart that costs more than the win can still bring."""
    slowdown = math.exp(-wall_effect)
    saved_h = -math.expm1(-effect) * plan.device_hours_ahead
    restart_h = plan.restart_s * max(1, plan.variant.gpus_per_replica or 1) * plan.replicas / 3600
    sentence = (
        f"wall time per sample x {slowdown:.3f} (allowed {plan.max_slowdown:g}); "
        f"saves {saved_h:.3g} device-hours ahead, a restart costs {restart_h:.2g}"
    )
    silent = slowdown <= plan.max_slowdown and saved_h > restart_h
    return Veto(name=VetoName.COST, silent=silent, sentence=sentence)


def judge_soak(
    blocks: Sifted, planned: int, claim: float, spread: tuple[float, int], constants: Constants
) -> Veto | Unclear | None:
    """Soak: after a long warm-up the variant must still show a share of the claim. None asks for another block.

    It stops early where the outcome is clear at the larger of the pooled spread and the soak's own: its windows lie
    further apart, so more drift lies between them. A variant that spoils soak blocks is found by its unsteadiness.
    """
    effects = [block.effect for block in blocks.valid]
    is_last = len(blocks.blocks) >= planned
    if is_last and not effects:
        effects = [block.effect for block in blocks.measured]
    if not effects:
        return Unclear("no_soak", "no soak block could be measured") if is_last else None
    own_sd = pair_sd([block.gap(arm) for block in blocks.measured for arm in Arm])
    bar, found = constants.soak_share * claim, _estimate(effects, (max(spread[0], own_sd), spread[1]))
    sentence = f"soak found {found.mean:+.3f} over {len(effects)} blocks, {bar:.3f} is needed"
    is_first = len(effects) == 1 and not is_last
    if found.lower(SOAK_FIRST_ALPHA if is_first else SOAK_PASS_ALPHA) >= bar or (is_last and found.mean >= bar):
        return Veto(name=VetoName.SOAK, silent=True, sentence=sentence)
    if is_last or (not is_first and found.upper(SOAK_FAIL_ALPHA) < bar):
        return loud(VetoName.SOAK, sentence)
    return None


def judge_null(
    blocks: Sifted, planned: int, claim: float, floor: float, spread: tuple[float, int]
) -> Veto | Unclear | None:
    """Null: baseline against baseline through the same harness. None asks for another block.

    Silent when the 95 % interval keeps a flattering bias below half the claim; loud when the bias itself is too large;
    unclear when the blocks are used up and neither can be said.
    """
    effects = [block.effect for block in blocks.valid]
    is_last = len(blocks.blocks) >= planned
    if is_last and not effects:
        effects = [block.effect for block in blocks.measured]
    if not effects:
        return Unclear("no_null", "no null block could be measured") if is_last else None
    bias = _estimate(effects, spread)
    low, high = bias.interval(NULL_LEVEL)
    sentence = (
        f"baseline against itself: {bias.mean:+.3f} [{low:+.3f}, {high:+.3f}] over {len(effects)} blocks, "
        f"half the claim is {claim / 2:.3f}"
    )
    bar = max(floor / 2, claim / 4)
    level = NULL_LEVEL if is_last else NULL_EARLY_LEVEL
    may_veto = is_last or len(effects) >= NULL_EARLY_BLOCKS
    if may_veto and abs(bias.mean) > bar and _excludes_zero(bias.interval(level)):
        return loud(VetoName.NULL, sentence)
    if high < claim / 2 and abs(bias.mean) <= bar:
        return Veto(name=VetoName.NULL, silent=True, sentence=sentence)
    if not is_last:
        return None
    if high < claim / 2:
        return Veto(name=VetoName.NULL, silent=True, sentence=sentence)
    return Unclear("null_wide", f"harness bias is not bounded below half the claim; {sentence}")


def describe_meter(blocks: Sequence[Evidence]) -> Veto:
    """The silent meter: how far clocks differed at most. A lying one has ended the experiment before."""
    off = max((abs(w.clock_ppk) for block in blocks for w in block.windows if w.is_measured), default=0)
    sentence = f"clocks within {off} per thousand of the supervisor's, counts agree, in {len(blocks)} blocks"
    return Veto(name=VetoName.METER, silent=True, sentence=sentence)


def loud(name: VetoName, sentence: str) -> Veto:
    """A veto that speaks."""
    return Veto(name=name, silent=False, sentence=sentence[:300])


def _estimate(effects: Sequence[float], spread: tuple[float, int]) -> Estimate:
    sd, df = spread
    return Estimate(mean(effects), sd / math.sqrt(len(effects)), df)


def _excludes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _find_unequal_work(block: Evidence) -> str:
    """Less or other work per sample or step; only windows that were measured can be compared."""
    baseline, variant = (_measured(block, arm) for arm in Arm)
    if not baseline or not variant:
        return ""
    one_batch = 1.5 / min(w.steps for w in (*baseline, *variant))
    unequal = [
        _find_difference(
            "samples a step", [w.samples_per_step for w in baseline], [w.samples_per_step for w in variant], one_batch
        ),
        _find_difference("elements a sample", _elements(baseline), _elements(variant), 0.0),
        _find_other_shape(baseline, variant),
        _find_repeats(baseline, variant),
    ]
    return next((text for text in unequal if text), "")


def _find_difference(what: str, baseline: Sequence[float], variant: Sequence[float], slack: float) -> str:
    """A difference of means that neither the tolerance nor the spread within an arm explains.

    `slack` is one short batch at the end of an epoch, which any window may meet.
    """
    if not baseline and not variant:
        return ""
    if not baseline or not variant or mean(baseline) <= 0:
        return f"{what} are reported by one arm only"
    scale = mean(baseline)
    spread = max(max(values) - min(values) for values in (baseline, variant)) / scale
    allowed = max(WORK_TOLERANCE, slack, min(WORK_LIMIT, 3 * spread))
    off = abs(mean(variant) - scale) / scale
    return f"{what}: variant {mean(variant):.4g}, baseline {scale:.4g}" if off > allowed else ""


def _find_other_shape(baseline: Sequence[Window], variant: Sequence[Window]) -> str:
    """Batches of another shape: said only where each arm agrees with itself, since lengths may vary by data."""
    first, second = ({w.shape for w in windows} for windows in (baseline, variant))
    differs = len(first) == len(second) == 1 and first != second
    return f"batch shapes differ: variant {next(iter(second))}, baseline {next(iter(first))}" if differs else ""


def _find_repeats(baseline: Sequence[Window], variant: Sequence[Window]) -> str:
    first, second = ([w.distinct_ppk / 1000 for w in ws if w.distinct_ppk is not None] for ws in (baseline, variant))
    if not first:
        return ""
    if not second:
        return "the variant does not report distinct batches"
    spread = max(max(values) - min(values) for values in (first, second))
    is_repeating = mean(first) - mean(second) > max(REPEATED_BATCHES, min(WORK_LIMIT, 3 * spread))
    return f"distinct batches: variant {mean(second):.2f}, baseline {mean(first):.2f}" if is_repeating else ""


def _find_lying_meter(block: Evidence) -> str:
    """A clock or a counter that contradicts the supervisor's, in either arm.

    A lie shows in every window and in one direction; a single window that is off was read late, and is void.
    """
    for arm in Arm:
        windows = _measured(block, arm)
        if not windows:
            continue
        offs = [window.clock_ppk for window in windows]
        is_lying = all(abs(window.clock_ppk) > clock_tolerance_ppk(window) for window in windows)
        if is_lying and (min(offs) > 0 or max(offs) < 0):
            return f"arm {arm} reports wall time off by {mean(offs):+.0f} per thousand in every window"
        for window in windows:
            if window.quiet_step_s and window.quiet_step_s * window.steps > QUIET_EXCESS * window.wall_s:
                quiet_s = window.quiet_step_s * window.steps
                return f"arm {arm} reports {quiet_s:.2f} s of quiet steps within {window.wall_s:.2f} s"
    return ""


def _find_hidden_losses(block: Evidence) -> str:
    baseline, variant = (_measured(block, arm) for arm in Arm)
    if not variant or not baseline or block.spec.stage is Stage.NULL:
        return ""
    hidden = all(w.loss_mean is not None for w in baseline) and any(w.loss_mean is None for w in variant)
    return "the variant reports no losses where the baseline does" if hidden else ""


def _measured(block: Evidence, arm: Arm) -> tuple[Window, ...]:
    """Measured windows of an arm that is really the one it is labelled as (or of null labels, where both are equal)."""
    return tuple(
        w
        for w in block.arm_windows(arm)
        if w.is_measured and (block.spec.stage is Stage.NULL or run_arm(block.spec, w.index) is arm)
    )


def _elements(windows: Sequence[Window]) -> list[float]:
    return [w.elements_per_sample for w in windows if w.elements_per_sample is not None]


_BLOCK_GUARDS: dict[VetoName, Callable[[Evidence], str]] = {
    VetoName.METER: _find_lying_meter,
    VetoName.WORK: _find_unequal_work,
    VetoName.QUALITY: _find_hidden_losses,
}

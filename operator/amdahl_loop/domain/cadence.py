"""How often should a job save, and what does a cadence really cost?

Raw speed always prefers "never save". A cadence is therefore judged by the expected time per *useful* step: quiet
steps, what a save costs, and the work lost to interruptions. Sources: Young 1974; Daly 2006 (higher-order term, and the
exact cost under exponential interruptions). With asynchronous saves the time until a save is durable is lost as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.runs import measuring_cadence
from amdahl_loop.domain.stats import gamma_quantile
from amdahl_loop.domain.telemetry import Arm, Window
from amdahl_loop.domain.tuning import Objective

PRIOR_INTERRUPTIONS = 2
"""Weight of the owner's prior, in interruptions: its 90 % interval spans 0.18 to 2.4 times the stated rate."""

MIN_SAVES_PER_ARM = 3
"""Fewer saves measure nothing: the block is void (design, section 8)."""

IGNORED_SHARE = 0.25
"""Saves may be off by one a window (its edges), or by this share of those asked for; beyond it the script disobeys."""

FLAT_FACTOR = 2.0
"""Within twice the optimum a cadence costs nearly the same: not worth an experiment."""


@dataclass(frozen=True, slots=True)
class InterruptionRate:
    """Belief about interruptions per second: posterior mean and the ends of its 90 % interval."""

    low: float
    expected: float
    high: float


def interruption_rate(interval_s: float, seen: int, exposure_s: float) -> InterruptionRate:
    """Gamma posterior: the owner's interval counts as two interruptions, observation is added to it.

    Zero seen interruptions never mean "never": they only stretch the exposure.
    """
    shape, exposure = PRIOR_INTERRUPTIONS + seen, PRIOR_INTERRUPTIONS * interval_s + exposure_s
    return InterruptionRate(
        low=gamma_quantile(0.05, shape, exposure),
        expected=shape / exposure,
        high=gamma_quantile(0.95, shape, exposure),
    )


def planned_rate(plan: Plan) -> InterruptionRate:
    """The belief that was fixed when the plan was written."""
    return interruption_rate(plan.interruption_interval_s, plan.interruptions_seen, plan.exposure_s)


def optimal_interval_s(save_s: float, interval_s: float) -> float:
    """Daly's higher-order estimate of the best useful work between saves, given the cost of one save."""
    if save_s >= 2 * interval_s:
        return interval_s
    ratio = save_s / (2 * interval_s)
    return math.sqrt(2 * save_s * interval_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def log_cost_per_step(
    every_steps: float, step_s: float, save_s: float, persist_s: float, restart_s: float, rate: float
) -> float:
    """Log of expected seconds per useful step, exact for exponential interruptions at `rate` per second.

    E = exp(rate (R + P)) (exp(rate L) - 1) / (rate k), with L = k step + save the stretch between saves, R the restart
    and P the time until a save is durable, which is lost as well. Logarithms keep absurd cadences finite.
    """
    stretch = rate * (every_steps * step_s + save_s)
    growth = stretch + math.log1p(-math.exp(-stretch))
    return rate * (restart_s + persist_s) + growth - math.log(rate * every_steps)


def propose_cadence(
    current: int,
    step_s: float,
    save_s: float,
    persist_s: float,
    interval_s: float,
    max_lost_work_s: float,
    min_steps: int = 1,
    max_steps: int = 10_000_000,
) -> int | None:
    """Steps between saves worth trying, or None where the current cadence is within twice the best one.

    `save_s` is everything one save adds to the training time; `persist_s` the time until it is durable (0 when
    synchronous): saving faster than that is impossible, and it counts as lost work. The owner's bounds win.
    """
    most = min(max_steps, int((max_lost_work_s - persist_s) / step_s))
    if most < min_steps:
        return None
    wanted = max(round(optimal_interval_s(save_s, interval_s) / step_s), math.ceil(persist_s / step_s), min_steps, 1)
    best = min(wanted, most)
    if current <= most and best / FLAT_FACTOR <= current <= best * FLAT_FACTOR:
        return None
    return None if best == current else best


def window_costs(plan: Plan, windows: Sequence[Window], knobs: Sequence[Knobs], rate: float) -> tuple[float, ...] | str:
    """Log of expected cost per useful sample of each window at its arm's own cadence, or why it cannot be had.

    Quiet steps are the window's own; what a save costs is pooled over the arm's windows, because a window holds few.
    """
    save_s: dict[Arm, float] = {}
    for arm in Arm:
        own = [window for window in windows if window.arm is arm]
        saves = sum(window.saves.count for window in own)
        if saves < MIN_SAVES_PER_ARM:
            return f"arm {arm} saved {saves} times, {MIN_SAVES_PER_ARM} are needed to know what a save costs"
        if any(window.quiet_step_s is None or window.quiet_step_s <= 0 for window in own):
            return f"arm {arm} has no quiet steps between saves"
        save_s[arm] = _save_cost_s(own, saves)
    return tuple(
        _window_cost(plan, window, settings, save_s[window.arm], rate)
        for window, settings in zip(windows, knobs, strict=True)
    )


def find_ignored(plan: Plan, windows: Sequence[Window], run_as: Sequence[Arm]) -> str:
    """Why the script does not save as it is asked to, or nothing; else a cadence would be priced that nobody keeps."""
    if not any(change.knob is KnobName.CHECKPOINT_EVERY_STEPS for change in plan.hypothesis.changes):
        return ""
    for arm in Arm:
        own = [w for w, ran in zip(windows, run_as, strict=False) if ran is arm and w.is_measured]
        steps, saves = sum(w.steps for w in own), sum(w.saves.count for w in own)
        asked = measuring_cadence(plan, arm)
        if abs(saves - steps / asked) > max(len(own), IGNORED_SHARE * steps / asked):
            return f"asked to save every {asked} steps, the script saved {saves} times in {steps}: it ignores the knob"
    return ""


def lost_work_s(window: Window, knobs: Knobs) -> float:
    """Most work that one interruption can cost under these settings, at the window's pace."""
    return _every_steps(window, knobs) * (window.quiet_step_s or 0.0) + _persist_s(window, knobs)


def _window_cost(plan: Plan, window: Window, knobs: Knobs, save_s: float, rate: float) -> float:
    per_step = log_cost_per_step(
        every_steps=_every_steps(window, knobs),
        step_s=window.quiet_step_s or 0.0,
        save_s=save_s,
        persist_s=_persist_s(window, knobs),
        restart_s=plan.restart_s,
        rate=rate,
    )
    devices = window.devices if plan.objective is Objective.DEVICE_HOURS else 1
    return per_step + math.log(devices) - math.log(window.samples_per_step)


def _save_cost_s(windows: Sequence[Window], saves: int) -> float:
    """Seconds that one save adds: all time above quiet steps (so interference counts), never less than the blocking."""
    blocked_s = math.fsum(window.saves.count * window.saves.block_s for window in windows)
    excess_s = math.fsum(window.wall_s - window.steps * (window.quiet_step_s or 0.0) for window in windows)
    return max(blocked_s, excess_s) / saves


def _every_steps(window: Window, knobs: Knobs) -> float:
    """The arm's cadence; where the job leaves it to its script, the measured one."""
    return float(knobs.checkpoint_every_steps or window.steps / max(1, window.saves.count))


def _persist_s(window: Window, knobs: Knobs) -> float:
    """Time until an asynchronous save is durable, bounded by the time between saves: they do not overlap."""
    return window.wall_s / max(1, window.saves.count) if knobs.async_checkpoint else 0.0

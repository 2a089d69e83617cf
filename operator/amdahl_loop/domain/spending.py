"""Does an experiment repay its cost?

The spend gate: device-hours ahead x expected gain x hit rate, less what the trial is expected to hold. An experiment
starts only if that is positive, and the sentence says where every number came from (design, section 7).
"""

from collections.abc import Iterable

from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.hypotheses import Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.knobs import CATALOGUE
from amdahl_loop.domain.ledger import JobMemory, Outcomes
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.tuning import Placement
from amdahl_loop.domain.units import percent
from amdahl_loop.domain.values import Frozen

DEFAULT_HIT_RATE = 0.5
"""Prior chance that a rule's hypothesis wins: one imagined win in two, corrected by the ledger."""
BLOCKS_OF_A_NULL = 4
"""A hypothesis without gain is expected to close at the first look."""
COMPILE_S = 60.0
"""What a launch that compiles is expected to take longer; half of a block's launches do."""
HANDOVER_S = 30.0
"""A job that makes way for a block ends within its pods' grace period, and the block's pods have to start."""


class Worth(Frozen):
    """What an experiment is expected to bring: device-hours credited less device-hours spent."""

    hypothesis: Hypothesis
    expected_bank_h: float
    trial_h: float
    sentence: str


def weigh(
    hypotheses: Iterable[Hypothesis],
    breakdown: Breakdown,
    job: TrainingJob,
    constants: Constants,
    memory: JobMemory,
) -> tuple[Worth, ...]:
    """The spend gate's arithmetic for each hypothesis, most expected bank first, past wins before all others."""
    worths = [
        _weigh_one(hypothesis, breakdown, job, constants, hit_rate(hypothesis.knob, memory.outcomes))
        for hypothesis in hypotheses
    ]
    return tuple(sorted(worths, key=lambda w: (w.hypothesis.source is not Source.PRIOR, -w.expected_bank_h)))


def _weigh_one(
    hypothesis: Hypothesis, breakdown: Breakdown, job: TrainingJob, constants: Constants, rate: float
) -> Worth:
    ahead_h, origin = job.expected_device_hours
    is_in_turn = job.spec.tuning.trial.placement is Placement.IN_TURN
    won_h, null_h = trial_device_hours(hypothesis, breakdown, constants, is_in_turn)
    trial_h = rate * won_h + (1 - rate) * null_h
    bank_h = ahead_h * hypothesis.expected_gain * rate - trial_h
    return Worth(
        hypothesis=hypothesis,
        expected_bank_h=bank_h,
        trial_h=trial_h,
        sentence=(
            f"{'; '.join(str(change) for change in hypothesis.changes)}: {ahead_h:g} device-hours ahead ({origin}) "
            f"x {percent(hypothesis.expected_gain)} gain x {percent(rate)} hit rate - {trial_h:.2g} for the trial "
            f"= {bank_h:.2g} device-hours"
        ),
    )


def hit_rate(knob: KnobName, outcomes: Outcomes) -> float:
    """Share of closed experiments on this knob that won, with one imagined win in two trials as prior."""
    won, lost = outcomes.get((knob, True), 0), outcomes.get((knob, False), 0)
    return (2 * DEFAULT_HIT_RATE + won) / (2 + won + lost)


def trial_device_hours(
    hypothesis: Hypothesis, breakdown: Breakdown, constants: Constants, is_in_turn: bool = False
) -> tuple[float, float]:
    """Device-hours of an experiment that wins, and of one that closes at the first look.

    `is_in_turn`: the job stands still for each block, and starts again after it.
    """
    live = breakdown.live and all(CATALOGUE[change.knob].is_live for change in hypothesis.changes)
    compiles = any(change.knob is KnobName.COMPILE and change.after for change in hypothesis.changes)
    step_s, launch_s = breakdown.step_s, breakdown.startup_s + (COMPILE_S / 2 if compiles else 0.0)
    window_s = max(constants.window_s, constants.min_steps * step_s)
    if live:
        block_s = launch_s + constants.launch_warmup_s + 3 * constants.switch_warmup_s + 4 * window_s
    else:
        block_s = 4 * (launch_s + constants.launch_warmup_s + window_s)
    soak_s = constants.soak_blocks * 4 * (launch_s + constants.soak_warmup_s + constants.soak_window_s)
    proof_s = 2 * (launch_s + constants.proof_steps * step_s)
    checking = constants.checks * constants.blocks_per_check + constants.null_blocks
    processes = [int(c.after) for c in hypothesis.changes if c.knob is KnobName.GPUS_PER_REPLICA]
    devices = max(breakdown.devices, *processes, 1)
    turn_s = launch_s + HANDOVER_S if is_in_turn else 0.0
    null_s = proof_s + turn_s + BLOCKS_OF_A_NULL * (block_s + turn_s)
    won_s = null_s + checking * (block_s + turn_s) + soak_s + constants.soak_blocks * turn_s
    return devices * won_s / 3600, devices * null_s / 3600

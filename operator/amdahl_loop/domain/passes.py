"""What could other passes through the model win, at most?

A step takes a rank's samples in passes, forward and backward. A bound holds whatever the program is like: it follows
from what was measured and from what cannot be otherwise, and what no number of ours bounds more tightly is bounded by
its whole phase, as Amdahl's law has it. What is believed beside it (how long issuing a pass takes, how long a forward
pass is) estimates a gain, and bounds none.
"""

from amdahl_loop.domain.knob_values import ActivationCheckpointing, DataParallel, KnobName
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.units import percent

ISSUING_S = 0.02
"""What a pass is believed to spend on issuing its kernels: some thousands of launches at 5 to 10 us each in an eager
model of tens of blocks. A device that computes no longer than that waits for Python (research, trainer 4.2)."""

AGAIN_SHARE = 0.25
"""Block checkpointing runs the forward pass twice: of forward, forward again and a backward pass that is believed to be
as long as two forwards, a quarter is done again. The selective kind does part of it again."""

MOST_AGAIN_SHARE = 0.5
"""What is done again was done once before: more than half of all computing it cannot be, however short the rest is."""


def samples_per_rank(breakdown: Breakdown) -> int:
    """Samples of a step that each rank takes, in however many passes."""
    return max(1, round(breakdown.samples_per_s * breakdown.step_s / breakdown.devices))


def passes_per_step(breakdown: Breakdown) -> float:
    """Passes of a step; one where the job leaves their size to its program."""
    return max(1.0, samples_per_rank(breakdown) / (breakdown.knobs.micro_batch or samples_per_rank(breakdown)))


def issuing_share(breakdown: Breakdown) -> float:
    """Share of a pass that issuing its kernels is believed to take: 1 for short passes, hardly any for long ones."""
    pass_s = breakdown.step_s * breakdown.shares[Phase.COMPUTE] / passes_per_step(breakdown)
    return min(1.0, ISSUING_S / max(pass_s, 1e-9))


def bound(knob: KnobName, breakdown: Breakdown) -> tuple[float, str] | None:
    """Share of the cost that a knob of the step could remove at most, and why; None for knobs of other phases."""
    match knob:
        case KnobName.MICRO_BATCH:
            return _fewer_passes(breakdown)
        case KnobName.COMPILE:
            return _compiled(breakdown)
        case KnobName.ACTIVATION_CHECKPOINTING:
            return _computed_once(breakdown)
        case KnobName.BUCKET_MB:
            is_reduced = breakdown.devices > 1 and breakdown.knobs.data_parallel is not DataParallel.FSDP
            return _sent(breakdown, is_reduced, "no gradients are reduced in buckets")
        case KnobName.DATA_PARALLEL:
            is_sharded = breakdown.devices > 1 and breakdown.knobs.data_parallel is DataParallel.FSDP
            return _sent(breakdown, is_sharded, "parameters are whole already")
    return None


def _fewer_passes(breakdown: Breakdown) -> tuple[float, str]:
    """One pass instead of many: it takes no less time than each of these, which have fewer samples.

    What ranks send each other in every pass (pieces of the model, rows of matrices) is sent fewer times, too.
    """
    passes = passes_per_step(breakdown)
    share = breakdown.shares[Phase.COMPUTE] + breakdown.shares[Phase.COMM]
    pass_ms = 1000 * breakdown.step_s * share / passes
    return share * (1 - 1 / passes), f"{passes:g} passes of {pass_ms:.0f} ms; one cannot take less than a shorter one"


def _compiled(breakdown: Breakdown) -> tuple[float, str]:
    """Fusing kernels can remove no more than the phase; nothing that is measured says how much of it is arithmetic."""
    if breakdown.knobs.compile:
        return 0.0, "compiled already"
    share = breakdown.shares[Phase.COMPUTE]
    return share, f"compute is {percent(share, 1)}; how much of it is overhead, only a trial shows"


def _computed_once(breakdown: Breakdown) -> tuple[float, str]:
    mode = breakdown.knobs.activation_checkpointing
    if mode in (None, ActivationCheckpointing.NONE):
        return 0.0, "nothing is computed again"
    share = MOST_AGAIN_SHARE * breakdown.shares[Phase.COMPUTE]
    return share, f"{mode} computes up to {percent(share, 1)} of the step again"


def _sent(breakdown: Breakdown, applies: bool, otherwise: str) -> tuple[float, str]:
    """What ranks wait for is `comm`; what issuing and copying their messages takes is within `compute`.

    A small model on two CPUs took half of its computing for being held in pieces, beside what it waited.
    """
    if not applies:
        return 0.0, otherwise
    waiting, computing = breakdown.shares[Phase.COMM], breakdown.shares[Phase.COMPUTE]
    return waiting + computing, f"comm is {percent(waiting, 1)}; what messages cost beside waiting is within compute"

"""Which knobs of the step itself are worth trying: passes, compiling, recomputing, gradient messages, sharding?

Rules for programs that take these knobs; a job that declares none of them gets no idea from here. Expected gains are a
part of the bounds in `passes.py`, and the part is a belief with its source beside it: trials correct it, and the hit
rate of each knob in the ledger weighs it.
"""

from amdahl_loop.domain.diagnosis import NOTABLE_SHARE, is_cpu_job
from amdahl_loop.domain.hypotheses import Change, Hypothesis, by_rule
from amdahl_loop.domain.knob_values import ActivationCheckpointing, DataParallel, KnobName
from amdahl_loop.domain.knobs import is_tunable, legal_range, make_change
from amdahl_loop.domain.passes import (
    AGAIN_SHARE,
    bound,
    issuing_share,
    passes_per_step,
    samples_per_rank,
)
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.units import percent

BELIEVED_PART = 0.5
"""Part of a bound that is expected where nothing says more: as likely less as more."""

LARGEST_GROWTH = 8
"""A pass grows by so much in one experiment: it leaves an eighth of what could be won, and less memory to chance."""

FUSION_GAIN = 0.13
"""What compiling saved where passes are long: an 8B model, 5,762 to 6,667 tokens/s (torchtitan; trainer research)."""

SELECTIVE_PART = 0.25
"""Part of the forward pass that selective checkpointing does again: everything but products of matrices."""

USUAL_BUCKET_MB = 25
"""PyTorch's own size of a bucket: less than that is proposed for nobody."""

SHARDED_PART = 1 / 3
"""Sharded parameters are gathered twice and gradients scattered once: three volumes of the model instead of an
all-reduce's two (Rajbhandari et al. 2020, section 7)."""

MEMORY_SHARE = 0.9
"""Part of a memory limit that a variant may be expected to reach; beyond it the trial would only show what is known."""


def propose_step(breakdown: Breakdown, job: TrainingJob) -> tuple[Hypothesis, ...]:
    """Every hypothesis about the step itself that may repay a trial."""
    found = (
        *_larger_passes(breakdown, job),
        *_compile(breakdown, job),
        *_compute_once(breakdown, job),
        *_larger_messages(breakdown, job),
        *_whole_parameters(breakdown, job),
    )
    return tuple(hypothesis for hypothesis in found if hypothesis.expected_gain >= NOTABLE_SHARE)


def _larger_passes(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Fewer, larger passes where many short ones are issued; with block checkpointing where memory is short."""
    knob, now = KnobName.MICRO_BATCH, job.spec.knobs.micro_batch
    if now is None or not is_tunable(job, knob):
        return []
    target = _next_size(breakdown, job, now)
    if target is None:
        return []
    changes, again = [make_change(job, knob, target)], 0.0
    if not _is_room(breakdown, job, target / now):
        shrink = _shrink_activations(job)
        if shrink is None:
            return []
        changes, again = [*changes, shrink], AGAIN_SHARE / (1 - AGAIN_SHARE)
    computing, issuing = breakdown.shares[Phase.COMPUTE], BELIEVED_PART * issuing_share(breakdown)
    gain = computing * (issuing * (1 - now / target) - again * (1 - issuing))
    passes = passes_per_step(breakdown)
    pass_ms = 1000 * breakdown.step_s * computing / passes
    why = f"{passes:g} passes of {pass_ms:.0f} ms a step: some {percent(issuing)} of one may be spent on issuing it."
    return by_rule(changes, Phase.COMPUTE, gain, why)


def _next_size(breakdown: Breakdown, job: TrainingJob, now: int) -> int | None:
    """The largest size that divides a rank's samples, is allowed, and is not out of all proportion."""
    share = samples_per_rank(breakdown)
    least, most = legal_range(job, KnobName.MICRO_BATCH, breakdown.cpus)
    sizes = range(max(now + 1, least), min(share, most, LARGEST_GROWTH * now) + 1)
    return max((size for size in sizes if share % size == 0), default=None)


def _shrink_activations(job: TrainingJob) -> Change | None:
    """Block checkpointing, where the job declares the knob and keeps its activations."""
    knob = KnobName.ACTIVATION_CHECKPOINTING
    if not is_tunable(job, knob) or job.spec.knobs.activation_checkpointing is not ActivationCheckpointing.NONE:
        return None
    return make_change(job, knob, ActivationCheckpointing.BLOCK.value)


def _compile(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Fused kernels: fewer to issue where passes are short, less to read and write where they are long."""
    knob = KnobName.COMPILE
    if job.spec.knobs.compile is not False or not is_tunable(job, knob):
        return []
    computing, issuing = breakdown.shares[Phase.COMPUTE], BELIEVED_PART * issuing_share(breakdown)
    gain = computing * max(FUSION_GAIN, issuing)
    why = f"{percent(computing)} of the step computes; some {percent(issuing)} of a pass may be spent on issuing it."
    return by_rule([make_change(job, knob, after=True)], Phase.COMPUTE, gain, why)


def _compute_once(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Keep what is computed again, unless memory is known to be short. A variant that runs out of memory loses."""
    knob, mode = KnobName.ACTIVATION_CHECKPOINTING, job.spec.knobs.activation_checkpointing
    after, is_room = ActivationCheckpointing.NONE.value, _is_room(breakdown, job, 1 / BELIEVED_PART)
    if mode in (None, ActivationCheckpointing.NONE) or not is_tunable(job, knob) or not is_room:
        return []
    again = AGAIN_SHARE * (1.0 if mode is ActivationCheckpointing.BLOCK else SELECTIVE_PART)
    gain = again * breakdown.shares[Phase.COMPUTE]
    why = f"{mode} is believed to compute {percent(gain)} of the step again."
    return by_rule([make_change(job, knob, after)], Phase.COMPUTE, gain, f"{why[0].upper()}{why[1:]}")


def _larger_messages(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Fewer messages, each of which pays the way once, where ranks wait for them."""
    knob, now = KnobName.BUCKET_MB, job.spec.knobs.bucket_mb
    waiting = _waiting(knob, breakdown)
    if now is None or not is_tunable(job, knob):
        return []
    _, most = legal_range(job, knob, breakdown.cpus)
    target = min(most, max(USUAL_BUCKET_MB, 4 * now))
    if target <= now:
        return []
    gain = BELIEVED_PART * waiting * (1 - now / target)
    why = f"{percent(waiting)} of the step waits for gradients in messages of {now} MiB."
    return by_rule([make_change(job, knob, target)], Phase.COMM, gain, why)


def _whole_parameters(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Whole parameters instead of pieces, where ranks wait for pieces and memory is not known to be short."""
    knob, waiting = KnobName.DATA_PARALLEL, _waiting(KnobName.DATA_PARALLEL, breakdown)
    is_sharded = job.spec.knobs.data_parallel is DataParallel.FSDP
    if not is_sharded or not is_tunable(job, knob) or not _is_room(breakdown, job, breakdown.devices):
        return []
    if not waiting:
        return []
    issuing = BELIEVED_PART * issuing_share(breakdown)  # pieces are gathered and scattered by kernels of their own
    gain = SHARDED_PART * waiting + breakdown.shares[Phase.COMPUTE] * issuing
    why = (
        f"{percent(waiting)} of the step waits for pieces of the model, a third of which need not move; some "
        f"{percent(issuing)} of a pass may be spent on issuing that."
    )
    return by_rule([make_change(job, knob, DataParallel.DDP.value)], Phase.COMM, gain, why)


def _waiting(knob: KnobName, breakdown: Breakdown) -> float:
    """Share of the step that waits for what a knob's messages carry; 0 where it sends none."""
    most, _ = bound(knob, breakdown) or (0.0, "")
    return breakdown.shares[Phase.COMM] if most else 0.0


def _is_room(breakdown: Breakdown, job: TrainingJob, growth: float) -> bool:
    """Whether the memory seen, grown in proportion, stays within the job's limit; what is not known is tried.

    A container's limit says nothing of a device's memory, and a job without a limit has none that could be kept.
    """
    limit_bytes = job.spec.template.trainer.resources.quantity("memory") if is_cpu_job(job) else None
    return limit_bytes is None or breakdown.peak_mem_mib * growth * 2**20 <= MEMORY_SHARE * limit_bytes

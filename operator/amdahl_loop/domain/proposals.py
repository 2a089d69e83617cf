"""What is worth trying?

Rules turn a diagnosis into typed hypotheses, and past wins of the family become hypotheses elsewhere. Nothing here is
believed: every proposal still passes the screen and the spend gate, and then numbers decide.
"""

import math
from collections.abc import Iterable

from amdahl_loop.domain.diagnosis import (
    DOMINANT_SHARE,
    NOTABLE_SHARE,
    Bottleneck,
    CadenceWaste,
    Diagnosis,
    crowding,
    is_cpu_job,
    workers_needed,
)
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source, by_rule
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.knobs import is_tunable, legal_range, make_change
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.step_rules import propose_step
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.tuning import Objective
from amdahl_loop.domain.units import percent
from amdahl_loop.domain.verdicts import VerdictWord

JITTER_CV = 0.3
"""From this coefficient of variation of a batch's loading time on, queue depth matters (research, mission 5)."""
NEAR_BEST = 1.02
"""Of several worker counts predicted within 2 % of the best, the fewest is proposed."""


def propose(
    breakdown: Breakdown, diagnosis: Diagnosis, job: TrainingJob, cadence: CadenceWaste | None
) -> tuple[Hypothesis, ...]:
    """Every rule's hypotheses, largest expected gain first.

    A compute-bound job gets none, but for two: its owner asks for wall time, and more devices could buy it; or declares
    knobs of the step itself, which no phase but computing could tell of.
    """
    step = propose_step(breakdown, job)
    if diagnosis.bottleneck is Bottleneck.COMPUTE_BOUND:
        return _largest_first((*_more_processes(breakdown, job), *step))
    found = [
        *_more_workers(breakdown, diagnosis, job),
        *_steadier_input(breakdown, job),
        *_fewer_workers(breakdown, job),
        *_better_cadence(breakdown, job, cadence),
        *(_more_processes(breakdown, job) or _fewer_processes(breakdown, job)),
        *step,
    ]
    return _largest_first(found)


def _largest_first(found: Iterable[Hypothesis]) -> tuple[Hypothesis, ...]:
    return tuple(sorted(found, key=lambda hypothesis: -hypothesis.expected_gain))


def _more_workers(breakdown: Breakdown, diagnosis: Diagnosis, job: TrainingJob) -> list[Hypothesis]:
    """The loader law gives the count; prefetch goes with it, since a first worker has no queue without one."""
    knob, loader = KnobName.DATALOADER_WORKERS, breakdown.loader
    now = job.spec.knobs.dataloader_workers
    if now is None or loader is None or diagnosis.ceiling(knob) < NOTABLE_SHARE:
        return []
    needed = workers_needed(loader.batch_s, breakdown.busy_step_s)
    _, most = legal_range(job, knob, breakdown.cpus)
    more = {workers: predict_step_s(breakdown, workers, loader.batch_s) for workers in range(now + 1, most + 1)}
    if now >= needed or not more:
        return []
    best = min(more.values())
    target = next(workers for workers, step_s in more.items() if step_s <= NEAR_BEST * best)
    gain = 1 - more[target] / breakdown.step_s
    changes = [make_change(job, knob, target), *_depth_for(job, loader.cv, breakdown.cpus)]
    return by_rule(
        changes,
        Phase.INPUT,
        gain,
        f"A batch takes one worker {1000 * loader.batch_s:.0f} ms and a step {1000 * breakdown.busy_step_s:.0f} ms: "
        f"{needed} worker{'s' if needed > 1 else ''} would hide it{'' if needed <= most else f', {most} allowed'}.",
    )


def predict_step_s(breakdown: Breakdown, workers: int, batch_s: float) -> float:
    """Loader law: t_c + t_b with no worker, else max(t_c, t_b / W) (research, mission 5), plus what saves take."""
    saving_s = breakdown.step_s * breakdown.shares[Phase.CHECKPOINT]
    if workers == 0:
        return breakdown.busy_step_s + batch_s + saving_s
    return max(breakdown.busy_step_s, batch_s / workers) + saving_s


def _depth_for(job: TrainingJob, cv: float, cpus: int) -> list[Change]:
    """A deeper queue where loading times are uneven: about 2 + 6 cv batches a worker, in powers of two."""
    knob = KnobName.PREFETCH_FACTOR
    now = job.spec.knobs.prefetch_factor
    if now is None or not is_tunable(job, knob) or cv < JITTER_CV:
        return []
    least, most = legal_range(job, knob, cpus)
    depth = max(least, min(most, 2 ** round(math.log2(2 + 6 * cv))))
    return [make_change(job, knob, depth)] if depth > now else []


def _steadier_input(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Waiting that the mean loading time does not explain: uneven batches, or workers started anew each epoch."""
    knobs, loader = job.spec.knobs, breakdown.loader
    if not knobs.dataloader_workers or loader is None or breakdown.shares[Phase.INPUT] < NOTABLE_SHARE:
        return []
    if loader.batch_s / knobs.dataloader_workers > breakdown.busy_step_s:
        return []
    share = breakdown.shares[Phase.INPUT]
    found: list[Hypothesis] = []
    deeper = _depth_for(job, loader.cv, breakdown.cpus)
    if deeper:
        found += by_rule(
            deeper,
            Phase.INPUT,
            0.8 * share,
            f"{knobs.dataloader_workers} workers suffice on average, but batches vary by {percent(loader.cv)}: "
            "a deeper queue absorbs it.",
        )
    if is_tunable(job, KnobName.PERSISTENT_WORKERS) and knobs.persistent_workers is False:
        found += by_rule(
            [make_change(job, KnobName.PERSISTENT_WORKERS, after=True)],
            Phase.INPUT,
            0.7 * share,
            f"{percent(share)} waits though the workers keep up: they may be started anew each epoch.",
        )
    return found


def _fewer_workers(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Workers beyond what the law needs cost start-up, memory and turns on the CPU."""
    knob, loader = KnobName.DATALOADER_WORKERS, breakdown.loader
    now = job.spec.knobs.dataloader_workers
    if not now or loader is None or not is_tunable(job, knob):
        return []
    least, _ = legal_range(job, knob, breakdown.cpus)
    target = max(least, min(now, workers_needed(loader.batch_s, breakdown.busy_step_s), max(1, breakdown.cpus)))
    waiting = breakdown.shares[Phase.INPUT]
    gain = max(crowding(breakdown), 0.5 * waiting if waiting >= DOMINANT_SHARE else 0.0)
    if target >= now or gain < NOTABLE_SHARE:
        return []
    return by_rule(
        [make_change(job, knob, target)],
        Phase.INPUT,
        gain,
        f"{now} workers on {breakdown.cpus} CPUs, {target} would keep up: the rest only contend.",
    )


def _better_cadence(breakdown: Breakdown, job: TrainingJob, cadence: CadenceWaste | None) -> list[Hypothesis]:
    """Young/Daly's cadence where it differs by enough to matter, and writing beside the training where saves block."""
    knobs = job.spec.knobs
    if cadence is None or breakdown.saves is None:
        return []
    found: list[Hypothesis] = []
    now, best = knobs.checkpoint_every_steps, cadence.best_every_steps
    if now is not None and is_tunable(job, KnobName.CHECKPOINT_EVERY_STEPS) and best != now:
        found += by_rule(
            [make_change(job, KnobName.CHECKPOINT_EVERY_STEPS, best)],
            Phase.CHECKPOINT,
            cadence.removable_share,
            f"A save blocks {1000 * breakdown.saves.block_s:.0f} ms: every {best} steps balances it against lost work.",
        )
    if knobs.async_checkpoint is False and is_tunable(job, KnobName.ASYNC_CHECKPOINT):
        found += by_rule(
            [make_change(job, KnobName.ASYNC_CHECKPOINT, after=True)],
            Phase.CHECKPOINT,
            0.5 * cadence.save_share,
            f"Saves block {percent(cadence.save_share, 1)} of the time; writing beside training may hide half of it.",
        )
    return [hypothesis for hypothesis in found if hypothesis.expected_gain >= NOTABLE_SHARE / 2]


def _more_processes(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Twice the devices, where wall time is the objective and there are as many."""
    knob = KnobName.GPUS_PER_REPLICA
    now = job.spec.knobs.gpus_per_replica
    if now is None or not is_tunable(job, knob) or job.spec.tuning.objective is not Objective.WALL_TIME:
        return []
    _, most = legal_range(job, knob, breakdown.cpus)
    if breakdown.devices * 2 > breakdown.cpus or now * 2 > most:
        return []
    gain = 0.5 * (1 - breakdown.shares[Phase.COMM])
    why = f"{breakdown.devices} of {breakdown.cpus} CPUs train."
    return by_rule([make_change(job, knob, now * 2)], Phase.COMPUTE, gain, why)


def _fewer_processes(breakdown: Breakdown, job: TrainingJob) -> list[Hypothesis]:
    """Fewer devices, where they wait for each other or take turns."""
    knob = KnobName.GPUS_PER_REPLICA
    now = job.spec.knobs.gpus_per_replica
    if now is None or not is_tunable(job, knob):
        return []
    least, _ = legal_range(job, knob, breakdown.cpus)
    waiting = breakdown.shares[Phase.COMM]
    if is_cpu_job(job) and breakdown.devices > breakdown.cpus:
        target = max(least, now * breakdown.cpus // breakdown.devices)
        why = f"{breakdown.devices} processes take turns on {breakdown.cpus} CPUs."
        gain = waiting if job.spec.tuning.objective is Objective.WALL_TIME else 1 - target / now
    else:
        target = max(least, now // 2)
        slowdown = now / target * (1 - waiting)
        gain = 0.0 if slowdown > float(job.spec.tuning.max_slowdown) else waiting
        why = f"{percent(waiting)} of the step is communication: half the devices would hardly be slower."
    if target >= now or gain < NOTABLE_SHARE:
        return []
    return by_rule([make_change(job, knob, target)], Phase.COMM, gain, why)


def transfer_wins(family: Iterable[Experiment], job: TrainingJob) -> tuple[Hypothesis, ...]:
    """Past wins of the family as first hypotheses; a change that has failed on any kin is not among them."""
    kin = [experiment for experiment in family if experiment.verdict is not None]
    failed = {
        _target(e.plan.hypothesis)
        for e in kin
        if e.plan.hypothesis.source is Source.PRIOR and e.verdict is not None and e.verdict.word is not VerdictWord.WON
    }
    found: dict[str, Hypothesis] = {}
    for experiment in kin:
        verdict, hypothesis = experiment.verdict, experiment.plan.hypothesis
        if verdict is None or verdict.word is not VerdictWord.WON or _target(hypothesis) in failed:
            continue
        changes = tuple(
            make_change(job, change.knob, change.after)
            for change in hypothesis.changes
            if is_tunable(job, change.knob) and job.spec.knobs.get(change.knob) != change.after
        )
        if len(changes) == len(hypothesis.changes):
            gain = min(0.99, max(0.0, 1 - math.exp(-(verdict.effect or 0.0))))
            found[_target(hypothesis)] = Hypothesis(
                changes=changes,
                phase=hypothesis.phase,
                expected_gain=gain,
                source=Source.PRIOR,
                rationale=f"Won {percent(gain)} on {experiment.plan.job} ({experiment.name}).",
            )
    return _largest_first(found.values())


def _target(hypothesis: Hypothesis) -> str:
    """What a hypothesis changes to, whatever it started from."""
    return ";".join(f"{change.knob}>{change.after}" for change in hypothesis.changes)

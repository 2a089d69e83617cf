"""What holds this job back, and what could be won at most?

Amdahl's law before any spending: removing an exposed share f of the cost can save at most f, a speed-up of 1/(1 - f).
Classes follow the slowest rank's steady time, the life of the whole job (startup, interruptions) and the machine.
"""

import math
from collections.abc import Mapping
from enum import StrEnum

from amdahl_loop.domain.cadence import interruption_rate, log_cost_per_step, propose_cadence
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.knobs import is_tunable
from amdahl_loop.domain.passes import bound
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.units import percent
from amdahl_loop.domain.values import Frozen

NOTABLE_SHARE = 0.05
"""Below this an exposed share is not worth a word: 5 % can never yield more than 5.3 % (research, mission 5)."""
DOMINANT_SHARE = 0.10
"""From here a phase names the class; the band between is where TF's and TraceML's analysers only warn."""
STRAGGLER_PPK = 100
"""A rank whose own work exceeds the median rank's by a tenth of the step holds the others back (TraceML's band)."""


class Bottleneck(StrEnum):
    """What holds a job back."""

    INPUT_BOUND = "InputBound"
    CHECKPOINT_BOUND = "CheckpointBound"
    STARTUP_BOUND = "StartupBound"
    COMM_BOUND = "CommBound"
    COMPUTE_BOUND = "ComputeBound"
    OVERSIZED = "Oversized"
    STRAGGLER = "Straggler"
    UNCLEAR = "Unclear"


class Ceiling(Frozen):
    """The most that one knob could win: the share it could remove, as a share and as a speed-up."""

    knob: KnobName
    removable_share: float
    sentence: str

    @property
    def speedup(self) -> float:
        """1/(1 - f), Amdahl's bound."""
        return 1 / (1 - min(self.removable_share, 0.999))


class Diagnosis(Frozen):
    """The class of a job, why, and the ceiling of each of its knobs."""

    bottleneck: Bottleneck
    sentence: str
    ceilings: tuple[Ceiling, ...]
    wasted_devices: float
    """Device-hours an hour that are held and not spent computing."""

    def ceiling(self, knob: KnobName) -> float:
        """Removable share of one knob, 0 when it has none."""
        return next((c.removable_share for c in self.ceilings if c.knob is knob), 0.0)


class CadenceWaste(Frozen):
    """Expected cost of the present saving cadence over the best one, as shares of the job's cost."""

    removable_share: float
    save_share: float
    lost_share: float
    best_every_steps: int


def weigh_cadence(breakdown: Breakdown, job: TrainingJob) -> CadenceWaste | None:
    """What the present cadence costs beyond the best one; None where no cadence is declared or no save was seen."""
    every, saves = breakdown.knobs.checkpoint_every_steps, breakdown.saves
    if every is None or saves is None:
        return None
    policy, bounds = job.spec.tuning.checkpoint, job.spec.tuning.knobs.checkpoint_every_steps
    rate = interruption_rate(policy.interruption_interval_s, seen=0, exposure_s=0.0).expected
    step_s, save_s = breakdown.quiet_step_s, saves.block_s + saves.interference_s
    best = propose_cadence(
        every,
        step_s,
        save_s,
        persist_s=0.0,
        interval_s=policy.interruption_interval_s,
        max_lost_work_s=policy.max_lost_work_s,
        min_steps=bounds.min or 1,
        max_steps=bounds.max or 10_000_000,
    )

    def log_cost(cadence: int) -> float:
        return log_cost_per_step(cadence, step_s, save_s, 0.0, breakdown.startup_s, rate)

    return CadenceWaste(
        removable_share=max(0.0, 1 - math.exp(log_cost(best) - log_cost(every))) if best else 0.0,
        save_share=save_s / (every * step_s + save_s),
        lost_share=min(1.0, rate * every * step_s / 2),
        best_every_steps=best or every,
    )


def diagnose(breakdown: Breakdown, job: TrainingJob, cadence: CadenceWaste | None) -> Diagnosis:
    """Class, sentence and ceilings of an observed job. `cadence` is None where saving cannot be judged."""
    shares = _life_shares(breakdown)
    bottleneck, sentence = _classify(breakdown, job, cadence, shares)
    return Diagnosis(
        bottleneck=bottleneck,
        sentence=sentence,
        ceilings=_ceilings(breakdown, job, cadence),
        wasted_devices=breakdown.devices * (1 - shares[Phase.COMPUTE]),
    )


def _life_shares(breakdown: Breakdown) -> Mapping[Phase, float]:
    """Shares of the whole job: steady shares, scaled down by the time spent starting."""
    steady = 1 - breakdown.startup_share
    scaled = {phase: share * steady for phase, share in breakdown.shares.items()}
    scaled[Phase.STARTUP] += breakdown.startup_share
    return scaled


def _classify(
    breakdown: Breakdown, job: TrainingJob, cadence: CadenceWaste | None, shares: Mapping[Phase, float]
) -> tuple[Bottleneck, str]:
    """The first rule that holds: structure before phases, since a starved or crowded rank distorts its phases."""
    step_ms = 1000 * breakdown.step_s
    if breakdown.straggler is not None and breakdown.straggler[1] >= STRAGGLER_PPK:
        rank, excess_ppk = breakdown.straggler
        return Bottleneck.STRAGGLER, (
            f"Rank {rank} works {excess_ppk / 10:.0f} % of the step longer than the median of "
            f"{breakdown.devices} ranks; the others wait for it."
        )
    if is_cpu_job(job) and breakdown.devices > breakdown.cpus:
        return Bottleneck.OVERSIZED, (
            f"{breakdown.devices} processes share {breakdown.cpus} CPUs: they take turns, they do not add up."
        )
    if cadence is not None and cadence.removable_share >= NOTABLE_SHARE:
        phase, share = _largest_waste(shares)
        is_nameless = _CLASS_OF_PHASE[phase] is Bottleneck.UNCLEAR  # what can be acted on comes before it
        if cadence.removable_share >= share or phase is Phase.CHECKPOINT or is_nameless:
            return Bottleneck.CHECKPOINT_BOUND, _cadence_sentence(breakdown, cadence)
    phase, share = _largest_waste(shares)
    crowded = crowding(breakdown)
    if share < DOMINANT_SHARE and crowded >= NOTABLE_SHARE:
        return Bottleneck.OVERSIZED, (
            f"{breakdown.knobs.dataloader_workers} loader workers and {breakdown.devices} training processes share "
            f"{breakdown.cpus} CPUs: they take {percent(crowded)} of each other's time."
        )
    if share < DOMINANT_SHARE:
        return Bottleneck.COMPUTE_BOUND, (
            f"{percent(shares[Phase.COMPUTE])} of the time computes; "
            f"the largest waste is {phase} with {percent(share, 1)}."
        )
    return _CLASS_OF_PHASE[phase], _phase_sentence(breakdown, phase, share, step_ms)


_CLASS_OF_PHASE: Mapping[Phase, Bottleneck] = {
    Phase.INPUT: Bottleneck.INPUT_BOUND,
    Phase.CHECKPOINT: Bottleneck.CHECKPOINT_BOUND,
    Phase.STARTUP: Bottleneck.STARTUP_BOUND,
    Phase.WARMUP: Bottleneck.STARTUP_BOUND,
    Phase.COMM: Bottleneck.COMM_BOUND,
    Phase.QUEUE: Bottleneck.UNCLEAR,
    Phase.EVAL: Bottleneck.UNCLEAR,
    Phase.OTHER: Bottleneck.UNCLEAR,
}


def _largest_waste(shares: Mapping[Phase, float]) -> tuple[Phase, float]:
    wasted = {phase: share for phase, share in shares.items() if phase is not Phase.COMPUTE}
    phase = max(wasted, key=lambda candidate: wasted[candidate])
    return phase, wasted[phase]


def _cadence_sentence(breakdown: Breakdown, cadence: CadenceWaste) -> str:
    every = breakdown.knobs.checkpoint_every_steps
    if cadence.lost_share > cadence.save_share:
        return (
            f"Saving every {every} steps is too rare: interruptions are expected to lose "
            f"{percent(cadence.lost_share, 1)} of the work, saving itself costs {percent(cadence.save_share, 1)}; "
            f"about every {cadence.best_every_steps} steps is best."
        )
    return (
        f"Saving every {every} steps is too often: it costs {percent(cadence.save_share, 1)} of the time and spares "
        f"{percent(cadence.lost_share, 1)} of lost work; about every {cadence.best_every_steps} steps is best."
    )


def _phase_sentence(breakdown: Breakdown, phase: Phase, share: float, step_ms: float) -> str:
    if phase is Phase.INPUT:
        loader = breakdown.loader
        batch = f"; one worker needs {1000 * loader.batch_s:.0f} ms a batch" if loader else ""
        return f"{percent(share)} of each {step_ms:.0f} ms step waits for data{batch}."
    if phase in (Phase.STARTUP, Phase.WARMUP):
        return f"{percent(share)} of the job's life is spent starting ({breakdown.startup_s:.0f} s a launch)."
    return f"{percent(share)} of each {step_ms:.0f} ms step goes to {phase}."


def is_cpu_job(job: TrainingJob) -> bool:
    """A job that requests no device of its kind trains on CPUs; its devices are its processes."""
    return job.spec.template.trainer.resources.quantity(job.spec.device_resource) is None


def _ceilings(breakdown: Breakdown, job: TrainingJob, cadence: CadenceWaste | None) -> tuple[Ceiling, ...]:
    input_share = breakdown.shares[Phase.INPUT]
    found: list[Ceiling] = []
    for knob in KnobName:
        if not is_tunable(job, knob):
            continue
        if knob in _INPUT_KNOBS:
            found.append(
                Ceiling(knob=knob, removable_share=input_share, sentence=f"input is {percent(input_share, 1)}")
            )
        elif knob in _CADENCE_KNOBS and cadence is not None:
            share = max(0.0, cadence.removable_share)
            found.append(
                Ceiling(knob=knob, removable_share=share, sentence=f"the best cadence saves {percent(share, 1)}")
            )
        elif knob is KnobName.GPUS_PER_REPLICA:
            found.append(_process_ceiling(breakdown, job))
        elif (of_step := bound(knob, breakdown)) is not None:
            found.append(Ceiling(knob=knob, removable_share=of_step[0], sentence=of_step[1]))
    return tuple(found)


_INPUT_KNOBS = frozenset(
    {KnobName.DATALOADER_WORKERS, KnobName.PREFETCH_FACTOR, KnobName.PIN_MEMORY, KnobName.PERSISTENT_WORKERS}
)
_CADENCE_KNOBS = frozenset({KnobName.CHECKPOINT_EVERY_STEPS, KnobName.ASYNC_CHECKPOINT})


def _process_ceiling(breakdown: Breakdown, job: TrainingJob) -> Ceiling:
    """Fewer devices save at most what they spend waiting for each other, or taking turns on too few CPUs."""
    crowded = max(0.0, 1 - breakdown.cpus / breakdown.devices) if is_cpu_job(job) else 0.0
    share = max(crowded, breakdown.shares[Phase.COMM])
    why = f"{breakdown.devices} processes on {breakdown.cpus} CPUs" if crowded else f"comm is {percent(share, 1)}"
    return Ceiling(knob=KnobName.GPUS_PER_REPLICA, removable_share=share, sentence=why)


def crowding(breakdown: Breakdown) -> float:
    """Share of CPU time that loader workers and training take from each other; 0 while every worker has a CPU.

    A worker is busy for t_batch of every step that it feeds; processes are busy throughout.
    """
    workers, loader = breakdown.knobs.dataloader_workers, breakdown.loader
    if not workers or loader is None or workers <= breakdown.cpus:
        return 0.0
    busy_cpus = breakdown.devices * (1 + min(workers, loader.batch_s / breakdown.step_s))
    return max(0.0, 1 - breakdown.cpus / busy_cpus)


def workers_needed(batch_s: float, busy_step_s: float) -> int:
    """The loader law's knee: ceil(t_batch / t_step) workers hide the loader behind the step (research, mission 5)."""
    return max(1, math.ceil(batch_s / max(busy_step_s, 1e-9) - 0.02))

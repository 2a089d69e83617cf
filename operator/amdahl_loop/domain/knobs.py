"""What may the loop change, how far, and what does each change touch?

The catalogue of design section 6 as a table. A legal move stays inside the catalogue's bounds, the owner's bounds and
the machine; a variant is the user's own job plus only the declared effect of the knobs.
"""

from collections.abc import Mapping
from enum import StrEnum

from amdahl_loop.domain.hypotheses import Change
from amdahl_loop.domain.knob_values import ActivationCheckpointing, DataParallel, KnobName, KnobValue
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.values import Frozen


class KnobKind(StrEnum):
    """What a knob does to the mathematics: nothing (S0), or rounding only (S1)."""

    S0 = "S0"
    S1 = "S1"


class KnobSpec(Frozen):
    """One row of the catalogue: a number within bounds, a switch, or one of several words."""

    name: KnobName
    kind: KnobKind
    phase: Phase
    least: int = 0
    most: int = 1
    switch: bool = False
    words: tuple[str, ...] = ()
    needs_workers: bool = False

    @property
    def is_live(self) -> bool:
        """Whether our trainer changes it without a restart."""
        return self.kind is KnobKind.S0

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, which bounds mean something for."""
        return not self.switch and not self.words

    def takes(self, value: KnobValue) -> bool:
        """Whether a value is of the knob's kind; a number may still be out of bounds."""
        if self.words:
            return value in self.words
        return self.switch == isinstance(value, bool) and isinstance(value, int)

    @property
    def said(self) -> str:
        """What values there are, in words."""
        return "true or false" if self.switch else " or ".join(self.words) if self.words else "a whole number"


CATALOGUE: Mapping[KnobName, KnobSpec] = {
    spec.name: spec
    for spec in (
        KnobSpec(name=KnobName.DATALOADER_WORKERS, kind=KnobKind.S0, phase=Phase.INPUT, least=0, most=64),
        KnobSpec(
            name=KnobName.PREFETCH_FACTOR, kind=KnobKind.S0, phase=Phase.INPUT, least=1, most=64, needs_workers=True
        ),
        KnobSpec(name=KnobName.PIN_MEMORY, kind=KnobKind.S0, phase=Phase.INPUT, least=0, most=1, switch=True),
        KnobSpec(
            name=KnobName.PERSISTENT_WORKERS,
            kind=KnobKind.S0,
            phase=Phase.INPUT,
            least=0,
            most=1,
            switch=True,
            needs_workers=True,
        ),
        KnobSpec(
            name=KnobName.CHECKPOINT_EVERY_STEPS, kind=KnobKind.S0, phase=Phase.CHECKPOINT, least=1, most=10_000_000
        ),
        KnobSpec(
            name=KnobName.ASYNC_CHECKPOINT, kind=KnobKind.S0, phase=Phase.CHECKPOINT, least=0, most=1, switch=True
        ),
        KnobSpec(name=KnobName.GPUS_PER_REPLICA, kind=KnobKind.S1, phase=Phase.COMM, least=1, most=64),
        KnobSpec(name=KnobName.MICRO_BATCH, kind=KnobKind.S1, phase=Phase.COMPUTE, least=1, most=65_536),
        KnobSpec(name=KnobName.BUCKET_MB, kind=KnobKind.S1, phase=Phase.COMM, least=1, most=4096),
        KnobSpec(name=KnobName.COMPILE, kind=KnobKind.S1, phase=Phase.COMPUTE, switch=True),
        KnobSpec(
            name=KnobName.ACTIVATION_CHECKPOINTING,
            kind=KnobKind.S1,
            phase=Phase.COMPUTE,
            words=tuple(ActivationCheckpointing),
        ),
        KnobSpec(name=KnobName.DATA_PARALLEL, kind=KnobKind.S1, phase=Phase.COMM, words=tuple(DataParallel)),
    )
}
"""Every knob offered now; what is not here is never offered (design, section 6: S2 and S3)."""


def legal_range(job: TrainingJob, knob: KnobName, cpus: int) -> tuple[int, int]:
    """Inclusive bounds of a knob: the owner's where given, else the catalogue's and the machine's.

    Without an owner's maximum, workers and processes are held to the CPUs of one replica: beyond it they contend.
    """
    spec = CATALOGUE[knob]
    owner = job.spec.tuning.knobs.get(knob)
    most = owner.max if owner.max is not None else spec.most
    if not owner.has_own_max and knob is KnobName.DATALOADER_WORKERS:
        most = min(most, max(1, cpus))
    if not owner.has_own_max and knob is KnobName.GPUS_PER_REPLICA:
        most = min(most, max(cpus, job.spec.knobs.gpus_per_replica or 1))
    least = owner.min if owner.min is not None else spec.least
    return max(least, spec.least), min(most, spec.most)


def is_tunable(job: TrainingJob, knob: KnobName) -> bool:
    """A knob is the loop's to change when the job declares it and its owner has not pinned it."""
    return job.spec.knobs.get(knob) is not None and knob not in job.spec.tuning.pin and knob in CATALOGUE


def is_live_change(changes: tuple[Change, ...]) -> bool:
    """Whether every change can be switched without a restart."""
    return all(CATALOGUE[change.knob].is_live for change in changes)


def kind_of(changes: tuple[Change, ...]) -> KnobKind:
    """The strongest effect on the mathematics among the changes."""
    return KnobKind.S1 if any(CATALOGUE[change.knob].kind is KnobKind.S1 for change in changes) else KnobKind.S0


def make_change(job: TrainingJob, knob: KnobName, after: KnobValue) -> Change:
    """The change of one declared knob from the job's present value."""
    return Change(knob=knob, before=job.spec.knobs.get(knob), after=after)

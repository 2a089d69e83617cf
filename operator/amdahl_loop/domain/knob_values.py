"""Which knobs may a job declare, and with which values and bounds?

Names, values and the owner's limits, as manifests write them. What a knob does, and how far it may ever go, is the
catalogue's answer (`knobs.py`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from amdahl_loop.domain.rules import Rule, guarded_by
from amdahl_loop.domain.values import Frozen


class KnobName(StrEnum):
    """The typed, bounded things the loop may change (design, section 6), by their names in manifests."""

    DATALOADER_WORKERS = "dataloaderWorkers"
    PREFETCH_FACTOR = "prefetchFactor"
    PIN_MEMORY = "pinMemory"
    PERSISTENT_WORKERS = "persistentWorkers"
    CHECKPOINT_EVERY_STEPS = "checkpointEverySteps"
    ASYNC_CHECKPOINT = "asyncCheckpoint"
    GPUS_PER_REPLICA = "gpusPerReplica"
    REPLICAS = "replicas"


KnobValue = int | bool


class Knobs(Frozen):
    """Values of the knobs that a job declares; a knob that is absent is not the loop's to change."""

    dataloader_workers: Annotated[int | None, Field(ge=0, le=256)] = None
    """Processes of each rank that prepare batches; 0 prepares them in the training process."""
    prefetch_factor: Annotated[int | None, Field(ge=1, le=256)] = None
    """Batches that each loader worker keeps ready."""
    pin_memory: bool | None = None
    """Whether batches are put into page-locked memory, from which copies to a GPU are faster."""
    persistent_workers: bool | None = None
    """Whether loader workers live on from one epoch to the next."""
    checkpoint_every_steps: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    """Optimizer steps from one checkpoint to the next."""
    async_checkpoint: bool | None = None
    """Whether a checkpoint is written while training goes on."""
    gpus_per_replica: Annotated[int | None, Field(ge=1, le=64)] = None
    """Devices of each replica; in a job that requests none, training processes of each replica."""

    def get(self, knob: KnobName) -> KnobValue | None:
        """Value of one knob, None when the job does not declare it."""
        value: KnobValue | None = getattr(self, _FIELDS.get(knob, ""), None)
        return value

    def with_values(self, values: Mapping[KnobName, KnobValue]) -> "Knobs":
        """The same knobs with some values replaced; the result is validated again."""
        merged = self.model_dump(exclude_none=True) | {_FIELDS[knob]: value for knob, value in values.items()}
        return Knobs.model_validate(merged)

    def declared(self) -> dict[KnobName, KnobValue]:
        """Every declared knob with its value, in catalogue order."""
        return {knob: value for knob in _FIELDS if (value := self.get(knob)) is not None}


_FIELDS: dict[KnobName, str] = {
    knob: re.sub(r"(?<!^)(?=[A-Z])", "_", knob.value).lower() for knob in KnobName if knob is not KnobName.REPLICAS
}


def knob_environment(values: Mapping[KnobName, KnobValue]) -> dict[str, str]:
    """Environment variables of knob values: `AMDAHL_DATALOADER_WORKERS=2`, booleans as 0 and 1."""
    return {environment_name(knob): str(int(value)) for knob, value in values.items()}


def environment_name(knob: KnobName) -> str:
    """`dataloaderWorkers` becomes `AMDAHL_DATALOADER_WORKERS`."""
    return "AMDAHL_" + "".join("_" + letter if letter.isupper() else letter.upper() for letter in knob.value)


class KnobBounds(Frozen):
    """Limits of one numeric knob; absent means the catalogue's."""

    model_config = ConfigDict(
        json_schema_extra=guarded_by(
            Rule(
                holds="!has(self.min) || !has(self.max) || self.min <= self.max",
                says="min is above max; swap them or drop one",
                shows="min %d is above max %d; swap them or drop one",
                values=("self.min", "self.max"),
            )
        )
    )

    min: Annotated[int | None, Field(ge=0, le=10_000_000)] = None
    """The smallest value that may be tried or applied."""
    max: Annotated[int | None, Field(ge=0, le=10_000_000)] = None
    """The largest value that may be tried or applied."""

    @model_validator(mode="after")
    def _ordered(self) -> "KnobBounds":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them or drop one")
        return self

    @property
    def has_own_max(self) -> bool:
        """Whether the job's owner set the upper limit: then it holds even beyond what the machine seems to carry."""
        return self.max is not None


class CappedBounds(KnobBounds):
    """Limits of which the upper one is a policy's: it narrows, and never frees from a limit of the machine."""

    @property
    def has_own_max(self) -> bool:
        """The owner set none."""
        return False


class BoundsByKnob(Frozen):
    """Limits per numeric knob."""

    dataloader_workers: KnobBounds = KnobBounds()
    """Limits of the number of loader workers."""
    prefetch_factor: KnobBounds = KnobBounds()
    """Limits of the batches that a loader worker keeps ready."""
    checkpoint_every_steps: KnobBounds = KnobBounds()
    """Limits of the steps between checkpoints."""
    gpus_per_replica: KnobBounds = KnobBounds()
    """Limits of the devices of each replica."""

    def get(self, knob: KnobName) -> KnobBounds:
        """Limits of one knob; empty for knobs that have none."""
        bounds: KnobBounds = getattr(self, _FIELDS.get(knob, ""), KnobBounds())
        return bounds

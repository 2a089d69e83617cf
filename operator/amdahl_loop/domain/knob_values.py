"""Which knobs may a job declare, and with which values and bounds?

Names, values and the owner's limits, as manifests write them. What a knob does, and how far it may ever go, is the
catalogue's answer (`knobs.py`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

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
    prefetch_factor: Annotated[int | None, Field(ge=1, le=256)] = None
    pin_memory: bool | None = None
    persistent_workers: bool | None = None
    checkpoint_every_steps: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    async_checkpoint: bool | None = None
    gpus_per_replica: Annotated[int | None, Field(ge=1, le=64)] = None

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


class KnobBounds(Frozen):
    """The owner's limits for one numeric knob; absent means the catalogue's."""

    min: Annotated[int | None, Field(ge=0)] = None
    max: Annotated[int | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _ordered(self) -> "KnobBounds":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them or drop one")
        return self


class BoundsByKnob(Frozen):
    """Limits per numeric knob."""

    dataloader_workers: KnobBounds = KnobBounds()
    prefetch_factor: KnobBounds = KnobBounds()
    checkpoint_every_steps: KnobBounds = KnobBounds()
    gpus_per_replica: KnobBounds = KnobBounds()

    def get(self, knob: KnobName) -> KnobBounds:
        """Limits of one knob; empty for knobs that have none."""
        bounds: KnobBounds = getattr(self, _FIELDS.get(knob, ""), KnobBounds())
        return bounds

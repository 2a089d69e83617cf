"""Which knobs may a job declare, and with which values and bounds?

Names, values and the owner's limits, as manifests write them. What a knob does, and how far it may ever go, is the
catalogue's answer (`knobs.py`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.alias_generators import to_camel

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
    MICRO_BATCH = "microBatch"
    BUCKET_MB = "bucketMb"
    COMPILE = "compile"
    ACTIVATION_CHECKPOINTING = "activationCheckpointing"
    DATA_PARALLEL = "dataParallel"


class ActivationCheckpointing(StrEnum):
    """Which activations are computed again in the backward pass instead of kept."""

    NONE = "none"
    BLOCK = "block"
    SELECTIVE = "selective"


class DataParallel(StrEnum):
    """How data-parallel ranks hold the parameters: each of them whole, or in pieces."""

    DDP = "ddp"
    FSDP = "fsdp"


KnobValue = int | bool | str
"""A number, a switch, or one of a knob's words."""


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
    micro_batch: Annotated[int | None, Field(ge=1, le=65_536)] = None
    """Samples of one forward and backward pass of a rank; a step's samples stay the same, in more or fewer passes."""
    bucket_mb: Annotated[int | None, Field(ge=1, le=4096)] = None
    """MiB of gradients that data-parallel ranks reduce in one message."""
    compile: bool | None = None
    """Whether the model is compiled: each launch takes longer, each step less."""
    activation_checkpointing: ActivationCheckpointing | None = None
    """Activations that are computed again in the backward pass: none, those of whole blocks, or all but products of
    matrices. Less memory, more computing."""
    data_parallel: DataParallel | None = None
    """How data-parallel ranks hold the parameters: whole (ddp), or in pieces that they send each other (fsdp)."""

    def get(self, knob: KnobName) -> KnobValue | None:
        """Value of one knob, None when the job does not declare it."""
        value: KnobValue | None = getattr(self, _FIELDS.get(knob, ""), None)
        return value.value if isinstance(value, StrEnum) else value

    @model_serializer(mode="wrap")
    def _without_later(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Later fields are left out where they are absent: a plan that was written before them keeps its hash."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if value is not None or name not in _LATER}

    def with_values(self, values: Mapping[KnobName, KnobValue]) -> "Knobs":
        """The same knobs with some values replaced; the result is validated again."""
        merged = self.model_dump(exclude_none=True) | {_FIELDS[knob]: value for knob, value in values.items()}
        return Knobs.model_validate(merged)

    def declared(self) -> dict[KnobName, KnobValue]:
        """Every declared knob with its value, in catalogue order."""
        return {knob: value for knob in _FIELDS if (value := self.get(knob)) is not None}


_LATER = frozenset(
    form
    for name in ("micro_batch", "bucket_mb", "compile", "activation_checkpointing", "data_parallel")
    for form in (name, to_camel(name))
)
"""Fields that plans in ledgers may not know yet, by both of their names."""

_FIELDS: dict[KnobName, str] = {
    knob: re.sub(r"(?<!^)(?=[A-Z])", "_", knob.value).lower() for knob in KnobName if knob is not KnobName.REPLICAS
}


def knob_environment(values: Mapping[KnobName, KnobValue]) -> dict[str, str]:
    """Environment variables of knob values: `AMDAHL_DATALOADER_WORKERS=2`, booleans as 0 and 1, words as they are."""
    return {environment_name(knob): environment_text(value) for knob, value in values.items()}


def environment_text(value: KnobValue) -> str:
    """A knob's value as its variable holds it."""
    return value if isinstance(value, str) else str(int(value))


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
    micro_batch: KnobBounds = KnobBounds()
    """Limits of the samples of one pass."""
    bucket_mb: KnobBounds = KnobBounds()
    """Limits of the MiB of gradients in one message."""

    def get(self, knob: KnobName) -> KnobBounds:
        """Limits of one knob; empty for knobs that have none."""
        bounds: KnobBounds = getattr(self, _FIELDS.get(knob, ""), KnobBounds())
        return bounds

"""What does a user declare, and is it sound?

The pydantic models of `TrainingJob` are the single source of the manifest's shape; the later CRDs are generated from
them. Parsing happens once, here; inside the program there is no raw dict. Durations and decimals stay text in the
manifest (as Kubernetes prefers) and are read through properties with units in their names.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.units import parse_duration_s, parse_quantity

API_VERSION = "amdahl-loop.io/v1alpha1"
TRAINER_CONTAINER = "trainer"
DEFAULT_EXPECTED_DEVICE_HOURS = 200.0
"""Assumed work ahead where the manifest does not say: about one won experiment's break-even; shown as an assumption."""


DEFAULT_BUDGET_SHARE = 0.05
"""Share of the work ahead that experiments may cost where their owner names no budget."""


class Frozen(BaseModel):
    """A value: immutable, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ManifestError(ValueError):
    """A manifest that cannot be used; every line names a field, its value and the fix."""


def _check_duration(text: str) -> str:
    if parse_duration_s(text) <= 0:
        raise ValueError(f"{text!r} must be longer than zero")
    return text


DecimalText = Annotated[str, Field(pattern=r"^\d+(\.\d+)?$", max_length=20)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


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


class Budget(Frozen):
    """What experiments may cost in all; without a figure, a twentieth of the device-hours ahead."""

    device_hours: DecimalText | None = None
    parallel_trials: Annotated[int, Field(ge=1, le=64)] = 1


class CheckpointPolicy(Frozen):
    """How much work the owner can bear to lose, and the prior interval between interruptions."""

    max_lost_work: Annotated[str, Field(max_length=20)] = "30m"
    mean_time_between_interruptions: Annotated[str, Field(max_length=20)] = "24h"

    _durations = field_validator("max_lost_work", "mean_time_between_interruptions")(_check_duration)

    @property
    def max_lost_work_s(self) -> float:
        """Seconds of work that may be lost to one interruption."""
        return parse_duration_s(self.max_lost_work)

    @property
    def interruption_interval_s(self) -> float:
        """Prior mean seconds between interruptions of this job."""
        return parse_duration_s(self.mean_time_between_interruptions)


class Placement(StrEnum):
    """Where trials run: beside the job on spare devices, or in turn with it."""

    SPARE = "Spare"
    IN_TURN = "InTurn"


class Trial(Frozen):
    """How trials run."""

    placement: Placement = Placement.SPARE
    isolated: bool = False
    scratch_paths: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    python: Annotated[str, Field(max_length=256)] = "python3"


class ApplyWhen(StrEnum):
    """When a proven value takes effect on the running job."""

    LIVE = "Live"
    AFTER_CHECKPOINT = "AfterCheckpoint"
    NEXT_RESTART = "NextRestart"


class Apply(Frozen):
    """When proven values take effect."""

    when: ApplyWhen = ApplyWhen.LIVE


class Mode(StrEnum):
    """How far the loop may go."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"
    SPEC = "Spec"
    OVERLAY = "Overlay"


class Objective(StrEnum):
    """What cost means: device-seconds per sample, or seconds per sample."""

    DEVICE_HOURS = "DeviceHours"
    WALL_TIME = "WallTime"


class ProfileName(StrEnum):
    """How much evidence is bought: window lengths, looks, refute checks, floor."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


class Tuning(Frozen):
    """What the loop may do for this job, and at what price."""

    mode: Mode = Mode.AUTO
    objective: Objective = Objective.DEVICE_HOURS
    max_slowdown: DecimalText = "1.05"
    knobs: BoundsByKnob = BoundsByKnob()
    budget: Budget = Budget()
    expected_device_hours: DecimalText | None = None
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    profile: ProfileName = ProfileName.STANDARD
    pin: Annotated[tuple[KnobName, ...], Field(max_length=16)] = ()
    trial: Trial = Trial()
    apply: Apply = Apply()


class EnvVar(BaseModel):
    """One environment variable of a container; `valueFrom` is kept, and refused locally where it cannot be had."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, Field(min_length=1, max_length=256)]
    value: str = ""


class Resources(BaseModel):
    """Resource requests and limits, as Kubernetes writes them."""

    model_config = ConfigDict(frozen=True, extra="allow")
    requests: dict[str, str | int | float] = {}
    limits: dict[str, str | int | float] = {}

    def quantity(self, name: str) -> float | None:
        """Limit of a resource, else its request, else None."""
        text = self.limits.get(name, self.requests.get(name))
        return None if text is None else parse_quantity(str(text))


class Container(BaseModel):
    """The fields of a container that the loop reads; everything else is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    resources: Resources = Resources()


class PodSpec(BaseModel):
    """The fields of a pod spec that the loop reads; everything else is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")
    containers: tuple[Container, ...]


class PodTemplate(BaseModel):
    """An ordinary pod template; the container to tune is named `trainer` and has an explicit command."""

    model_config = ConfigDict(frozen=True, extra="allow")
    spec: PodSpec

    @model_validator(mode="after")
    def _has_trainer(self) -> "PodTemplate":
        names = [container.name for container in self.spec.containers]
        if names.count(TRAINER_CONTAINER) != 1:
            raise ValueError(f"containers are named {names}; name the one to tune {TRAINER_CONTAINER!r}, exactly once")
        if not self.trainer.command:
            raise ValueError("the trainer container has no command; write it out, the image's default cannot be seen")
        return self

    @property
    def trainer(self) -> Container:
        """The container to tune."""
        return next(container for container in self.spec.containers if container.name == TRAINER_CONTAINER)


class TrainingJobSpec(Frozen):
    """What to train, what may be changed, and under which rules."""

    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    knobs: Knobs = Knobs()
    template: PodTemplate
    tuning: Tuning = Tuning()
    suspend: bool = False
    device_resource: Annotated[str, Field(max_length=253)] = "nvidia.com/gpu"

    @model_validator(mode="after")
    def _values_within_bounds(self) -> "TrainingJobSpec":
        for knob, value in self.knobs.declared().items():
            bounds = self.tuning.knobs.get(knob)
            if isinstance(value, bool):
                continue
            if (bounds.min is not None and value < bounds.min) or (bounds.max is not None and value > bounds.max):
                raise ValueError(
                    f"knobs.{knob} is {value}, outside tuning.knobs.{knob} [{bounds.min}, {bounds.max}]; "
                    "widen one of them"
                )
        return self


class Metadata(BaseModel):
    """The parts of object metadata that the loop reads."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Name
    namespace: Name = "default"
    uid: str = ""


class TrainingJob(Frozen):
    """A training job as declared."""

    api_version: Literal["amdahl-loop.io/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: Metadata
    spec: TrainingJobSpec

    def with_knobs(self, knobs: Knobs) -> "TrainingJob":
        """The same job with other knob values."""
        return self.model_copy(update={"spec": self.spec.model_copy(update={"knobs": knobs})})

    def without_environment(self) -> "TrainingJob":
        """The same job without the values of its containers' environment: they may be secrets."""
        containers = tuple(
            container.model_copy(update={"env": tuple(EnvVar(name=variable.name) for variable in container.env)})
            for container in self.spec.template.spec.containers
        )
        pod = self.spec.template.spec.model_copy(update={"containers": containers})
        template = self.spec.template.model_copy(update={"spec": pod})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"template": template})})

    @property
    def expected_device_hours(self) -> tuple[float, str]:
        """Device-hours that lie ahead, and where the figure came from."""
        text = self.spec.tuning.expected_device_hours
        if text is None:
            return DEFAULT_EXPECTED_DEVICE_HOURS, "assumed; set tuning.expectedDeviceHours"
        return float(text), "tuning.expectedDeviceHours"

    @property
    def budget_device_hours(self) -> tuple[float, str]:
        """Device-hours that experiments may hold in all, and where the figure came from."""
        text = self.spec.tuning.budget.device_hours
        if text is None:
            ahead_h, origin = self.expected_device_hours
            return DEFAULT_BUDGET_SHARE * ahead_h, f"a twentieth of {ahead_h:g} device-hours ahead, {origin}"
        return float(text), "tuning.budget.deviceHours"


def parse_training_job(document: object) -> TrainingJob:
    """The job that a parsed YAML or JSON document declares; ManifestError lists every field that is wrong."""
    if not isinstance(document, dict):
        raise ManifestError(f"the manifest holds {type(document).__name__}, not an object; write one TrainingJob")
    try:
        return TrainingJob.model_validate(document)
    except ValidationError as error:
        raise ManifestError("\n".join(_describe(dict(item)) for item in error.errors())) from error


def _describe(error: dict[str, Any]) -> str:
    """One line for one fault: field, value, what is wrong and what would mend it."""
    field = ".".join(str(part) for part in error["loc"]) or "manifest"
    value = error.get("input")
    shown = "absent" if error["type"] == "missing" else _shorten(value)
    return f"{field}: {shown}: {_fix(error)}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fix(error: dict[str, Any]) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "required; add it"
    if kind == "extra_forbidden":
        names = _legal_names(error["loc"])
        return f"unknown field; remove it or use one of {', '.join(names)}" if names else "unknown field; remove it"
    if kind == "string_pattern_mismatch" and error["loc"][-1] in ("name", "namespace"):
        return "must be lower-case letters, digits and '-', at most 63; rename it"
    return str(message)


def _legal_names(loc: tuple[str | int, ...]) -> list[str]:
    """Legal field names beside an unknown one, so that a typo is mended at sight."""
    models: dict[tuple[str, ...], type[Frozen]] = {
        (): TrainingJob,
        ("spec",): TrainingJobSpec,
        ("spec", "knobs"): Knobs,
        ("spec", "tuning"): Tuning,
        ("spec", "tuning", "knobs"): BoundsByKnob,
        ("spec", "tuning", "budget"): Budget,
        ("spec", "tuning", "checkpoint"): CheckpointPolicy,
        ("spec", "tuning", "trial"): Trial,
        ("spec", "tuning", "apply"): Apply,
    }
    model = models.get(tuple(str(part) for part in loc[:-1]))
    return [to_camel(name) for name in model.model_fields] if model else []

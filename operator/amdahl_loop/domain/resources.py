"""What is a training job, as its user declares it?

The pydantic models of the API are the single source of the manifest's shape; the CRDs are generated from them.
Parsing happens once (`parsing.py`); inside the program there is no raw dict.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.template import EnvVar, PodTemplate
from amdahl_loop.domain.tuning import Tuning
from amdahl_loop.domain.values import Frozen, Name

API_VERSION = "amdahl-loop.io/v1alpha1"
DEFAULT_EXPECTED_DEVICE_HOURS = 200.0
"""Assumed work ahead where the manifest does not say: about one won experiment's break-even; shown as an assumption."""

DEFAULT_BUDGET_SHARE = 0.05
"""Share of the work ahead that experiments may cost where their owner names no budget."""


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

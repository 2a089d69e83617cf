"""What is a training job, as its user declares it?

The pydantic models of the API are the single source of the manifest's shape; the CRDs are generated from them.
Parsing happens once (`parsing.py`); inside the program there is no raw dict.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.knob_values import BoundsByKnob, Knobs
from amdahl_loop.domain.rules import Rule, guarded_by
from amdahl_loop.domain.template import Container, EnvVar, PodSpec, PodTemplate, Resources
from amdahl_loop.domain.tuning import Tuning
from amdahl_loop.domain.values import Frozen, Name

API_VERSION = "amdahl-loop.io/v1alpha1"
PAUSED_ANNOTATION = "amdahl-loop.io/paused"
"""With the value `true`: no experiment of this job runs; the job itself goes on."""

QUEUE_LABELS = (
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/priority-class",
    "scheduling.volcano.sh/queue-name",
)
"""The only labels of a job that its children inherit: others (tracking labels above all) would make them look managed
by whoever manages the job."""

DEFAULT_EXPECTED_DEVICE_HOURS = 200.0
"""Assumed work ahead where the manifest does not say: about one won experiment's break-even; shown as an assumption."""

DEFAULT_BUDGET_SHARE = 0.05
"""Share of the work ahead that experiments may cost where their owner names no budget."""


_BOUNDED = tuple(to_camel(name) for name in BoundsByKnob.model_fields)


def _within_bounds(knob: str) -> Rule:
    """A declared value lies within the owner's limits."""
    value, limits = f"self.knobs.{knob}", f"self.tuning.knobs.{knob}"
    declared = f"has(self.knobs) && has({value}) && has(self.tuning) && has(self.tuning.knobs) && has({limits})"
    above = f"(!has({limits}.min) || {value} >= {limits}.min)"
    below = f"(!has({limits}.max) || {value} <= {limits}.max)"
    least, most = (f"has({limits}.{end}) ? string({limits}.{end}) : 'none'" for end in ("min", "max"))
    return Rule(
        holds=f"!({declared}) || ({above} && {below})",
        says=f"knobs.{knob} is outside tuning.knobs.{knob}; widen one of them",
        shows=f"knobs.{knob} is %d, outside tuning.knobs.{knob} [%s, %s]; widen one of them",
        values=(value, least, most),
        at=f".knobs.{knob}",
    )


class TrainingJobSpec(Frozen):
    """What to train, what may be changed, and under which rules."""

    model_config = ConfigDict(json_schema_extra=guarded_by(*(_within_bounds(name) for name in _BOUNDED)))

    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    """Pods of the job, run as one Indexed Job."""
    knobs: Knobs = Knobs()
    """Knobs with their present values: what the loop may change, and what it patches when a win is proven. A knob that
    is absent is left to the program. Nothing is filled in here."""
    template: PodTemplate
    """An ordinary pod template. The container to tune is named trainer and has an explicit command."""
    tuning: Tuning = Tuning()
    """What the loop may do for this job, and at what price."""
    suspend: bool = False
    """Stops the job and its experiments; queues such as Kueue set it too."""
    device_resource: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """Resource that counts the job's devices; a template that requests none of it is a CPU job."""

    @model_validator(mode="after")
    def _values_within_bounds(self) -> "TrainingJobSpec":
        for knob, value in self.knobs.declared().items():
            bounds = self.tuning.knobs.get(knob)
            if isinstance(value, bool | str):
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
    generation: int = 0
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


def _bare(container: Container) -> Container:
    """A container without fields that nobody here reads, and without values of its environment."""
    known = container.model_dump(include=set(Container.model_fields) - {"env", "resources"})
    own = container.resources
    return Container(
        env=tuple(EnvVar(name=variable.name) for variable in container.env),
        resources=Resources(requests=own.requests, limits=own.limits),
        **known,
    )


class TrainingJob(Frozen):
    """A training job as declared."""

    api_version: Literal["amdahl-loop.io/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: Metadata
    spec: TrainingJobSpec

    @property
    def queue_labels(self) -> dict[str, str]:
        """Labels that the job's pods and trials carry too: those that name a queue, and no other."""
        return {name: self.metadata.labels[name] for name in QUEUE_LABELS if name in self.metadata.labels}

    @property
    def is_paused(self) -> bool:
        """Whether the owner has stopped the experiments: by `suspend`, or by the annotation alone."""
        return self.spec.suspend or self.metadata.annotations.get(PAUSED_ANNOTATION) == "true"

    def with_knobs(self, knobs: Knobs) -> "TrainingJob":
        """The same job with other knob values."""
        return self.model_copy(update={"spec": self.spec.model_copy(update={"knobs": knobs})})

    def without_environment(self) -> "TrainingJob":
        """The same job with what decisions read, and nothing else: whatever is left out may hold a secret.

        Values of the environment stand in other places too: init containers, annotations that record the last apply.
        """
        pod = PodSpec(containers=tuple(_bare(container) for container in self.spec.template.spec.containers))
        spec = self.spec.model_copy(update={"template": PodTemplate(spec=pod)})
        own = self.metadata
        paused = {name: text for name, text in own.annotations.items() if name == PAUSED_ANNOTATION}
        metadata = Metadata(
            name=own.name, namespace=own.namespace, uid=own.uid, labels=self.queue_labels, annotations=paused
        )
        return self.model_copy(update={"spec": spec, "metadata": metadata})

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

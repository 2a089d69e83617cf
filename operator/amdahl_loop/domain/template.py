"""What does the loop read of a pod template?

Everything else in a template is kept as it is. The container to tune is named `trainer` and has an explicit command.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.rules import ATOMIC, Rule, guarded_by, keyed_by
from amdahl_loop.domain.units import parse_quantity

TRAINER_CONTAINER = "trainer"
MAX_CONTAINERS = 8
"""A termination message is shared by a pod's containers: with more, a block's summary no longer fits."""

MAX_ARGUMENT = 131_072
"""Linux refuses a longer argument of a process."""

Argument = Annotated[str, Field(max_length=MAX_ARGUMENT)]

_TRAINERS = "self.spec.containers.filter(c, c.name == 'trainer')"


class EnvVar(BaseModel):
    """One environment variable of a container; `valueFrom` is kept, and refused locally where it cannot be had."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the variable."""
    value: Argument = ""
    """Value of the variable; $(NAME) stands for a variable before it, those of the knobs included."""


class Resources(BaseModel):
    """Resource requests and limits, as Kubernetes writes them."""

    model_config = ConfigDict(frozen=True, extra="allow")
    requests: Annotated[Mapping[str, str | int | float], Field(max_length=32)] = {}
    """Quantity of each resource that is set aside for the container."""
    limits: Annotated[Mapping[str, str | int | float], Field(max_length=32)] = {}
    """Quantity of each resource that the container may not exceed."""

    def quantity(self, name: str) -> float | None:
        """Limit of a resource, else its request, else None; those of a job that was parsed can be read."""
        text = self.limits.get(name, self.requests.get(name))
        return None if text is None else parse_quantity(str(text))


class Container(BaseModel):
    """The fields of a container that the loop reads; everything else is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)
    name: Annotated[str, Field(max_length=63)]
    """Name of the container; the one to tune is named trainer."""
    image: Annotated[str, Field(max_length=1024)] = ""
    """Image of the container; nothing is added to it."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64), ATOMIC] = ()
    """Program and its first arguments; required of the trainer, because the image's own default cannot be seen.
    $(AMDAHL_GPUS_PER_REPLICA) and the other knobs' variables are replaced by their values."""
    args: Annotated[tuple[Argument, ...], Field(max_length=1024), ATOMIC] = ()
    """Arguments after the command, with the same replacements."""
    working_dir: Annotated[str, Field(max_length=4096)] = ""
    """Folder that the program starts in; absent means the image's."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=1024), ATOMIC] = ()
    """Variables of the container; those of the knobs come before them."""
    resources: Resources = Resources()
    """Requests and limits; the quantity of spec.deviceResource follows the knob gpusPerReplica."""


class PodSpec(BaseModel):
    """The fields of a pod spec that the loop reads; everything else is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")
    containers: Annotated[tuple[Container, ...], Field(min_length=1, max_length=MAX_CONTAINERS), keyed_by("name")]
    """Containers of each pod, at most 8; exactly one is named trainer."""


class PodTemplate(BaseModel):
    """An ordinary pod template; the container to tune is named `trainer` and has an explicit command."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        json_schema_extra=guarded_by(
            Rule(
                holds=f"{_TRAINERS}.size() == 1",
                says="no container is named trainer; name the one to tune 'trainer', exactly once",
                shows="containers are named %s; name the one to tune 'trainer', exactly once",
                values=("self.spec.containers.map(c, c.name)",),
                at=".spec.containers",
            ),
            Rule(
                holds=f"{_TRAINERS}.all(c, has(c.command) && c.command.size() > 0)",
                says="the trainer container has no command; write it out, the image's default cannot be seen",
                at=".spec.containers",
            ),
        ),
    )
    spec: PodSpec
    """Pod spec of each replica; every field of Kubernetes is kept."""

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

"""What does the loop read of a pod template?

Everything else in a template is kept as it is. The container to tune is named `trainer` and has an explicit command.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.units import parse_quantity

TRAINER_CONTAINER = "trainer"


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

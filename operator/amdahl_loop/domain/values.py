"""What is every declared value made of?

The base of all frozen models and the text types that several of them share. Durations and decimals stay text in
manifests (as Kubernetes prefers) and are read through properties with units in their names.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.units import parse_duration_s


class Frozen(BaseModel):
    """A value: immutable, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


DecimalText = Annotated[str, Field(pattern=r"^\d+(\.\d+)?$", max_length=20)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


def check_duration(text: str) -> str:
    """The text itself where it is a duration longer than zero; ValueError names it."""
    if parse_duration_s(text) <= 0:
        raise ValueError(f"{text!r} must be longer than zero")
    return text

"""What is every declared value made of?

The base of all frozen models and the text types that several of them share. Durations and decimals stay text in
manifests (as Kubernetes prefers) and are read through properties with units in their names.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.rules import Rule, ruled
from amdahl_loop.domain.units import parse_duration_s

_DECIMAL = re.compile(r"^[0-9]+(\.[0-9]+)?$")


class Frozen(BaseModel):
    """A value: immutable, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other fields; what was derived from the old ones (`cached_property`) is derived again."""
        copied = super().model_copy(update=update, deep=deep)
        for derived in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[derived]
        return copied


def check_duration(text: str) -> str:
    """The text itself where it is a duration longer than zero; ValueError names it."""
    if parse_duration_s(text) <= 0:
        raise ValueError(f"{text!r} must be longer than zero; write a duration such as 30m")
    return text


def check_decimal(text: str) -> str:
    """The text itself where it is a plain decimal number; ValueError names it."""
    if not _DECIMAL.match(text):
        raise ValueError(f"{text!r} is no decimal number; write digits as text, such as '4' or '0.5'")
    return text


DecimalText = Annotated[
    str,
    Field(max_length=20),
    AfterValidator(check_decimal),
    ruled(
        Rule(
            holds=r"self.matches('^[0-9]+([.][0-9]+)?$')",
            says="must be a decimal number; write digits as text, such as '4' or '0.5'",
            shows="'%s' is no decimal number; write digits as text, such as '4' or '0.5'",
            values=("self",),
        )
    ),
]
"""A number of zero or more that may have a fraction, as text: exact in every language that reads it."""

Duration = Annotated[
    str,
    Field(max_length=20),
    AfterValidator(check_duration),
    ruled(
        Rule(
            holds=r"self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h|d))+$') && self.matches('[1-9]')",
            says="must be a duration longer than zero, such as 30m, 1h30m or 250ms",
            shows="'%s' is no duration longer than zero; write one such as 30m, 1h30m or 250ms",
            values=("self",),
        )
    ),
]
"""A time longer than zero: numbers with units, such as `30m`, `1h30m` or `250ms`."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A name that fits into labels and host names: lower-case letters, digits and `-`, at most 63."""

"""How does a value of ours look inside a Kubernetes object, and how is it read back?

One convention for all kinds: absent means unset, nothing is ever null, and every number that may have a fraction
travels as decimal text. JSON numbers pass through Go, which drops the sign of zero and the difference between 2.0 and
2; text keeps a plan's hash exact, and the API conventions ask for it. Numbers that do not exist are left out.
"""

import math
from typing import Any, TypeVar

from pydantic import BaseModel

DECIMAL_PATTERN = r"^-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?$"
"""What `repr` writes for a finite float: the shortest text that reads back as the same number."""

MAX_DECIMAL = 32

Model = TypeVar("Model", bound=BaseModel)


def to_wire(value: BaseModel) -> dict[str, Any]:
    """The value as it is written into an object."""
    document: dict[str, Any] = _text(value.model_dump(mode="json", by_alias=True, exclude_none=True))
    return document


def from_wire(model: type[Model], document: object) -> Model:
    """The value that a part of an object holds; ValidationError names every field that is wrong."""
    return model.model_validate(document)


def _text(item: Any) -> Any:
    """Floats as text, in lists and maps too; what is not finite is dropped from its map."""
    if isinstance(item, float):
        return repr(item)
    if isinstance(item, dict):
        return {name: _text(part) for name, part in item.items() if not _is_missing(part)}
    return [_text(part) for part in item] if isinstance(item, list) else item


def _is_missing(item: Any) -> bool:
    return isinstance(item, float) and not math.isfinite(item)

"""What do durations and quantities, as Kubernetes writes them, amount to, and how is a share written?"""

import re

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+$")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
_QUANTITY_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `30m`, `1h30m` or `250ms`; ValueError names the text."""
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is no duration; write a number and a unit, such as 30m, 1h30m or 250ms")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def parse_quantity(text: str) -> float:
    """Value of a Kubernetes resource quantity such as `500m`, `2` or `8Gi`; ValueError names the text."""
    match = _QUANTITY.match(text)
    if not match:
        raise ValueError(f"{text!r} is no resource quantity; write a number such as 2, 500m or 8Gi")
    return float(match.group(1)) * _QUANTITY_UNITS[match.group(2) or ""]


def percent(share: float, digits: int = 0) -> str:
    """A share as text for sentences: `45 %`."""
    return f"{100 * share:.{digits}f} %"

"""What do durations and quantities, as Kubernetes writes them, amount to, and how is a share written?"""

import re

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+$")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[eE][+-]?[0-9]+|[numkMGTPE]?)")
_QUANTITY_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
} | {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}  # fmt: skip
MAX_QUANTITY = 2.0**63
"""Kubernetes takes larger amounts for this one (apimachinery's resource.Quantity)."""


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `30m`, `1h30m` or `250ms`; ValueError names the text."""
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is no duration; write a number and a unit, such as 30m, 1h30m or 250ms")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def parse_quantity(text: str) -> float:
    """Value of a Kubernetes resource quantity such as `500m`, `2`, `16e9` or `8Gi`; ValueError names the text.

    The grammar is that of apimachinery's resource.Quantity, spaces around it included.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text[:40]!r} is no resource quantity; write a number such as 2, 500m or 8Gi")
    number, suffix = match.groups()
    unit = _QUANTITY_UNITS.get(suffix)
    value = float(number + suffix) if unit is None else float(number) * unit
    return max(-MAX_QUANTITY, min(MAX_QUANTITY, value))


def percent(share: float, digits: int = 0) -> str:
    """A share as text for sentences: `45 %`."""
    return f"{100 * share:.{digits}f} %"

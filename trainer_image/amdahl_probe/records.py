# ruff: noqa: TRY004 (a record is text: a field of the wrong type is a wrong value)
"""What did a rank really say? Lines of `rank-<r>.jsonl`, which are untrusted, into frozen values or a refusal.

A line may have been written by anything: sizes, types and ranges are checked once, here. What does not fit is refused
with a reason, and a window that has a refused record in it is void.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from amdahl_probe.emit import MAX_LINE_BYTES, VERSION
from amdahl_probe.spans import PHASES

#: 2**62 ns are 146 years; no honest count or time comes near.
MAX_INTEGER = 1 << 62
MAX_RANKS = 4096

#: More knobs than there are, and longer names than any has.
MAX_NAMES, MAX_NAME = 8, 32


class Start(NamedTuple):
    """Who writes."""

    rank: int
    world: int
    live: bool
    dtype: str = ""


@dataclass(frozen=True)
class Step:
    """One optimizer step; `phases_ns` in the order of PHASES, summing to `wall_ns`."""

    index: int
    end_ns: int
    wall_ns: int
    phases_ns: Tuple[int, ...]
    samples: int
    elements: int
    sig: str
    shape: str
    ids: str
    loss: Optional[float]
    seq: int
    loader: Tuple[int, int, int]
    tags: Tuple[str, ...]


class Startup(NamedTuple):
    """The first batch is in hand."""

    end_ns: int


class Save(NamedTuple):
    """A checkpoint begun in the lap of step `step`, or (`is_durable`) its end."""

    end_ns: int
    step: int
    block_ns: int
    is_durable: bool


class Offset(NamedTuple):
    """Whether the data offset of knob sequence `seq` took effect."""

    seq: int
    applied: bool


class Knobs(NamedTuple):
    """Knobs that the program could not take under knob sequence `seq`."""

    seq: int
    ignored: Tuple[str, ...]


class Disabled(NamedTuple):
    """The probe switched itself off."""

    why: str


class Other(NamedTuple):
    """A record that no window needs (`end`, or of a newer probe)."""

    kind: str


class Refused(NamedTuple):
    """A line that is no record."""

    why: str


Record = Union[Start, Step, Startup, Save, Offset, Knobs, Disabled, Other, Refused]


def parse(line: bytes) -> Record:
    """Parse one line. Never raises."""
    if len(line) > MAX_LINE_BYTES:
        return Refused(f"a line of {len(line)} bytes")
    try:
        raw = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(raw, dict):
            return Refused("not an object")
        return _parse_kind(raw)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return Refused(f"{type(error).__name__}: {error}"[:100])


def _parse_kind(raw: Dict[str, Any]) -> Record:
    kind = raw["k"]
    if kind == "step":
        return _parse_step(raw)
    if kind == "start":
        if raw["v"] != VERSION:
            raise ValueError(f"v={str(raw['v'])[:20]!r} is not {VERSION}")
        rank, world = _integer(raw, "rank", MAX_RANKS), _integer(raw, "world", MAX_RANKS)
        return Start(rank, world, _flag(raw, "live"), _name(raw.get("dtype", "")))
    if kind == "startup":
        return Startup(_integer(raw, "t"))
    if kind == "save":
        return Save(_integer(raw, "t"), _integer(raw, "step"), _integer(raw, "block_ns"), bool(raw.get("durable")))
    if kind == "offset":
        return Offset(_integer(raw, "seq"), _flag(raw, "applied"))
    if kind == "knob":
        return Knobs(_integer(raw, "seq"), _names(raw.get("ignored", {})))
    if kind == "disabled":
        return Disabled(str(raw.get("why", ""))[:200])
    return Other(str(kind)[:20])


def _parse_step(raw: Dict[str, Any]) -> Step:
    phases, wall_ns = raw["ph"], _integer(raw, "w")
    if not isinstance(phases, dict) or not set(phases) <= set(PHASES):
        raise ValueError("ph has an unknown phase")
    spent = tuple(_integer(phases, phase) if phase in phases else 0 for phase in PHASES)
    if sum(spent) != wall_ns:
        raise ValueError(f"ph sums to {sum(spent)}, w is {wall_ns}")
    loss = raw.get("loss")
    if loss is not None and (isinstance(loss, bool) or not isinstance(loss, (int, float)) or not math.isfinite(loss)):
        raise ValueError("loss is not a number")
    batches, took_ns, squares_us2 = _integers(raw["lb"], 3)
    return Step(
        index=_integer(raw, "i"),
        end_ns=_integer(raw, "t"),
        wall_ns=wall_ns,
        phases_ns=spent,
        samples=_integer(raw, "n"),
        elements=_integer(raw, "el"),
        sig=_hex(raw, "sig"),
        shape=_hex(raw, "shape"),
        ids=_hex(raw, "ids"),
        loss=None if loss is None else max(-1e38, min(1e38, float(loss))),
        seq=_integer(raw, "seq"),
        loader=(batches, took_ns, squares_us2),
        tags=tuple(str(tag)[:20] for tag in raw.get("tags", [])[:8]),
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _integer(raw: Dict[str, Any], name: str, most: int = MAX_INTEGER) -> int:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is not a whole number")
    if not 0 <= value < most:
        raise ValueError(f"{name}={value} is not from 0 to {most}")
    return value


def _integers(values: Any, count: int) -> List[int]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"not a list of {count} numbers")
    return [_integer({"lb": value}, "lb") for value in values]


def _flag(raw: Dict[str, Any], name: str) -> bool:
    if not isinstance(raw[name], bool):
        raise ValueError(f"{name} is not true or false")
    return bool(raw[name])


def _name(told: Any) -> str:
    if not isinstance(told, str) or len(told) > MAX_NAME or not (told.isalnum() or told == ""):
        raise ValueError(f"{str(told)[:20]!r} is no name")
    return told


def _names(told: Any) -> Tuple[str, ...]:
    if not isinstance(told, dict):
        raise ValueError("ignored is not an object")
    return tuple(name for name in told if name.isalnum() and len(name) <= MAX_NAME)[:MAX_NAMES]


def _hex(raw: Dict[str, Any], name: str) -> str:
    value = raw[name]
    if not isinstance(value, str) or len(value) != 8 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{name} is not 8 hex digits")
    return value

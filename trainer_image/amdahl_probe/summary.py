"""What leaves a block? Windows into one bounded, checksummed JSON object, at most 1,500 bytes (contract, section 4)."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from amdahl_probe.windows import Numbers

VERSION = "amdahl.block/1"

#: The kubelet keeps 4,096 bytes of termination message a container and 12,288 a pod; containers share the latter.
MAX_BYTES = 1500


@dataclass(frozen=True)
class Entry:
    """One finished window."""

    arm: str
    index: int
    scored: bool
    outcome: str
    code: Optional[int] = None
    why: str = ""
    numbers: Optional[Numbers] = None
    startup_ms: Optional[int] = None
    mem_mib: Optional[int] = None


class Block(NamedTuple):
    """The block so far."""

    run: str
    state: str
    at: Optional[Tuple[str, int]]
    is_live: bool
    cpus: int
    entries: Tuple[Entry, ...] = ()
    why: str = ""


def render(block: Block) -> bytes:
    """The summary. Too long, it loses reasons first, then unscored windows, then details; never its outcomes."""
    entries = list(block.entries)
    reduced: List[Dict[str, Any]] = [_to_json(entry) for entry in entries]
    for shorten in (_keep_all, _drop_reasons, _drop_unscored, _drop_details, _drop_numbers):
        reduced = shorten(reduced, entries)
        data = _seal(block, [fields for fields in reduced if fields])
        if len(data) <= MAX_BYTES:
            return data
    return _seal(block._replace(state="error", why=f"{len(entries)} windows do not fit in a summary"), [])


def check(data: bytes) -> bool:
    """Whether a summary is whole: its checksum is that of its content."""
    try:
        fields = json.loads(data)
        return bool(fields.pop("crc") == _checksum(fields))
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def _seal(block: Block, windows: Sequence[Dict[str, Any]]) -> bytes:
    fields: Dict[str, Any] = {"v": VERSION, "run": block.run[:63], "state": block.state}
    if block.at is not None:
        fields["at"] = list(block.at)
    if block.why:
        fields["why"] = _clip(block.why, 200)
    fields.update(live=int(block.is_live), cpus=block.cpus, w=list(windows))
    fields["crc"] = _checksum(fields)
    return json.dumps(fields, separators=(",", ":")).encode()


def _checksum(fields: Dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


def _to_json(entry: Entry) -> Dict[str, Any]:
    fields: Dict[str, Any] = {"a": entry.arm, "i": entry.index, "x": entry.outcome}
    if entry.outcome != "ok" and entry.code is not None:
        fields["xc"] = entry.code
    if entry.why:
        fields["why"] = _clip(entry.why, 80)
    numbers = entry.numbers
    if numbers is not None:
        fields.update(n=numbers.steps, s=numbers.samples, d=numbers.devices, us=numbers.wall_us)
        fields.update(ph=list(numbers.phases_ppk), sh=numbers.shape, el=numbers.elements_per_sample)
        fields.update(di=numbers.distinct_ppk, id=numbers.ids, ls=numbers.losses, lm=numbers.mean_loss)
        fields.update(sv=_list(numbers.saves), st=numbers.step_us, sd=numbers.step_sd_us, lb=_list(numbers.loader))
        fields.update(ck=numbers.clock_ppk, sk=_list(numbers.slowest), of=int(numbers.offset_applied))
        fields.update(ig=list(numbers.ignored) or None, dt=numbers.dtype)
    fields.update(su=entry.startup_ms, mem=entry.mem_mib)
    return {name: value for name, value in fields.items() if value is not None}


def _list(values: Optional[Tuple[int, ...]]) -> Optional[List[int]]:
    return None if values is None else list(values)


def _clip(text: str, most: int) -> str:
    """Printable ASCII: a character that JSON would escape into six must not burst the bound."""
    return "".join(char if " " <= char <= "~" and char not in '"\\' else "?" for char in text[:most])


def _keep_all(fields: List[Dict[str, Any]], _: Sequence[Entry]) -> List[Dict[str, Any]]:
    return fields


def _drop_reasons(fields: List[Dict[str, Any]], _: Sequence[Entry]) -> List[Dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "why"} for item in fields]


def _drop_unscored(fields: List[Dict[str, Any]], entries: Sequence[Entry]) -> List[Dict[str, Any]]:
    return [item if entries[at].scored else {} for at, item in enumerate(fields)]


def _drop_details(fields: List[Dict[str, Any]], _: Sequence[Entry]) -> List[Dict[str, Any]]:
    return [
        {name: value for name, value in item.items() if name not in ("sk", "su", "lb", "sd", "ig", "dt")}
        for item in fields
    ]


def _drop_numbers(fields: List[Dict[str, Any]], _: Sequence[Entry]) -> List[Dict[str, Any]]:
    kept = ("a", "i", "x", "xc", "n", "s", "d", "us")
    return [{name: value for name, value in item.items() if name in kept} for item in fields]

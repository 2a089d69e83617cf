"""What did each step do, for whoever reads a file? `metrics.jsonl` in the run's folder: rank 0's, a JSON object a line.

Times are integer nanoseconds and sizes bytes, as their names say; docs/trainer/metrics.md has every field. The file
goes on over restarts. What the account of the attempts before needs is read from its end: back to the last account
that no restart since then reaches behind, which is a checkpoint or two ago. A file of `LIMIT_BYTES` becomes
`metrics.older.jsonl`, in place of the one before. A line that a kill cut off is passed over. A disk that refuses a line
ends the file with one line on stderr, and never the training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from amdahl_trainer.goodput import Began, Settled, Spent

#: In the run's folder.
NAME = "metrics.jsonl"

#: What it is called once it is full, and how full that is: some 400,000 steps.
OLDER = "metrics.older.jsonl"
LIMIT_BYTES = 256 << 20

#: Read at once, from the end.
BLOCK_BYTES = 64 << 10

#: One encoder for all lines: making one costs as much as using it.
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class Journal:
    """The file, open at its end and unbuffered; without a path, nothing."""

    def __init__(self, path: Path | None) -> None:
        """Go on with what is there, on a line of its own."""
        self._path = path
        self._file: FileIO | None = None
        if path is None:
            return
        try:
            self._file = path.open("ab", buffering=0)
            if _is_cut_off(path):
                self._file.write(b"\n")
        except OSError as error:
            self._give_up(error)

    def write(self, kind: str, fields: dict[str, Any]) -> None:
        """One line: `trainer.<kind>/1`, the time and the fields."""
        self.append(kind, encode(fields)[1:-1])

    def append(self, kind: str, fields: str) -> None:
        """The same, of fields that are JSON already, without the braces. It is in the kernel's hands when this ends."""
        if self._file is None:
            return
        line = f'{{"schema":"trainer.{kind}/1","t_ns":{time.time_ns()},{fields}}}\n'.encode()
        try:
            if self._file.write(line) != len(line):
                self._give_up("the disk is full")
        except OSError as error:
            self._give_up(error)

    def turn(self) -> None:
        """Begin a new file if this one is full. Only an account may follow, since none is sought behind it."""
        if self._file is None or self._path is None:
            return
        try:
            if self._file.tell() < LIMIT_BYTES:
                return
            self._path.replace(self._path.with_name(OLDER))
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, why: object) -> None:
        self.close()
        print(f"amdahl_trainer: {self._path} ends here: {why}", file=sys.stderr)


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def read(path: Path, resumed: int) -> Iterator[Began | Spent | Settled]:
    """What happened in the attempts before one that begins with the state after step `resumed`, in order.

    An account stands for all before it, unless a restart since then threw away a part of what it counts.
    """
    found: list[Began | Spent] = []
    lowest = resumed
    settled = None
    for line in (line for file in (path, path.with_name(OLDER)) for line in _from_end(file)):
        event = _parse(line)
        if isinstance(event, Settled):
            settled = event, len(found)
            if event.step <= lowest or lowest == 0:  # a restart from nothing throws away all that it counts
                break
        elif event is not None:
            found.append(event)
            lowest = min(lowest, event.step) if isinstance(event, Began) else lowest
    if settled is not None and settled[1] == len(found):  # nothing is known of what was before it
        yield settled[0]
    yield from reversed(found)


def _from_end(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb", buffering=0) as file:
        at, rest = file.seek(0, 2), b""
        while at:
            size = min(at, BLOCK_BYTES)
            at = file.seek(at - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest


def _parse(line: bytes) -> Began | Spent | Settled | None:
    try:
        found = json.loads(line)
        if found["schema"] == "trainer.start/1":
            return Began(found["resumed_step"])
        if found["schema"] == "trainer.goodput/1":
            useful_ns, badput_ns = found["useful_ns"], found["badput_ns"]
            return Settled(found["step"], found["attempts"], useful_ns, badput_ns, found.get("launch_bound_ns", 0))
        launch_ns = found.get("all_launch_bound_ns", 0)
        return Spent(found["step"], found["all_ns"], launch_ns) if "all_ns" in found else None
    except (ValueError, KeyError, TypeError):  # cut off, or not ours
        return None

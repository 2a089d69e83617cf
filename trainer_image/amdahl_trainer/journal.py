"""What did each step do, for whoever reads a file? `metrics.jsonl` in the run's folder: rank 0's, a JSON object a line.

Times are integer nanoseconds and sizes bytes, as their names say; docs/trainer/metrics.md has every field. The file
goes on over restarts, so what is read from it at the start is the account of the attempts before. A line that a kill
cut off is passed over. A disk that refuses a line ends the file with one line on stderr, and never the training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amdahl_trainer.goodput import Began, Spent

#: In the run's folder.
NAME = "metrics.jsonl"

#: One encoder for all lines: making one costs as much as using it.
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class Journal:
    """The file, open at its end; without a path, nothing."""

    def __init__(self, path: Path | None) -> None:
        """Go on with what is there, on a line of its own."""
        self._path = path
        self._is_on = path is not None
        if path is None:
            return
        try:
            self._file = path.open("a")
            if _is_cut_off(path):
                self._file.write("\n")
        except OSError as error:
            self._give_up(error)

    def write(self, kind: str, fields: dict[str, Any]) -> None:
        """One line: `trainer.<kind>/1`, the time and the fields."""
        self.append(kind, encode(fields)[1:-1])

    def append(self, kind: str, fields: str) -> None:
        """The same, of fields that are JSON already, without the braces. It is in the kernel's hands when this ends."""
        if not self._is_on:
            return
        try:
            self._file.write(f'{{"schema":"trainer.{kind}/1","t_ns":{time.time_ns()},{fields}}}\n')
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """No more lines."""
        if self._is_on:
            self._is_on = False
            self._file.close()

    def _give_up(self, error: OSError) -> None:
        self._is_on = False
        print(f"amdahl_trainer: {self._path} ends here: {error}", file=sys.stderr)


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def read(path: Path) -> Iterator[Began | Spent]:
    """What happened in the attempts of a file, in order; nothing where there is none."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            event = _parse(line)
            if event is not None:
                yield event


def _parse(line: str) -> Began | Spent | None:
    try:
        found = json.loads(line)
        if found["schema"] == "trainer.start/1":
            return Began(found["resumed_step"])
        return Spent(found["step"], found["all_ns"]) if "all_ns" in found else None
    except (ValueError, KeyError, TypeError):  # cut off, or not ours
        return None

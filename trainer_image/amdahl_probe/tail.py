"""What is new in the rank files? Follows `rank-*.jsonl` as they grow and stamps each record on arrival.

The files are written by the job, so nothing is assumed: links and pipes are not opened, lines and reads are bounded,
and a file that shrinks or is replaced is a new run of that rank.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Dict, Optional

from amdahl_probe import records
from amdahl_probe.emit import MAX_LINE_BYTES
from amdahl_probe.windows import RankLog

#: Bounds of one look: ranks, and bytes of one rank (some 8,000 steps).
MAX_FILES = 1024
MAX_READ_BYTES = 4 << 20

NAME = re.compile(r"rank-(\d{1,4})\.jsonl")


class Tail:
    """All ranks of one launch."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: Dict[int, _File] = {}
        #: What each rank has said, by rank.
        self.logs: Dict[int, RankLog] = {}

    def poll(self) -> int:
        """Read what is new; the number of new records."""
        try:
            names = sorted(os.listdir(self._directory))  # noqa: PTH208 (names alone, a hundred times a second)
        except FileNotFoundError:
            return 0
        for name in names[: 4 * MAX_FILES]:
            match = NAME.fullmatch(name)
            rank = int(match.group(1)) if match else -1
            if match and rank not in self._files and len(self._files) < MAX_FILES:
                self._files[rank] = _File(self._directory / name)
                self.logs[rank] = RankLog()
        return sum(self._poll_rank(rank, file) for rank, file in self._files.items())

    def _poll_rank(self, rank: int, file: _File) -> int:
        data = file.read()
        if file.is_new_run:
            self.logs[rank] = RankLog()
        arrived_ns = time.monotonic_ns()
        lines = data.splitlines()
        for line in lines:
            self.logs[rank].add(records.parse(line), arrived_ns)
        return len(lines)


class _File:
    """One rank's file: whole lines, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: Optional[int] = None
        self._at = 0
        self._partial = b""
        self.is_new_run = False

    def read(self) -> bytes:
        """The whole lines added since the last look; b"" for a file that is missing or not a plain file."""
        self.is_new_run = False
        try:
            opened = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            state = os.fstat(opened)
            if not stat.S_ISREG(state.st_mode):
                return b""
            if self._inode is not None and (state.st_ino != self._inode or state.st_size < self._at):
                self._at, self._partial, self.is_new_run = 0, b"", True
            self._inode = state.st_ino
            data = os.pread(opened, MAX_READ_BYTES, self._at)
        finally:
            os.close(opened)
        self._at += len(data)
        whole, newline, rest = (self._partial + data).rpartition(b"\n")
        # A line that never ends is cut where it is already too long to be a record; the parser refuses it.
        self._partial = rest[: MAX_LINE_BYTES + 1]
        return whole + newline

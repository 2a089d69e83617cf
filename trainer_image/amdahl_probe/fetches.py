"""How long did the loader's workers take for each batch? A named pipe from them to the training process.

It works for forked and spawned workers alike, leaves batches as they are, drops what does not fit and never blocks.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
import weakref
from collections import deque
from pathlib import Path
from typing import Deque, Dict, Optional

#: Names the pipe to the loader's workers, which may be new interpreters.
PIPE_VARIABLE = "AMDAHL_LOADER_PIPE"

#: One fetch in the pipe: the iterator's base seed (which names it) and nanoseconds. Far below PIPE_BUF, so atomic.
FETCH = struct.Struct("<qq")


class FetchTimes:
    """How long each fetch took, told by workers to the training process."""

    def __init__(self) -> None:
        self.last_ns: Optional[int] = None
        self._read_end: Optional[int] = None
        self._write_end: Optional[int] = None
        self._pid = 0
        self._told: Dict[int, Deque[int]] = {}

    def listen(self) -> None:
        """In the training process: open the pipe, once, before workers start. Raises OSError."""
        if self._pid == os.getpid():
            return
        self.forget()
        self._pid = os.getpid()
        path = Path(tempfile.mkdtemp(prefix="amdahl-"), "fetches")
        os.mkfifo(path, 0o600)
        self._read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.environ[PIPE_VARIABLE] = str(path)
        weakref.finalize(self, _remove, path, os.getpid())

    def tell(self, base_seed: int, took_ns: int) -> None:
        """In a worker: send one fetch, or drop it."""
        if self._pid != os.getpid():
            self.forget()
            self._pid = os.getpid()
            path = os.environ.get(PIPE_VARIABLE)
            self._write_end = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC) if path else None
        if self._write_end is not None:
            try:
                os.write(self._write_end, FETCH.pack(base_seed, took_ns))
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EPIPE):
                    raise

    def take(self, base_seed: int) -> Optional[int]:
        """The oldest fetch of this iterator not yet taken, nanoseconds."""
        mine = self._told.get(base_seed)
        if mine:
            return mine.popleft()
        self._read()
        mine = self._told.get(base_seed)
        return mine.popleft() if mine else None

    def _read(self) -> None:
        while self._read_end is not None:
            try:
                told = os.read(self._read_end, FETCH.size * 256)
            except BlockingIOError:
                break
            for seed, took_ns in FETCH.iter_unpack(told[: len(told) // FETCH.size * FETCH.size]):
                self._told.setdefault(seed, deque(maxlen=4096)).append(took_ns)
            if len(told) < FETCH.size * 256:
                break

    def forget(self) -> None:
        """Close what a parent process had open."""
        for end in (self._read_end, self._write_end):
            if end is not None:
                os.close(end)
        self._read_end = self._write_end = None
        self._told.clear()


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path.parent, ignore_errors=True)

"""How is a file read that may shrink, or be replaced, while training runs? At offsets, and every read is checked.

A file that is mapped into memory and shrinks ends the process with SIGBUS, which no code can catch. A read that comes
back short is a value: it is an error with the file's name and both sizes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from amdahl_trainer.errors import DataError

#: Files kept open by a process; beyond it the one not read for longest is closed. Most limits are 1024.
OPEN_FILES = 128


class Reader:
    """Exact reads of files whose sizes are known. Forked processes may share one: an offset is no state."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, size: int, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` of a file that has `size` bytes.

        Raises:
            DataError: the file is missing, or has another size.
            OSError: the disk or the network failed, which may pass.
        """
        handle = self._handle(path, size)
        parts: list[bytes] = []
        left = count
        while left:  # one call gives at most 2 GiB
            try:
                part = os.pread(handle, left, offset + count - left)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            if not part:
                raise wrong_size(path, os.fstat(handle).st_size, size)
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close all files; the next read opens its own again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _handle(self, path: Path, size: int) -> int:
        handle = self._open.get(path)
        if handle is not None:
            self._open.move_to_end(path)
            return handle
        if len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise missing(path) from error
        self._open[path] = handle
        if (found := os.fstat(handle).st_size) != size:
            raise wrong_size(path, found, size)
        return handle


def check_size(path: Path, size: int) -> None:
    """Raises DataError unless there is a file of `size` bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights and its disk") from error
    if found != size:
        raise wrong_size(path, found, size)


def missing(path: Path) -> DataError:
    """The error for a file that the manifest names and that is not there."""
    return DataError(f"{path} is missing, though the manifest beside it names it; copy it again, or make it anew")


def wrong_size(path: Path, found: int, size: int) -> DataError:
    """The error for a file of another size than its manifest says."""
    what = "is truncated" if found < size else "has grown"
    return DataError(
        f"{path} {what}: {found} bytes, its manifest says {size}; copy it again, and change no file that is trained on"
    )

"""How is a file read that may shrink, or be replaced, while training runs? At offsets, and every read is checked.

A file that is mapped into memory and shrinks ends the process with SIGBUS, which no code can catch. A read that comes
back short is a value: it is an error with the file's name and both sizes.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from amdahl_trainer.errors import DataError

#: Files kept open by a process; beyond it the one opened first is closed. Most limits are 1024.
OPEN_FILES = 128


class File:
    """A file whose size is known."""

    def __init__(self, reader: Reader, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._reader = reader
        self.handle: int | None = None

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`.

        Raises:
            DataError: the file is missing, or has another size.
            OSError: the disk or the network failed, which may pass.
        """
        handle = self._reader.open(self) if self.handle is None else self.handle
        try:
            found = os.pread(handle, count, offset)
            while len(found) < count:  # one call gives at most 2 GiB
                part = os.pread(handle, count - len(found), offset + len(found))
                if not part:
                    raise wrong_size(self.path, os.fstat(handle).st_size, self.size)
                found += part
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return found


class Reader:
    """The files that a process has open. Forked processes may share one: a read at an offset leaves no trace."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._open: deque[File] = deque()

    def file(self, path: Path, size: int) -> File:
        """A file of `size` bytes, opened when it is first read."""
        return File(self, path, size)

    def open(self, file: File) -> int:
        """Open a file, and close another one if there are too many. Raises DataError, OSError."""
        while len(self._open) >= self._limit:
            self._close_first()
        try:
            handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise missing(file.path) from error
        if (found := os.fstat(handle).st_size) != file.size:
            os.close(handle)
            raise wrong_size(file.path, found, file.size)
        file.handle = handle
        self._open.append(file)
        return handle

    def close(self) -> None:
        """Close all files; the next read opens its own again."""
        while self._open:
            self._close_first()

    def _close_first(self) -> None:
        file = self._open.popleft()
        assert file.handle is not None, "what is listed is open"
        os.close(file.handle)
        file.handle = None


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

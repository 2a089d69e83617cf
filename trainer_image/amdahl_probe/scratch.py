"""What did a window leave on scratch storage, and how is it removed without touching anything else?

Only paths that the plan lists are looked at. Symbolic links are removed, never followed; other file systems mounted
inside are left alone; what was there before the window stays (though a file that the window changed stays changed).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import FrozenSet, Iterator, Optional, Sequence, Tuple

#: Bounds a walk through somebody's whole disk listed by mistake.
MAX_ENTRIES = 200_000


class ScratchError(OSError):
    """A scratch path that cannot be cleaned safely."""


class Scratch:
    """The scratch paths of a plan."""

    def __init__(self, paths: Sequence[Path], keep: Path) -> None:
        """`keep` (the supervisor's own directory) is never touched, even inside a scratch path."""
        self._paths = tuple(paths)
        self._keep = _identify(keep)

    def remember(self) -> Tuple[Optional[FrozenSet[Tuple[int, int]]], ...]:
        """What is there before a window: (device, inode) of all entries by path; None for a path that is not there."""
        return tuple(self._list(path) for path in self._paths)

    def clean(self, before: Tuple[Optional[FrozenSet[Tuple[int, int]]], ...]) -> None:
        """Remove what was not there before. Raises ScratchError if a path is no directory of its own."""
        for path, known in zip(self._paths, before):  # noqa: B905 (made from the same paths)
            opened = _open(path)
            if opened is None:
                continue
            try:
                self._clean_directory(opened, os.fstat(opened).st_dev, known or frozenset())
            finally:
                os.close(opened)
            if known is None:
                _remove_empty(path)

    def _list(self, path: Path) -> Optional[FrozenSet[Tuple[int, int]]]:
        opened = _open(path)
        if opened is None:
            return None
        os.close(opened)
        return frozenset(_walk(path))

    def _clean_directory(self, directory: int, device: int, known: FrozenSet[Tuple[int, int]]) -> bool:
        """Remove new entries below an open directory; True if it is empty afterwards."""
        is_empty = True
        for name in os.listdir(directory):  # relative to an open directory, so no link can divert it
            entry = os.stat(name, dir_fd=directory, follow_symlinks=False)
            identity = (entry.st_dev, entry.st_ino)
            if entry.st_dev != device or identity == self._keep:
                is_empty = False
            elif stat.S_ISDIR(entry.st_mode):
                inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    is_bare = self._clean_directory(inside, device, known)
                finally:
                    os.close(inside)
                if is_bare and identity not in known:
                    os.rmdir(name, dir_fd=directory)
                else:
                    is_empty = False
            elif identity in known:
                is_empty = False
            else:
                os.unlink(name, dir_fd=directory)
        return is_empty


def _open(path: Path) -> Optional[int]:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScratchError(f"scratch path {str(path)!r} is not a directory of its own: {error.strerror}") from error


def _walk(path: Path) -> Iterator[Tuple[int, int]]:
    count = 0
    for _, folders, files, directory in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            entry = os.stat(name, dir_fd=directory, follow_symlinks=False)
            count += 1
            if count > MAX_ENTRIES:
                raise ScratchError(f"scratch path {str(path)!r} holds more than {MAX_ENTRIES} entries")
            yield entry.st_dev, entry.st_ino


def _identify(path: Path) -> Optional[Tuple[int, int]]:
    try:
        entry = path.stat()
    except FileNotFoundError:
        return None
    return entry.st_dev, entry.st_ino


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:  # something of another file system lies in it
        return

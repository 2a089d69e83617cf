"""Which files belong to the checkpoint that was just written? Paths only: nothing here looks at the disk.

A checkpoint is often written beside its name and renamed, and the oldest is removed afterwards. Both free the space of
a file as large as the one written, which takes as long.
"""

from __future__ import annotations

# ruff: noqa: PTH100, PTH115, PTH120 (text alone: `Path.resolve` would look at the disk)
import os
from collections import deque
from pathlib import PurePath
from typing import Any, Deque, Iterator, Mapping, Optional, Sequence

#: Files of one checkpoint that are remembered; one of more files is known by its newest.
MAX_WRITTEN = 64

#: What a function that saves, or one that renames, may call the place it writes to, when it is not its second argument.
TARGETS = ("f", "filename", "checkpoint_id", "storage_writer", "dst")

#: What a function that renames or removes may call the path it starts from, when it is not its first argument.
SOURCES = ("src", "path")

#: Arguments that make a path relative to an open directory: such calls are left alone.
DIRECTORIES = ("dir_fd", "src_dir_fd", "dst_dir_fd")


class Written:
    """Where the files of one checkpoint lie, and what lies beside them."""

    def __init__(self) -> None:
        self._paths: Deque[str] = deque(maxlen=MAX_WRITTEN)

    def clear(self) -> None:
        """Another checkpoint begins."""
        self._paths.clear()

    def add(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Remember where a call wrote to, if it says so."""
        for target in _find(1, TARGETS, args, kwargs):
            path = to_path(target)
            if path is not None and path not in self._paths:
                self._paths.append(path)

    def holds_source(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call moves a file of the checkpoint, or a directory (at most two levels up) that holds one."""
        source = _find_source(args, kwargs)
        return source is not None and any(source in _ancestors(path, 2) for path in self._paths)

    def is_beside_file(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call removes something from the checkpoint's own directory."""
        return self._is_beside(args, kwargs, 1)

    def is_beside_directory(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """The same for a directory, which may also lie beside the one that holds the checkpoint's files."""
        return self._is_beside(args, kwargs, 2)

    def _is_beside(self, args: Sequence[Any], kwargs: Mapping[str, Any], levels: int) -> bool:
        source = _find_source(args, kwargs)
        return source is not None and any(os.path.dirname(source) in _ancestors(path, levels) for path in self._paths)


def to_path(target: Any) -> Optional[str]:
    """The absolute path of a path, an open file, or an object that keeps its path; None for anything else."""
    if isinstance(target, (str, bytes, PurePath)):
        try:
            return os.path.abspath(os.fsdecode(target))
        except OSError:  # the working directory is gone
            return None
    named = getattr(target, "name", None) or getattr(target, "path", None)
    if isinstance(named, int):  # a file made from a descriptor has its number for a name
        try:
            return os.readlink(f"/proc/self/fd/{named}")
        except OSError:
            return None
    return to_path(named) if isinstance(named, (str, bytes, PurePath)) else None


def _find_source(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Optional[str]:
    if any(kwargs.get(name) is not None for name in DIRECTORIES):
        return None
    return next((to_path(source) for source in _find(0, SOURCES, args, kwargs)), None)


def _find(at: int, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    yield from args[at : at + 1]
    yield from (kwargs[name] for name in names if kwargs.get(name) is not None)


def _ancestors(path: str, levels: int) -> Iterator[str]:
    """The path itself and the directories above it; the root, which holds everything, is nobody's."""
    for _ in range(levels + 1):
        if path == os.path.dirname(path):
            return
        yield path
        path = os.path.dirname(path)

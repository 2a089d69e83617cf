"""From where does a launch begin? From a copy of the checkpoint that the plan names, on scratch storage.

The original is the job's own and is only read. A checkpoint that would fill the scratch storage is not copied: the
launch then begins from nothing, as it does where there is no checkpoint yet.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Optional, Sequence, Tuple

#: A quarter of the scratch storage of a pod: the program's own saves have to fit beside the copy.
MAX_BYTES = 16 << 30
MAX_ENTRIES = 100_000


class Base:
    """What the scratch paths of a plan begin as."""

    def __init__(self, scratch: Sequence[Path], base: Sequence[Optional[Path]], max_bytes: int = MAX_BYTES) -> None:
        pairs = [(path, source) for path, source in zip(scratch, base) if source is not None]  # noqa: B905 (checked)
        self._pairs: Tuple[Tuple[Path, Path], ...] = tuple(pair for pair in pairs if pair[1].is_dir())
        held_bytes, entries = _measure([source for _, source in self._pairs])
        if held_bytes > max_bytes or entries > MAX_ENTRIES:
            sys.stderr.write(
                f"amdahl_probe.supervise: begins without the checkpoint: {held_bytes >> 20} MiB in {entries} files, "
                f"{max_bytes >> 20} MiB in {MAX_ENTRIES} are copied\n"
            )
            self._pairs = ()

    def restore(self) -> None:
        """Put the copy there, before a launch. Raises OSError."""
        for path, source in self._pairs:
            path.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, path, symlinks=True, ignore=_leave_specials, dirs_exist_ok=True)


def _measure(folders: Sequence[Path]) -> Tuple[int, int]:
    """Bytes and entries below the folders; counting stops where there are too many."""
    held_bytes = entries = 0
    for folder in folders:
        for parent, folders_in, files in os.walk(folder):
            entries += len(folders_in) + len(files)
            if entries > MAX_ENTRIES:
                return held_bytes, entries
            held_bytes += sum(os.lstat(os.path.join(parent, name)).st_size for name in files)  # noqa: PTH118 (speed)
    return held_bytes, entries


def _leave_specials(folder: str, names: "list[str]") -> "list[str]":
    """Pipes, sockets and devices are nobody's checkpoint; a copy would wait for them for ever."""
    modes = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}  # noqa: PTH118 (speed)
    return [
        name for name, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    ]

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
            _copy(source, path)


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


def _copy(source: Path, target: Path) -> None:
    """Copy what is in a folder, with its times: programs look for the newest. The target itself may be another user's.

    Pipes, sockets and devices are nobody's checkpoint; a copy would wait for them for ever.
    """
    for entry in os.scandir(source):
        mode, new = entry.stat(follow_symlinks=False).st_mode, target / entry.name
        if stat.S_ISLNK(mode):
            new.symlink_to(os.readlink(entry.path))  # noqa: PTH115 (as it is written, not where it leads)
        elif stat.S_ISDIR(mode):
            new.mkdir()
            _copy(Path(entry.path), new)
            shutil.copystat(entry.path, new)
        elif stat.S_ISREG(mode):
            shutil.copy2(entry.path, new)

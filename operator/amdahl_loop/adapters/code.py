"""Which program is this, where no image holds it?

A verdict holds for the code it was reached on. The digest covers what may change under the same command: the files that
the command names, every Python file below the working directory, and the installed packages that the caller names. It
is bounded, so that a job beside a large tree starts at once; what lies beyond the bounds counts with its name and size.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from amdahl_loop.domain.resources import TrainingJob

MAX_FILES = 2_000
"""Python files that are looked at; a training program has a few dozen."""
MAX_ENTRIES = 50_000
"""Directory entries that are looked at to find them: a data set below the working directory must not delay the loop."""
MAX_BYTES = 1 << 20
"""Larger files are data or weights: they count with their name and size."""
_NOT_OURS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def digest_program(job: TrainingJob, folder: Path, packages: Iterable[str] = ()) -> str:
    """16 hex digits over the job's program; `folder` is the process's working directory.

    `packages` are names and versions of what it may import, in a fixed order.
    """
    trainer = job.spec.template.trainer
    named = [word for word in (*trainer.command, *trainer.args) if _is_file(folder / word)]
    found = [str(path.relative_to(folder)) for path in _python_files(folder)]
    digest = hashlib.sha256()
    for name in (*named, *found):
        digest.update(name.encode(errors="surrogateescape") + b"\0" + _content(folder / name) + b"\0")
    for package in packages:
        digest.update(package.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a word of a command may be too long for a path, or hold a NUL
        return False


def _python_files(folder: Path) -> Iterator[Path]:
    """Python files below the folder in a fixed order; hidden folders and installed packages are left out."""
    found = seen = 0
    for where, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES:
            return
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_OURS)
        for name in sorted(files):
            if name.endswith(".py"):
                yield Path(where, name)
                found += 1
                if found == MAX_FILES:
                    return


def _content(path: Path) -> bytes:
    """The file's digest, or its size where it is large; a file that cannot be read counts with its name alone."""
    try:
        size = path.stat().st_size
        return hashlib.sha256(path.read_bytes()).digest() if size <= MAX_BYTES else str(size).encode()
    except OSError:
        return b""

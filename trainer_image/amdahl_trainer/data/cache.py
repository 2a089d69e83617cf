"""How is something expensive built once, by whichever process comes first, and never seen half built?

A directory is built under another name and renamed. Readers need no lock, and a cache that is already there is only
read: it may lie on a read-only file system.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from amdahl_trainer.errors import ConfigError


def build_once(target: Path, build: Callable[[Path], None], setting: str = "data.cache_dir") -> Path:
    """`target`, made by `build(empty directory)` unless it exists. `setting` is what says where it lies.

    Raises:
        ConfigError: the cache cannot be written.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ConfigError(
            f"{setting}: {target.parent} cannot be written ({error.strerror}); set {setting} to a directory "
            f"that can, or to one that already holds {target.name}"
        ) from error
    try:
        build(draft)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as error:
        if not target.is_dir():  # otherwise another process was faster: its build is the same
            raise ConfigError(f"{setting}: building {target} failed ({error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target

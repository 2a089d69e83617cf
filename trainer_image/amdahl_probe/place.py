"""Which rank is this process, and is it alone in being it?"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional


class Place(NamedTuple):
    """Global rank, number of ranks, and whether this is the first rank of its machine."""

    rank: int
    world: int
    is_first: bool


def find(dist: Any, env: Mapping[str, str]) -> Place:
    """From the process group where there is one, else from the launcher's environment, else the only rank."""
    if dist.is_available() and dist.is_initialized():
        rank, world = int(dist.get_rank()), int(dist.get_world_size())
    else:
        rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
    return Place(rank, world, int(env.get("LOCAL_RANK", str(rank))) == 0)


def take_lock(directory: Path, rank: int) -> Optional[int]:
    """Hold `rank-<rank>.lock` for the life of this process; the descriptor, or None where there are no locks.

    A script's helper processes (evaluation, preprocessing) have no rank of their own and would overwrite the records
    of the process that trains. Raises BlockingIOError while another process is that rank.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory / f"rank-{rank}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    except OSError:  # a file system without locks: go on without
        os.close(lock)
        return None
    return lock

"""Which processes belong to a launch, what do they hold, and are they gone? Reads /proc, and asks prctl for help.

A process that daemonises leaves its parent and its process group, but not the nearest *subreaper* above it: whoever
called `become_subreaper` inherits it, so walking down from there finds everything that was ever started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Callable, Dict, List, NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """One process: resident bytes (shared pages included) and processor time so far."""

    pid: int
    parent: int
    state: str
    cpu_ticks: int
    rss_bytes: int


def become_subreaper() -> None:
    """Inherit orphaned descendants. Raises OSError where the kernel refuses."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent() -> None:
    """Be killed when the parent dies. For a child between fork and exec: one system call, no allocation of locks."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def find_descendants(root: int) -> List[Process]:
    """All processes below `root`, itself and zombies not included."""
    children: Dict[int, List[Process]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (names alone, twenty times a second on big machines)
        if name.isdecimal():
            process = _read(int(name))
            if process is not None:
                children.setdefault(process.parent, []).append(process)
    found: List[Process] = []
    below = [root]
    while below:
        inside = children.pop(below.pop(), [])
        found += inside
        below += [process.pid for process in inside]
    return [process for process in found if process.state != "Z"]


def measure_memory(processes: List[Process]) -> int:
    """Bytes the processes hold together, pages they share counted once (Pss; resident size where that is refused)."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:  # noqa: PTH123 (hot path)
                total += next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
        except (OSError, ValueError, StopIteration):
            total += process.rss_bytes
    return total


def kill_descendants(root: int, reap: Callable[[], None], timeout_s: float = 10.0) -> bool:
    """SIGKILL everything below `root` until nothing is left; `reap` collects the dead. True when all are gone."""
    until = time.monotonic() + timeout_s
    while True:
        reap()
        alive = find_descendants(root)
        if not alive:
            return True
        if time.monotonic() > until:
            return False
        for process in alive:
            send(process.pid, signal.SIGKILL)
        time.sleep(0.005)


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _read(pid: int) -> "Process | None":
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (hot path)
            fields = file.read().rsplit(b")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
        return Process(pid, int(fields[1]), fields[0].decode(), ticks, int(fields[21]) * PAGE_BYTES)
    except (OSError, IndexError, ValueError):
        return None


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

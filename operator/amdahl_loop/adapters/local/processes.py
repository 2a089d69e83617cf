"""Which processes are ours, are they the ones we mean, and are they gone? Reads /proc; the standard library only."""

import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

RUN_DIR_VARIABLE = "AMDAHL_RUN_DIR"
"""Every process of a run has it in its environment: how stray ones are found."""


class ProcessId(NamedTuple):
    """A process for good: a pid alone may have been given to another since."""

    pid: int
    start_ticks: int
    boot: str

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return self.boot == boot_id() and read_start_ticks(self.pid) == self.start_ticks

    def send(self, number: signal.Signals) -> None:
        """Signal this very process, if it still runs."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def boot_id() -> str:
    """Changes with every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """A running process's identity; None when there is none."""
    start_ticks = read_start_ticks(pid)
    return None if start_ticks is None else ProcessId(pid, start_ticks, boot_id())


def read_start_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot (proc(5), field 22); None for none or a zombie."""
    fields = _read_stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _read_stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on: what stands before it may hold any character."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - names alone


def find_descendants(root: int) -> list[int]:
    """Everything alive below a process, itself left out."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _read_stat(pid)
        if fields is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(pid)
    found, below = [], [root]
    while below:
        inside = children.pop(below.pop(), [])
        found += inside
        below += inside
    return found


def find_strays(run_dir: Path) -> list[int]:
    """Processes of a run by their environment, and what is below them, whatever its own environment says.

    None of other users' processes can be seen, nor are they ours.
    """
    marker = os.fsencode(f"{RUN_DIR_VARIABLE}={run_dir}")
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    below = {child for pid in found for child in find_descendants(pid)}
    return [pid for pid in {*found, *below} if pid != os.getpid() and read_start_ticks(pid) is not None]


def kill_all(find: Callable[[], list[int]], timeout_s: float = 10.0) -> bool:
    """SIGKILL whatever `find` finds until it finds nothing; False when something outlived the timeout."""
    until = time.monotonic() + timeout_s
    while alive := find():
        if time.monotonic() > until:
            return False
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, also folders that their owner may not enter; absent is no error."""

    def open_up(_: object, name: str, __: object) -> None:
        """Rights were taken away inside (overlayfs does so itself): give them back, then go on."""
        with contextlib.suppress(FileNotFoundError):
            for folder in (Path(name).parent, Path(name)):
                if not folder.is_symlink() and folder.is_dir():
                    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
            target = Path(name)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)

    if path.exists():
        shutil.rmtree(path, onerror=open_up)

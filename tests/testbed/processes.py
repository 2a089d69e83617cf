"""How are servers started, recognised and stopped, so that no stranger's process is ever hit?

A process is known by its id together with its start time: ids are used again, the pair is not. Signals go through a pidfd, opened before the
pair is checked, so that nothing can slip in between.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat: clock ticks between boot and the start


def identify(pid: int) -> Process | None:
    """The running process with this id; None when there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def is_alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return identify(process.pid) == process


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it has ended already."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return descriptor
    os.close(descriptor)
    return None


def stop(process: Process, grace_s: float = 10.0) -> None:
    """Ask the process to end, wait, then kill it. Does nothing when it has ended or its id belongs to another by now."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return
    try:
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], wait_s)[0]:
                return
    finally:
        os.close(descriptor)


def spawn(
    command: Sequence[str | Path], log: Path, *, dies_with_us: bool = True, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, its output appended to `log`.

    With `dies_with_us` the kernel kills it when the calling thread ends, however that happens: call it from a main thread.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if dies_with_us else None,  # noqa: PLW1509 - the keeper has one thread
        )


def _die_with_parent() -> None:
    """Runs in the child before exec: no imports, no allocation beyond the call."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"

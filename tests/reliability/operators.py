"""How does a test hold an operator? A process that can be killed, stopped for a while, and started again."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

END_S = 30.0
"""A bound on hanging: SIGTERM ends an operator as soon as its pass is over."""


@dataclass
class OperatorProcess:
    """A running operator, held by a pidfd: its id may be somebody else's once it has ended."""

    pid: int
    handle: int

    @classmethod
    def hold(cls, pid: int) -> Self:
        """Hold the process with this id."""
        return cls(pid, os.pidfd_open(pid))

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return bool(select.select([self.handle], [], [], 0)[0])

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing of it runs."""
        self.send(signal.SIGKILL)
        assert select.select([self.handle], [], [], END_S)[0], "a killed process is still there"

    def close(self) -> None:
        """End it in whatever way it takes, and let go of it."""
        self.send(signal.SIGCONT)
        self.kill()
        os.close(self.handle)


class Nursery:
    """Operators as forks of one process that has imported everything (`nursery.py`)."""

    def __init__(self, process: subprocess.Popen[str], path: str) -> None:
        self._process, self._path = process, path

    def start(self, settings: Mapping[str, str], log: Path, clock: Path | None = None) -> OperatorProcess:
        """A new operator with these settings (names without their prefix); `clock` holds the seconds by which its clock is wrong."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
        environment |= {"AMDAHL_LOOP_LOG_FORMAT": "plain", "AMDAHL_LOOP_METRICS_PORT": "0"}
        environment |= {"AMDAHL_LOOP_HEALTH_PORT": "0", "PYTHONPATH": self._path}
        environment |= {f"AMDAHL_LOOP_{name}": value for name, value in settings.items()}
        environment |= {} if clock is None else {"RELIABILITY_CLOCK": str(clock)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"environment": environment, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return OperatorProcess.hold(int(self._process.stdout.readline()))


@contextmanager
def open_nursery(source: Path | None = None) -> Iterator[Nursery]:
    """A nursery for as long as the context lasts; its operators end with it. `source`: another version's checkout."""
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    path = "" if source is None else f"{source}/operator{os.pathsep}{source}/trainer_image"
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Nursery(process, path)
        finally:
            process.kill()

"""One launch of the command, seen from the supervisor: is it alive, what does it hold, stop it."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence

from amdahl_probe import guard, process_tree

#: How often the process tree is looked at, seconds: a walk of /proc takes some milliseconds.
SAMPLE_S = 0.5

#: Growth of the resident size that makes the dear, exact reading of memory worth while.
NEWS_RATIO = 1.02


class Exit(NamedTuple):
    """How the command ended: exit code or minus the signal, or None with the reason why it never ran."""

    code: Optional[int]
    why: str = ""


class Launch:
    """The command below a guard of its own."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Dict[str, str], log_path: Path) -> None:
        control, self._control = os.pipe()
        self._report, report = os.pipe()
        self.log_path = log_path
        self.launched_ns = time.monotonic_ns()
        self._guard = os.fork()
        if self._guard == 0:
            os.close(self._control)
            os.close(self._report)
            guard.become_guard(control, report, log_path, command, cwd, env)
        os.close(control)
        os.close(report)
        self.exit: Optional[Exit] = None
        self.peak_bytes = self.cpu_ticks = 0
        self._resident_bytes = 0
        self._sampled_s = 0.0

    def poll(self) -> Optional[Exit]:
        """How the command ended, once it and all it started are gone."""
        if self.exit is None and select.select([self._report], [], [], 0)[0]:
            self._settle(os.read(self._report, 1000).decode(errors="replace"))
        return self.exit

    def stop(self, grace_s: float) -> Exit:
        """SIGTERM to the process group, `grace_s`, SIGKILL to the whole tree. Returns when nothing is left."""
        if self.poll() is None:
            try:
                os.write(self._control, f"stop {grace_s}\n".encode())
            except BrokenPipeError:
                grace_s = 0.0
        return self._wait(grace_s + 15)

    def kill(self) -> Exit:
        """SIGKILL to the whole tree, now."""
        if self.poll() is None:
            os.close(self._control)
            self._control = -1
        return self._wait(15)

    def sample(self, now_s: float, is_last: bool = False) -> Optional[int]:
        """Look at the process tree when it is time to: bytes held, or None. Also keeps `peak_bytes` and `cpu_ticks`.

        `is_last` looks in any case, so that a window shorter than the sampling has a peak too.
        """
        if self.exit is not None or (now_s - self._sampled_s < SAMPLE_S and not is_last):
            return None
        self._sampled_s = now_s
        processes = process_tree.find_descendants(self._guard)
        self.cpu_ticks = max(self.cpu_ticks, sum(process.cpu_ticks for process in processes))
        resident_bytes = sum(process.rss_bytes for process in processes)
        if resident_bytes <= self._resident_bytes * NEWS_RATIO:
            return None
        self._resident_bytes = resident_bytes
        held_bytes = process_tree.measure_memory(processes)
        self.peak_bytes = max(self.peak_bytes, held_bytes)
        return held_bytes

    def begin_window(self) -> None:
        """Forget the memory peak: what follows belongs to another window of the same process."""
        self.peak_bytes = self._resident_bytes = 0

    def _wait(self, at_most_s: float) -> Exit:
        until = time.monotonic() + at_most_s
        while self.poll() is None and time.monotonic() < until:
            select.select([self._report], [], [], 0.1)
        return self.exit if self.exit is not None else self._settle("")

    def _settle(self, told: str) -> Exit:
        """Take the guard's last word, make sure of the end, and release everything."""
        word, _, rest = told.strip().partition(" ")
        if word == "exit":
            self.exit = Exit(int(rest) if rest.lstrip("-").isdecimal() else None, "")
        else:
            self.exit = Exit(127, f"cannot run: {rest}") if word == "fail" else Exit(None, "the guard died")
            if word != "fail":
                process_tree.send(self._guard, 9)
        os.waitpid(self._guard, 0)
        if word not in ("exit", "fail"):
            process_tree.kill_descendants(os.getpid(), _reap)
        for end in (self._control, self._report):
            if end >= 0:
                os.close(end)
        return self.exit


def _reap() -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return

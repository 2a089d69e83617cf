"""How is a command run so that nothing of it can be left behind? A guard process stands between it and the supervisor.

The guard owns the command's process tree: it is the subreaper, copies the output into a bounded log, reports the exit
code, and ends the tree when told to, or when the supervisor's end of the control pipe closes, which happens however
the supervisor dies. Should the guard itself be killed, the kernel kills the command (parent death signal) and hands
the rest to the supervisor, a subreaper too.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Deque, Dict, NoReturn, Optional, Sequence

from amdahl_probe import process_tree

#: How much of the output is kept: the beginning and the end, half a MiB each.
LOG_HALF_BYTES = 512 * 1024

#: Longest wait for a signal, a byte or an exit to be noticed, seconds.
TICK_S = 0.02


class BoundedLog:
    """A log file that keeps the first and the last `half_bytes`. Writing never fails the run."""

    def __init__(self, path: Path, half_bytes: int = LOG_HALF_BYTES) -> None:
        self._file = path.open("wb", buffering=0)
        self._room = self._half = half_bytes
        self._tail: Deque[bytes] = deque()
        self._tail_bytes = self._dropped = 0

    def write(self, data: bytes) -> None:
        """Take in output."""
        head, rest = data[: self._room], data[self._room :]
        if head:
            self._put(head)
            self._room -= len(head)
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail_bytes - len(self._tail[0]) >= self._half:
                gone = self._tail.popleft()
                self._tail_bytes -= len(gone)
                self._dropped += len(gone)

    def close(self) -> None:
        """Write the end, after a line that says how much was left out."""
        if self._dropped:
            self._put(b"\n[... %d bytes left out ...]\n" % self._dropped)
        self._put(b"".join(self._tail))
        self._file.close()

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError:  # a full disk: the output is lost, the run is not
            self._dropped += len(data)


class Guard:
    """The guard's side. Runs in a forked child of the supervisor and never returns to its code."""

    def __init__(self, control: int, report: int, log: BoundedLog) -> None:
        self._control, self._report, self._log = control, report, log
        self._pid = 0
        self._code: Optional[int] = None
        self._kill_at: Optional[float] = None

    def run(self, command: Sequence[str], cwd: Path, env: Dict[str, str]) -> None:
        """Run the command to its end, or until told to stop; then end whatever is left of its tree."""
        output = self._launch(command, cwd, env)
        if output is None:
            return
        while self._code is None:
            ready, _, _ = select.select([self._control, output], [], [], TICK_S)
            if output in ready:
                self._copy(output)
            if self._control in ready and not self._obey():
                break
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                break
            self._reap()
        process_tree.kill_descendants(os.getpid(), self._reap)
        self._drain(output)
        self._log.close()
        self._say(f"exit {self._code}")

    def _launch(self, command: Sequence[str], cwd: Path, env: Dict[str, str]) -> Optional[int]:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=process_tree.die_with_parent,  # noqa: PLW1509 (the guard has one thread)
            )
        except (OSError, ValueError) as error:
            self._log.close()
            self._say(f"fail {error}")
            return None
        assert process.stdout is not None
        self._pid, output = process.pid, os.dup(process.stdout.fileno())
        process.stdout.close()
        process.returncode = 0  # reaped here, by pid: the object must not wait for it
        os.set_blocking(output, False)
        return output

    def _obey(self) -> bool:
        """Read the control pipe: "stop <grace>" begins the end, a closed pipe means now."""
        order = os.read(self._control, 64).decode()
        if not order:
            return False
        self._kill_at = time.monotonic() + float(order.split()[1])
        try:
            os.killpg(self._pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True

    def _copy(self, output: int) -> bool:
        try:
            data = os.read(output, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            time.sleep(TICK_S)  # the command closed its output and goes on: select would spin
            return False
        self._log.write(data)
        return True

    def _drain(self, output: int) -> None:
        while self._copy(output):
            pass

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._code = os.waitstatus_to_exitcode(status)

    def _say(self, text: str) -> None:
        try:
            os.write(self._report, text[:500].encode() + b"\n")
        except BrokenPipeError:  # the supervisor is gone
            return


def become_guard(
    control: int, report: int, log_path: Path, command: Sequence[str], cwd: Path, env: Dict[str, str]
) -> NoReturn:
    """In a fresh fork: be the guard until the command's tree is gone, then exit."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _stay)  # a handler, since an ignored signal would stay ignored in the command
        process_tree.become_subreaper()
        Guard(control, report, BoundedLog(log_path)).run(command, cwd, env)
        code = 0
    except BaseException as error:
        sys.stderr.write(f"amdahl_probe: guard: {error!r}\n")
    finally:
        os._exit(code)


def _stay(_number: int, _frame: object) -> None:
    """The supervisor alone tells a guard to stop."""

"""Who makes sure that a run ends, and that nothing of it is left? One keeper process per run, outside of the loop.

The keeper takes the machine's turn, starts the supervisor as the only child of a fresh PID namespace, keeps the time
limit and writes down how it ended. Every way out leaves nothing behind:

- the loop dies or tells the keeper to stop: it ends the run and removes its traces;
- the keeper is killed: the kernel kills the namespace's first process, and with it everything inside;
- no PID namespace is to be had: the keeper inherits whatever is orphaned below it, and kills that at the end.
"""

import fcntl
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from amdahl_loop.adapters.local import linux
from amdahl_loop.adapters.local.processes import find_descendants, identify, kill_all, remove_tree

RUN_FILE = "keeper.json"
RESULT_FILE = "result.json"
STOP_S = 30.0
"""How long a supervisor that was told to stop may take: it waits for its own command's grace."""
MIN_FREE_BYTES = 32 * 2**20
"""Less than this left on the scratch storage at the end means that the run may have failed for want of space."""

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


class Charge(NamedTuple):
    """What a keeper is given to keep."""

    run_dir: str
    supervisor: tuple[str, ...]
    """The supervisor's command line; the environment is the keeper's own."""
    lock: str
    """File whose lock is the machine's turn."""
    deadline_s: float
    loop_pid: int
    temporary: tuple[str, ...]
    """Folders to remove with the run's scratch storage."""


class _Ended(NamedTuple):
    code: int | None
    why: str


class Keeper:
    """Keeps one run."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._run_dir = Path(charge.run_dir)

    def keep(self) -> None:
        """Wait for the machine's turn, run, write the result."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        linux.signal_on_parent_death(signal.SIGTERM)
        linux.become_subreaper()
        self._write(RUN_FILE, {"keeper": identify(os.getpid()), "started_at_s": None})
        with Path(self._charge.lock).open("wb") as lock:
            if not self._take_turn(lock.fileno()):
                return self._leave_no_trace()
            started_at_s, begun_s = time.time(), time.monotonic()
            self._write(RUN_FILE, {"keeper": identify(os.getpid()), "started_at_s": started_at_s})
            ended = self._run()
            kill_all(lambda: find_descendants(os.getpid()))
            held_s = time.monotonic() - begun_s
        if ended is None:
            return self._leave_no_trace()
        full = self._describe_full_disk()
        self._remove_scratch()
        result = {"started_at_s": started_at_s, "held_s": held_s} | ended._asdict() | {"full": full}
        return self._write(RESULT_FILE, result)

    def _is_told_to_stop(self, number: int) -> bool:
        """A signal other than a child's end, or the loop is gone (its death may have come before we asked for word)."""
        return number in _SIGNALS - {signal.SIGCHLD} or os.getppid() != self._charge.loop_pid

    def _take_turn(self, lock: int) -> bool:
        """Wait until no other run uses the machine; False when told to stop meanwhile."""
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                told = signal.sigtimedwait(_SIGNALS, 0.1)
            else:
                told = signal.sigtimedwait(_SIGNALS, 0)
                return not self._is_told_to_stop(told.si_signo if told else 0)
            if self._is_told_to_stop(told.si_signo if told else 0):
                return False

    def _run(self) -> _Ended | None:
        """Run the supervisor to its end; None when told to stop."""
        contained = _can_contain()
        if contained:
            linux.unshare(linux.CLONE_NEWPID)
        alive, held = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(held)
            _become_child(self._charge, contained, alive)
        until_s = time.monotonic() + self._charge.deadline_s
        while True:
            told = signal.sigtimedwait(_SIGNALS, max(0.0, min(1.0, until_s - time.monotonic())))
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return _Ended(_shell_code(status), "")
            stopped = self._is_told_to_stop(told.si_signo if told else 0)
            if stopped or time.monotonic() >= until_s:
                _stop(child)
                why = f"the run exceeded its time limit of {self._charge.deadline_s:.0f} s and was stopped"
                return None if stopped else _Ended(None, why)

    def _describe_full_disk(self) -> str:
        free_bytes = os.statvfs(self._run_dir).f_bavail * os.statvfs(self._run_dir).f_frsize
        if free_bytes >= MIN_FREE_BYTES:
            return ""
        return f"only {free_bytes >> 20} MiB are free at {self._run_dir}; free some space or move the state folder"

    def _remove_scratch(self) -> None:
        for folder in self._charge.temporary:
            remove_tree(Path(folder))

    def _leave_no_trace(self) -> None:
        self._remove_scratch()
        remove_tree(self._run_dir)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        draft = self._run_dir / f"{name}.new"
        draft.write_text(json.dumps(content))
        draft.replace(self._run_dir / name)


def _can_contain() -> bool:
    """Whether this machine gives us a PID namespace with a /proc of its own; tried in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(linux.CLONE_NEWPID)
            inner = os.fork()
            if inner == 0:
                _mount_proc()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        except OSError:
            os._exit(1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _mount_proc() -> None:
    """Show the namespace's own processes, to its own processes."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.make_mounts_private()
    linux.mount("proc", "/proc", "proc")


def _become_child(charge: Charge, contained: bool, alive: int) -> NoReturn:
    """In a fresh fork: the namespace's first process, or the supervisor itself."""
    try:
        linux.signal_on_parent_death(signal.SIGKILL)
        if select.select([alive], [], [], 0)[0]:  # readable means closed: the keeper died before we asked for word
            os._exit(1)
        if not contained:
            _become_supervisor(charge)
        _mount_proc()
        supervisor = os.fork()
        if supervisor == 0:
            _become_supervisor(charge)
        os._exit(_reap_until(supervisor))
    except BaseException as error:  # noqa: BLE001 - a fork must never return into its parent's code
        sys.stderr.write(f"amdahl-loop: the run cannot be started: {error}\n")
        os._exit(1)


def _become_supervisor(charge: Charge) -> NoReturn:
    linux.signal_on_parent_death(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.chdir(charge.run_dir)
    os.execv(charge.supervisor[0], charge.supervisor)  # noqa: S606 - no shell is meant


def _reap_until(supervisor: int) -> int:
    """Be the first process of the namespace: collect the dead, pass signals on, end with the supervisor."""
    while True:
        told = signal.sigwaitinfo(_SIGNALS).si_signo
        if told != signal.SIGCHLD:
            os.kill(supervisor, told)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == supervisor:
                return _shell_code(status)


def _shell_code(status: int) -> int:
    """Exit code as a shell gives it: 128 and the signal's number for a process that was killed."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _stop(child: int) -> None:
    """Let the supervisor end its windows in order; then the kernel ends what is left."""
    os.kill(child, signal.SIGTERM)
    until_s = time.monotonic() + STOP_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)


def main() -> None:
    """`CHARGE.json`: keep the run that it describes."""
    raw = json.loads(Path(sys.argv[1]).read_text())
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    Keeper(Charge(**fields)).keep()


if __name__ == "__main__":
    main()

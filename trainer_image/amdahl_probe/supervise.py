"""Run one block: the plan's windows around a command, one after the other, into a summary.

`python -m amdahl_probe.supervise PLAN.json` or `--plan-env NAME`. Exit code 0 when every window ran (however it came
out), 1 when the block could not go on, 2 for a plan that cannot be read, 143 when told to stop. Whatever happens, no
process of the block outlives this one (see `guard`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from amdahl_probe import plan as plans
from amdahl_probe import process_tree, summary, verdicts, windows
from amdahl_probe.base import Base
from amdahl_probe.launch import Launch
from amdahl_probe.metrics import write_atomically
from amdahl_probe.peers import Alone, PeerError, meet
from amdahl_probe.plan import Plan, PlanError, Window
from amdahl_probe.scratch import Scratch, ScratchError
from amdahl_probe.summary import Block, Entry
from amdahl_probe.tail import Tail
from amdahl_probe.verdicts import Result
from amdahl_probe.windows import Numbers, RankLog, Void

#: How often the rank files are looked at: the resolution of the outside clock, 0.5 % of a two-second window.
POLL_S = 0.01


#: How long a pod whose command has ended in good order waits to hear which steps are measured.
LAST_WORD_S = 5.0


class Stopped(Exception):  # noqa: N818 (an order, not an error)
    """The supervisor was told to stop, or ran out of time."""


class Session:
    """One launch and what is heard of it."""

    def __init__(self, launch: Launch, tail: Tail) -> None:
        self.launch = launch
        self.tail = tail
        self.seq = 0
        self.startup_ms: Optional[int] = None
        self.steps = 0
        self.heard_s = time.monotonic()
        self.heard_ticks = 0

    @property
    def logs(self) -> Mapping[int, RankLog]:
        """What the ranks have said."""
        return self.tail.logs


class Supervisor:
    """Runs the windows of one plan."""

    def __init__(self, plan: Plan, environ: Mapping[str, str]) -> None:
        self._plan = plan
        self._environ = dict(environ)
        self._termination_log = self._environ.pop("AMDAHL_TERMINATION_LOG", None)
        self._deadline_s = float("inf")
        self._block = Block(plan.run, "running", None, False, _count_cpus())
        self._base = Base((), ())
        self._peers = Alone()
        self._session: Optional[Session] = None
        self._seq = 0
        self._launches = 0
        self._signal = 0

    def run(self) -> int:
        """Run all windows and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        self._plan.directory.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(self._plan.scratch_paths, keep=self._plan.directory)
        try:
            self._base = Base(self._plan.scratch_paths, self._plan.base_paths)
            self._peers = meet(self._plan.peers, self._plan.key, self._environ.get("JOB_COMPLETION_INDEX", ""))
            self._peers.gather(self._check_time)
            self._deadline_s = time.monotonic() + self._plan.deadline_s
            for position, window in enumerate(self._plan.windows):
                self._peers.begin(position, self._check_time)
                self._publish(self._block._replace(at=(window.arm, window.index)))
                before = scratch.remember()
                self._run_window(position, window)
                if self._session is None:
                    scratch.clean(before)
            self._publish(self._block._replace(state="done", at=None))
        except Stopped as stopped:
            return self._give_up(str(stopped), 128 + self._signal if self._signal else 1)
        except PeerError as error:
            return self._give_up(str(error), 1)
        except (ScratchError, OSError) as error:
            return self._give_up(f"{type(error).__name__}: {error}", 1)
        finally:
            self._end_session(grace_s=0.0 if self._signal else self._plan.grace_s)
            self._peers.close()
        return 0

    def _give_up(self, why: str, code: int) -> int:
        self._publish(self._block._replace(state="error", why=why))
        return code

    def _note_signal(self, number: int, _: object) -> None:
        self._signal = number

    # -- one window ------------------------------------------------------------------------------------------------

    def _run_window(self, number: int, window: Window) -> None:
        """Run a window, take down its entry, and end its launch unless a live one goes on."""
        session = self._prepare(window)
        try:
            result = self._watch(number, window, session)
            if result.outcome == "ok":
                result = self._await_others(number, result)
            elif not self._peers.find_loss(number):
                self._peers.fail(number, result.outcome)
        except Stopped as stopped:
            self._note(window, session, Result("signal", why=str(stopped)))
            raise
        self._note(window, session, result)
        if result.outcome != "ok" or window.is_proof or not self._plan.is_live:
            self._end_session(self._plan.grace_s)

    def _prepare(self, window: Window) -> Session:
        if self._plan.is_live:
            self._seq += 1
            self._write_knobs(window)
        if self._session is not None and window.is_proof:
            self._end_session(self._plan.grace_s)
        if self._session is None:
            self._session = self._start(window)
        else:
            self._session.launch.begin_window()
            self._session.startup_ms = 0
            self._session.heard_s = time.monotonic()
        self._session.seq = self._seq
        return self._session

    def _start(self, window: Window) -> Session:
        self._launches += 1
        directory = self._plan.directory / f"telemetry-{self._launches}-{window.name}"
        directory.mkdir()
        env = self._build_environment(window, directory)
        inherited = {name: self._environ[name] for name in self._plan.inherit if name in self._environ}
        visible = {**inherited, **self._plan.env, **window.env}
        command = [plans.expand(word, visible) for word in self._plan.command]
        log_path = self._plan.directory / f"window-{window.name}.log"
        self._base.restore()
        return Session(Launch(command, self._plan.cwd, env, log_path), Tail(directory))

    def _build_environment(self, window: Window, directory: Path) -> Dict[str, str]:
        plan = self._plan
        env = {**self._environ, **plan.env, **window.env}
        paths = [plan.probe] + [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        env.update(
            AMDAHL_TELEMETRY_DIR=str(directory),
            AMDAHL_RUN_ID=plan.run,
            AMDAHL_TRIAL="1",
            AMDAHL_SEED=str(window.seed),
            AMDAHL_DATA_OFFSET=str(window.offset),
        )
        if plan.is_live:
            env["AMDAHL_KNOBS_FILE"] = str(plan.directory / "knobs.json")
        elif window.save_every is not None:
            env["AMDAHL_CHECKPOINT_EVERY_STEPS"] = str(window.save_every)
        return env

    def _write_knobs(self, window: Window) -> None:
        wanted: Dict[str, object] = {"offset": window.offset, "seed": window.seed}
        if window.save_every is not None:
            wanted["save_every"] = window.save_every
        content = {"seq": self._seq, "knobs": dict(window.knobs), "window": wanted}
        write_atomically(self._plan.directory / "knobs.json", json.dumps(content))

    def _watch(self, number: int, window: Window, session: Session) -> Result:
        """Look, every POLL_S, until the window is measured or lost, here or in another pod."""
        begun_s = time.monotonic()
        ended_s: Optional[float] = None
        outcome: windows.Outcome = windows.Unfinished(waits_for_ranks=False)
        while True:
            self._check_time()
            ended = session.launch.poll()
            now_s = time.monotonic()
            is_news = session.tail.poll() > 0
            if is_news:
                self._note_progress(session, now_s)
            if is_news or not self._peers.is_leader:
                outcome = self._measure(number, window, session)
            settled = self._settle(number, outcome)
            if settled is not None:
                return settled
            if ended is not None:
                ended_s = now_s if ended_s is None else ended_s
                if self._peers.is_leader or ended.code != 0 or now_s - ended_s >= LAST_WORD_S:
                    return verdicts.judge_end(ended, session.logs, _read_last_words(session.launch.log_path))
                time.sleep(POLL_S)
                continue
            held_bytes = session.launch.sample(now_s)
            if held_bytes is not None and held_bytes > self._plan.mem_bytes:
                session.launch.kill()
                return Result("oom", -9, f"{held_bytes >> 20} MiB held, {self._plan.mem_bytes >> 20} allowed")
            lost = self._watch_silence(session, now_s, begun_s)
            if lost is not None:
                return lost
            time.sleep(POLL_S)

    def _settle(self, number: int, outcome: windows.Outcome) -> Optional[Result]:
        """How the window came out, as far as records and the other pods say; None while they say nothing."""
        if isinstance(outcome, Numbers):
            return Result("ok", numbers=outcome)
        why = outcome.why if isinstance(outcome, Void) else self._peers.find_loss(number)
        return Result("void", why=why) if why else None

    def _measure(self, number: int, window: Window, session: Session) -> windows.Outcome:
        """The window's numbers, at the steps that the first pod chooses."""
        own = windows.find_edges(window, session.logs, session.seq) if self._peers.is_leader else None
        edges = self._peers.choose(number, own)
        return windows.measure(session.logs, edges, self._expect_ranks(session), session.seq, window.is_proof)

    def _await_others(self, number: int, result: Result) -> Result:
        """Let the launch go on until every pod has measured the window: its ranks are waited for in collectives."""
        while not self._peers.finish(number):
            self._check_time()
            lost_elsewhere = self._peers.find_loss(number)
            if lost_elsewhere:
                return Result("void", why=lost_elsewhere)
            time.sleep(POLL_S)
        return result

    def _check_time(self) -> None:
        if self._signal:
            raise Stopped(f"signal {self._signal}")
        if time.monotonic() > self._deadline_s:
            raise Stopped(f"deadline of {self._plan.deadline_s:g} s passed")

    def _note_progress(self, session: Session, now_s: float) -> None:
        """Progress is a step of the slowest rank: the others cannot go on without it for long."""
        ranks = self._expect_ranks(session)
        steps = min((len(log.steps) for log in session.logs.values()), default=0) if len(session.logs) >= ranks else 0
        if steps > session.steps:
            session.steps, session.heard_s, session.heard_ticks = steps, now_s, session.launch.cpu_ticks
        if session.startup_ms is None:
            known = [log.first_batch_ns for log in session.logs.values() if log.first_batch_ns is not None]
            if known and len(known) == len(session.logs):
                session.startup_ms = (max(known) - session.launch.launched_ns) // 1_000_000

    def _expect_ranks(self, session: Session) -> int:
        """Ranks on this machine: the world the first start record names, over the job's replicas."""
        world = next((log.start.world for log in session.logs.values() if log.start is not None), 1)
        replicas = {**self._environ, **self._plan.env}.get("AMDAHL_REPLICAS", "1")
        return max(1, world // max(1, int(replicas) if replicas.isdecimal() else 1))

    def _watch_silence(self, session: Session, now_s: float, begun_s: float) -> Optional[Result]:
        if self._plan.is_live and verdicts.cannot_switch(session.logs):
            return Result("no_report", why="the process does not switch knobs live; plan it as relaunch")
        has_steps = session.steps > 0 and verdicts.is_stepping(session.logs, session.seq)
        quiet_s = now_s - (max(session.heard_s, begun_s) if has_steps else begun_s)
        limit_s = self._plan.step_timeout_s if has_steps else self._plan.startup_timeout_s
        used_s = (session.launch.cpu_ticks - session.heard_ticks) / os.sysconf("SC_CLK_TCK")
        silence = verdicts.Silence(quiet_s, used_s, has_steps, self._expect_ranks(session), session.seq)
        return verdicts.judge_silence(session.logs, silence, limit_s)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _note(self, window: Window, session: Session, result: Result) -> None:
        session.launch.sample(time.monotonic(), is_last=True)
        entry = Entry(
            arm=window.arm,
            index=window.index,
            scored=window.scored,
            outcome=result.outcome,
            code=result.code,
            why=result.why,
            numbers=result.numbers,
            startup_ms=session.startup_ms,
            mem_mib=session.launch.peak_bytes >> 20 or None,
        )
        says_live = any(log.start is not None and log.start.live for log in session.logs.values())
        self._block = self._block._replace(
            entries=(*self._block.entries, entry), is_live=self._block.is_live or says_live
        )

    def _end_session(self, grace_s: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.launch.stop(grace_s)

    def _publish(self, block: Block) -> None:
        self._block = block
        data = summary.render(block)
        write_atomically(self._plan.directory / "summary.json", data.decode())
        if self._termination_log:
            write_in_place(self._termination_log, data)


def write_in_place(path: str, data: bytes) -> None:
    """Rewrite a file that cannot be renamed over (the kubelet mounts it): one write, valid JSON at every moment.

    A shorter text is padded with spaces, which JSON allows, before the rest is cut off.
    """
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(opened, data.ljust(os.fstat(opened).st_size), 0)
        os.ftruncate(opened, len(data))
    finally:
        os.close(opened)


def _read_last_words(log_path: Path) -> bytes:
    """The end of what the command printed."""
    with log_path.open("rb") as file:
        file.seek(max(0, log_path.stat().st_size - (1 << 16)))
        return file.read()


def _count_cpus() -> int:
    """Processors this process may use: its affinity, and no more than its cgroup's quota."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or no limit ("max")
        return cpus


def _read_plan(arguments: List[str], environ: Mapping[str, str]) -> Plan:
    if len(arguments) == 2 and arguments[0] == "--plan-env":
        text = environ.get(arguments[1], "")
    elif len(arguments) == 1:
        text = Path(arguments[0]).read_text()
    else:
        raise PlanError("usage: python -m amdahl_probe.supervise PLAN.json | --plan-env NAME")
    return plans.parse(text)


def main(arguments: List[str], environ: Mapping[str, str]) -> int:
    """Run the plan that the arguments name."""
    inherited = {name: value for name, value in environ.items() if arguments[-1:] != [name]}
    try:
        plan = _read_plan(arguments, environ)
    except (PlanError, OSError) as error:
        sys.stderr.write(f"amdahl_probe.supervise: {error}\n")
        if environ.get("AMDAHL_TERMINATION_LOG"):
            refusal = Block("", "error", None, False, _count_cpus(), why=str(error))
            write_in_place(environ["AMDAHL_TERMINATION_LOG"], summary.render(refusal))
        return 2
    process_tree.become_subreaper()
    return Supervisor(plan, inherited).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))

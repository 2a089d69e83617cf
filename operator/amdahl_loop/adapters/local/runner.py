"""How does a wish for a run become supervised processes of this machine, found again by name after any crash?

Each run has a folder named after it, its only trace. See `keeper` for how a run is ended whatever happens, and `view`
for what it may write to. Layout of the state folder: `machine.lock` (runs take turns), `probe/` (the probe as a zip),
`<scope>/<run>/`, `logs/<scope>/<run>/` (what the windows of the newest runs printed).
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from amdahl_loop.adapters.local.keeper import STOP_S, Charge
from amdahl_loop.adapters.local.machine import Machine, read_machine
from amdahl_loop.adapters.local.processes import (
    RUN_DIR_VARIABLE,
    ProcessId,
    find_strays,
    identify,
    kill_all,
    remove_tree,
)
from amdahl_loop.adapters.local.programs import bundle_probe, inherit, run_module
from amdahl_loop.adapters.local.requests import (
    GRACE_S,
    build_plan,
    find_obstacles,
    memory_ceiling,
    working_dir,
)
from amdahl_loop.adapters.local.sandbox import Choice, Sandbox, short_tmp
from amdahl_loop.adapters.local.traces import Kept, Traces
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState
from amdahl_loop.domain.telemetry import BlockReport, parse_block_summary
from amdahl_loop.ports import Clock

MIN_FREE_BYTES = 256 * 2**20
"""Less scratch storage than this is not worth a start."""

KEEPER_SLACK_S = 2 * STOP_S
"""The supervisor's own time limit comes first; the keeper's is for a supervisor that hangs."""

POLL_S = 0.02

_RUN_NAME = re.compile(r"[a-z0-9][-a-z0-9.]{0,99}")
_RESERVED = ("logs", "probe")


class RunRefusedError(Exception):
    """A job that cannot be run on this machine, or not without risk to the user's files; each line names the fix."""


class RunnerUnavailableError(Exception):
    """The machine cannot run anything now: no space, no permission; the message names the fix."""


class LocalRunner:
    """The `Runner` port on this machine.

    `state_dir` holds scratch storage and must lie on a local disk. `base_dir` is the manifest's folder. `scope` names
    the one loop whose runs these are: `sweep` stops what is not kept in it, and nothing of another loop. Use one event
    loop in one thread: runs end with the thread that started them.
    """

    def __init__(
        self,
        state_dir: Path,
        base_dir: Path,
        scope: str,
        *,
        clock: Clock = time.time,
        environ: Mapping[str, str] = os.environ,
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine or read_machine()
        self._state_dir = state_dir.resolve()
        self._base_dir = base_dir.resolve()
        self._runs_dir = self._state_dir / _check_name(scope)
        self.logs_dir = self._state_dir / "logs" / scope
        self._clock = clock
        self._environ = environ
        self._sandbox = Sandbox(self._state_dir, self._base_dir, environ)
        self._choices: dict[str, Choice] = {}
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}

    # --- the port -------------------------------------------------------------------------------------------------

    async def find(self, run: str) -> RunState:
        """State of a run by name. What a killed loop left unfinished is cleared away, and Absent."""
        kept, traces = self._read_kept(run), self._traces(run)
        if kept is None:
            await self.stop(run)  # what is left may be a keeper that is just removing its traces
            return Absent()
        if self._is_alive(run, kept):
            report = parse_block_summary(traces.read_summary(), run)
            return Running(report=report if isinstance(report, BlockReport) else None)
        finished = traces.read_finished(self.machine.node)
        if finished is not None:
            return finished
        if run not in self._keepers:
            await self.stop(run)
            return Absent()
        await asyncio.to_thread(self._kill_strays, run)
        started_at_s = kept.started_at_s or self._clock()
        return Finished(
            failure=traces.describe_lost_keeper(),
            node=self.machine.node,
            started_at_s=started_at_s,
            held_device_s=traces.devices * max(0.0, self._clock() - started_at_s),
        )

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Start a run, or adopt it under the same plan hash. RunRefusedError and RunnerUnavailableError say why not."""
        run, kept, traces = request.run, self._read_kept(request.run), self._traces(request.run)
        if kept is not None and traces.is_of(request.plan_hash) and (self._is_alive(run, kept) or traces.is_over):
            return
        await self.stop(run)
        obstacles = await asyncio.to_thread(self.find_obstacles, job)
        if obstacles:
            raise RunRefusedError("\n".join(obstacles))
        try:
            await asyncio.to_thread(self._prepare, job, request)
            self._start(run)
        except OSError as error:
            remove_tree(traces.run_dir)
            raise RunnerUnavailableError(
                f"{self._state_dir}: {error.strerror or error}; free some space, or choose another state folder"
            ) from error

    async def stop(self, run: str) -> Loss | None:
        """Stop a run and everything it started, and drop its traces; what it had held, None where there is no such run.

        What a run held whose keeper was killed with an earlier loop is not known: nothing is charged for it.
        """
        kept, traces = self._read_kept(run), self._traces(run)
        if not traces.run_dir.exists():
            await self._part(run)
            return None
        finished, now_s = traces.read_finished(self.machine.node), self._clock()
        loss = Loss(run=run, started_at_s=now_s, held_device_s=0.0)
        if finished is not None:
            loss = Loss(run=run, started_at_s=finished.started_at_s, held_device_s=finished.held_device_s)
        elif kept is not None and self._is_alive(run, kept):
            devices, started_at_s = traces.devices, kept.started_at_s or now_s
            await self._end(run, kept)
            held_s = max(0.0, self._clock() - started_at_s) if kept.started_at_s else 0.0
            loss = Loss(run=run, started_at_s=started_at_s, held_device_s=devices * held_s)
        if traces.run_dir.exists():
            await asyncio.to_thread(self._kill_strays, run)
            traces.keep_logs(self.logs_dir)
            await asyncio.to_thread(remove_tree, short_tmp(traces.run_dir))
            await asyncio.to_thread(remove_tree, traces.run_dir)
        await self._part(run)
        return loss

    async def sweep(self, keep: Collection[str]) -> tuple[Loss, ...]:
        """Stop every run of this scope whose name is not kept, and drop its traces; what each had held."""
        found = sorted(path.name for path in self._runs_dir.iterdir()) if self._runs_dir.is_dir() else []
        stopped = [await self.stop(name) for name in found if name not in keep]
        return tuple(loss for loss in stopped if loss is not None)

    # --- starting ---------------------------------------------------------------------------------------------------

    def find_obstacles(self, job: TrainingJob) -> tuple[str, ...]:
        """What keeps this job from running here, one line each with the fix; nothing is spent by asking."""
        return find_obstacles(job, self._base_dir) or self._choose_view(job).obstacles

    def _choose_view(self, job: TrainingJob) -> Choice:
        """Tried once for the same folders: a machine does not change its mind while a loop runs."""
        trial = job.spec.tuning.trial
        key = json.dumps([job.spec.template.trainer.working_dir, trial.scratch_paths, trial.isolated])
        if key not in self._choices:
            self._choices[key] = self._sandbox.choose(job)
        return self._choices[key]

    def _prepare(self, job: TrainingJob, request: RunRequest) -> None:
        """Fill the run's folder: plan, view, charge."""
        traces, kind = self._traces(request.run), self._choose_view(job).kind
        run_dir = traces.run_dir
        traces.block_dir.mkdir(parents=True)
        if shutil.disk_usage(run_dir).free < MIN_FREE_BYTES:
            raise OSError(f"less than {MIN_FREE_BYTES >> 20} MiB are free")
        plan = build_plan(
            job,
            request,
            cwd=working_dir(job.spec.template.trainer, self._base_dir),
            enter=self._sandbox.enter(job, run_dir, kind),
            probe=bundle_probe(self._state_dir),
            directory=traces.block_dir,
            mem_bytes=memory_ceiling(job, self.machine.mem_bytes),
            scratch=() if kind == "overlay" else self._sandbox.outer_scratch(job),
        )
        charge = Charge(
            run_dir=str(run_dir),
            supervisor=(*run_module("amdahl_probe.supervise"), str(run_dir / "plan.json")),
            lock=str(self._state_dir / "machine.lock"),
            deadline_s=request.deadline_s + KEEPER_SLACK_S,
            loop_pid=os.getpid(),
            temporary=(str(run_dir / "view"), str(short_tmp(run_dir))),
        )
        (run_dir / "plan.json").write_text(json.dumps(plan))
        (run_dir / "charge.json").write_text(json.dumps(charge._asdict()))
        traces.note_request(request.plan_hash, request.max_devices)

    def _start(self, run: str) -> None:
        """Start the keeper, from the loop's own thread: the kernel tells the keeper when that thread is gone."""
        run_dir = self._traces(run).run_dir
        with (run_dir / "keeper.log").open("wb") as log:
            self._keepers[run] = subprocess.Popen(
                [*run_module("amdahl_loop.adapters.local.keeper"), str(run_dir / "charge.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=inherit(self._environ) | {RUN_DIR_VARIABLE: str(run_dir)},
                start_new_session=True,
            )

    async def _part(self, run: str) -> None:
        """Forget a keeper once it has ended: it outlives the traces of its run by an instant."""
        keeper = self._keepers.pop(run, None)
        if keeper is None:
            return
        try:
            await asyncio.to_thread(keeper.wait, GRACE_S)
        except subprocess.TimeoutExpired:  # nothing is left that it could keep
            keeper.kill()
            await asyncio.to_thread(keeper.wait)

    async def _end(self, run: str, kept: Kept) -> None:
        """Tell a living keeper to stop, and wait until it has."""
        kept.keeper.send(signal.SIGTERM)
        until_s = time.monotonic() + STOP_S + GRACE_S
        while self._is_alive(run, kept):
            if time.monotonic() > until_s:
                kept.keeper.send(signal.SIGKILL)
            await asyncio.sleep(POLL_S)

    # --- what is known of a run ---------------------------------------------------------------------------------------

    def _traces(self, run: str) -> Traces:
        return Traces(self._runs_dir / _check_name(run))

    def _read_kept(self, run: str) -> Kept | None:
        """Who keeps a run; None when it left no trace. A keeper that has not spoken yet is known to who started it."""
        traces = self._traces(run)
        kept = traces.read_kept()
        if kept is not None or run not in self._keepers or not traces.run_dir.exists():
            return kept
        pid = self._keepers[run].pid
        return Kept(identify(pid) or ProcessId(pid, 0, ""), None)

    def _is_alive(self, run: str, kept: Kept) -> bool:
        if run in self._keepers:
            self._keepers[run].poll()  # the loop's own dead child would look alive to everybody else
        return kept.keeper.is_alive()

    def _kill_strays(self, run: str) -> None:
        """What escaped all else, found by its environment."""
        run_dir = self._traces(run).run_dir
        if not kill_all(lambda: find_strays(run_dir)):
            raise RunnerUnavailableError(f"processes {find_strays(run_dir)} of run {run} cannot be killed; end them")


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/amdahl-loop`, which is `~/.local/state/amdahl-loop` where nothing is set."""
    state = environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(environ.get("HOME", "/")) / ".local/state"
    return home / "amdahl-loop"


def _check_name(name: str) -> str:
    if not _RUN_NAME.fullmatch(name) or name in _RESERVED:
        raise ValueError(f"name {name!r}: give lower-case letters, digits, '-' and '.', at most 100")
    return name

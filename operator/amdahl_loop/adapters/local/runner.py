"""How does a wish for a run become supervised processes of this machine, found again by name after any crash?

Each run has a folder named after it, which is its only trace: the keeper's identity, the plan, the supervisor's
summary and how it ended. See `keeper` for how a run is ended, and `view` for what it may write to.

Layout of the state folder: `machine.lock` (runs take turns), `probe/` (the probe as a zip), `<scope>/<run>/`.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amdahl_loop.adapters.local.keeper import RESULT_FILE, RUN_FILE, STOP_S, Charge
from amdahl_loop.adapters.local.machine import Machine, read_machine
from amdahl_loop.adapters.local.processes import (
    RUN_DIR_VARIABLE,
    ProcessId,
    find_strays,
    identify,
    kill_all,
    remove_tree,
)
from amdahl_loop.adapters.local.requests import (
    GRACE_S,
    base_environment,
    build_plan,
    find_obstacles,
    memory_ceiling,
    scratch_paths,
    working_dir,
)
from amdahl_loop.adapters.local.view import View
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES, BlockReport, parse_block_summary
from amdahl_loop.ports import Clock

MIN_FREE_BYTES = 256 * 2**20
"""Less scratch storage than this is not worth a start."""

KEEPER_SLACK_S = 2 * STOP_S
"""The supervisor's own time limit comes first; the keeper's is for a supervisor that hangs."""

POLL_S = 0.02
CHECK_TIMEOUT_S = 60.0
"""Entering a view takes milliseconds, or as long as copying two GiB."""

_RUN_NAME = re.compile(r"[a-z0-9][-a-z0-9.]{0,99}")
_VIEWS = ("overlay", "copy")


class RunRefusedError(Exception):
    """A job that cannot be run on this machine, or not without risk to the user's files; each line names the fix."""


class RunnerUnavailableError(Exception):
    """The machine cannot run anything now: no space, no permission; the message names the fix."""


class _Kept(NamedTuple):
    """What a run's folder says of its keeper."""

    keeper: ProcessId
    started_at_s: float | None


class LocalRunner:
    """The `Runner` port on this machine.

    `state_dir` holds scratch storage and must lie on a local disk. `base_dir` is the manifest's folder. `scope` names
    the one loop whose runs these are: `sweep` stops what is not kept in it, and nothing of another loop.
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
        self._state_dir = state_dir.resolve()
        self._base_dir = base_dir.resolve()
        self._runs_dir = self._state_dir / scope
        self._clock = clock
        self._environ = environ
        self.machine = machine or read_machine()
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._devices: dict[str, int] = {}
        self._view_kind: str | None = None

    # --- the port -------------------------------------------------------------------------------------------------

    async def find(self, run: str) -> RunState:
        """State of a run by name. A run that a killed loop left unfinished is cleared away, and Absent."""
        kept = self._read_kept(run)
        if kept is None:
            return Absent()
        if self._is_alive(run, kept):
            return Running(report=self._read_report(run))
        result = _read_json(self._run_dir(run) / RESULT_FILE)
        if result is not None:
            return self._finish(run, result)
        if run not in self._keepers:
            await self.stop(run)
            return Absent()
        started_at_s = kept.started_at_s or self._clock()
        await asyncio.to_thread(self._kill_strays, run)
        return Finished(
            failure="the run's keeper was killed, most likely for want of memory; free some or lower the job's limit",
            node=self.machine.node,
            started_at_s=started_at_s,
            held_device_s=self._read_devices(run) * max(0.0, self._clock() - started_at_s),
        )

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Start a run, or adopt it under the same plan hash. RunRefusedError and RunnerUnavailableError say why not."""
        kept = self._read_kept(request.run)
        if kept is not None:
            same = (_read_json(self._run_dir(request.run) / "request.json") or {}).get("planHash") == request.plan_hash
            if same and (self._is_alive(request.run, kept) or (self._run_dir(request.run) / RESULT_FILE).exists()):
                return
        await self.stop(request.run)
        obstacles = await asyncio.to_thread(self.find_obstacles, job)
        if obstacles:
            raise RunRefusedError("\n".join(obstacles))
        try:
            await asyncio.to_thread(self._prepare, job, request)
            self._start(request.run)
        except OSError as error:
            remove_tree(self._run_dir(request.run))
            raise RunnerUnavailableError(
                f"{self._state_dir}: {error.strerror or error}; free some space, or choose another state folder"
            ) from error

    async def stop(self, run: str) -> None:
        """Stop a run and everything it started, and drop its traces; what does not run is no error."""
        kept = self._read_kept(run)
        if kept is not None and self._is_alive(run, kept):
            kept.keeper.send(signal.SIGTERM)
            until_s = time.monotonic() + STOP_S + GRACE_S
            while self._is_alive(run, kept) and time.monotonic() < until_s:
                await asyncio.sleep(POLL_S)
            kept.keeper.send(signal.SIGKILL)
            while self._is_alive(run, kept):
                await asyncio.sleep(POLL_S)
        await asyncio.to_thread(self._kill_strays, run)
        remove_tree(_short_tmp(self._run_dir(run)))
        remove_tree(self._run_dir(run))
        self._reap(run)
        self._keepers.pop(run, None)

    async def sweep(self, keep: Collection[str]) -> tuple[str, ...]:
        """Stop every run of this scope whose name is not kept, and drop its traces; returns their names."""
        found = sorted(path.name for path in self._runs_dir.iterdir()) if self._runs_dir.is_dir() else []
        swept = tuple(name for name in found if name not in keep)
        for name in swept:
            await self.stop(name)
        return swept

    # --- what a user should know before anything is spent -----------------------------------------------------------

    def find_obstacles(self, job: TrainingJob) -> tuple[str, ...]:
        """What keeps this job from running here, one line each with the fix; tries the protected view for real."""
        obstacles = find_obstacles(job, self._base_dir)
        if obstacles:
            return obstacles
        if self._view_kind is None:
            self._view_kind, reasons = self._choose_view(job)
            return reasons
        return ()

    def _choose_view(self, job: TrainingJob) -> tuple[str | None, tuple[str, ...]]:
        """The best view that this machine gives for this job's folders, or why there is none."""
        reasons = []
        for kind in _VIEWS:
            reason = self._try_view(job, kind)
            if not reason:
                return kind, ()
            reasons.append(f"{kind}: {reason}")
        if job.spec.tuning.trial.isolated:
            return "plain", ()
        return None, (
            "trials would write to your own files, since this machine gives no protected view of them "
            f"({'; '.join(reasons)}). Allow user namespaces or run as a user who may mount; or, if the job writes "
            "nothing that matters, set spec.tuning.trial.isolated: true",
        )

    def _try_view(self, job: TrainingJob, kind: str) -> str:
        """Enter the view once, with nothing to run in it; returns what went wrong."""
        missing = [path for path in scratch_paths(job, self._base_dir) if kind == "overlay" and not path.is_dir()]
        if missing and not all(_is_inside(path, self._covered(job)) for path in missing):
            return f"scratchPaths {missing[0]} does not exist; create it"
        outside = self._outside_scratch(job)
        if kind == "copy" and (full := [path for path in outside if path.is_dir() and any(path.iterdir())]):
            return (
                f"scratchPaths {full[0]} is not empty, and what is in it could not be protected; name an empty folder"
            )
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix="check-", dir=self._state_dir, ignore_cleanup_errors=True
            ) as folder:
                run_dir = Path(folder)
                (run_dir / "block").mkdir()
                command = [*self._enter_view(job, run_dir, kind), "true"]
                told = subprocess.run(
                    command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, env=dict(self._environ)
                )
                remove_tree(run_dir / "view")
                remove_tree(_short_tmp(run_dir))
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return "" if told.returncode == 0 else told.stderr.strip().rpartition("files: ")[2]

    # --- starting ---------------------------------------------------------------------------------------------------

    def _prepare(self, job: TrainingJob, request: RunRequest) -> None:
        """Fill the run's folder: plan, view, charge."""
        run_dir = self._run_dir(request.run)
        (run_dir / "block").mkdir(parents=True)
        if shutil.disk_usage(run_dir).free < MIN_FREE_BYTES:
            raise OSError(f"less than {MIN_FREE_BYTES >> 20} MiB are free")
        kind = self._view_kind or "plain"
        plan = build_plan(
            job,
            request,
            cwd=working_dir(job.spec.template.trainer, self._base_dir),
            enter=self._enter_view(job, run_dir, kind),
            probe=self._bundle_probe(),
            directory=run_dir / "block",
            mem_bytes=memory_ceiling(job, self.machine.mem_bytes),
            scratch=() if kind == "overlay" else self._outside_scratch(job),
        )
        charge = Charge(
            run_dir=str(run_dir),
            supervisor=(
                *_python_module(_package_root("amdahl_probe"), "amdahl_probe.supervise"),
                str(run_dir / "plan.json"),
            ),
            lock=str(self._state_dir / "machine.lock"),
            deadline_s=request.deadline_s + KEEPER_SLACK_S,
            loop_pid=os.getpid(),
            temporary=(str(run_dir / "view"), str(_short_tmp(run_dir))),
        )
        _write_json(run_dir / "plan.json", plan)
        _write_json(run_dir / "charge.json", charge._asdict())
        _write_json(run_dir / "request.json", {"planHash": request.plan_hash, "devices": request.max_devices})

    def _start(self, run: str) -> None:
        """Start the keeper, from the loop's own thread: the keeper ends the run when that thread is gone."""
        run_dir = self._run_dir(run)
        beside = (
            not {"VIRTUAL_ENV", "CONDA_PREFIX"} & set(self._environ) and importlib.util.find_spec("torch") is not None
        )
        environment = base_environment(self._environ, Path(sys.executable), beside)
        with (run_dir / "keeper.log").open("wb") as log:
            keeper = subprocess.Popen(
                [
                    *_python_module(_package_root("amdahl_loop"), "amdahl_loop.adapters.local.keeper"),
                    str(run_dir / "charge.json"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | {RUN_DIR_VARIABLE: str(run_dir)},
                start_new_session=True,
            )
        self._keepers[run] = keeper

    def _enter_view(self, job: TrainingJob, run_dir: Path, kind: str) -> list[str]:
        """Words to put before a command so that it runs in a view; also writes down what the view is."""
        if kind == "plain":
            return []
        folder = working_dir(job.spec.template.trainer, self._base_dir)
        scratch = scratch_paths(job, self._base_dir) if kind == "overlay" else self._outside_scratch(job)
        view = View(
            kind=kind,
            cwd=str(folder),
            scratch=str(run_dir / "view"),
            tmp=str(_short_tmp(run_dir)),
            hidden=str(self._state_dir),
            reports=(str(run_dir / "block"),),
            scratch_paths=tuple(str(path) for path in scratch),
            essential=(str(folder), str(self._base_dir)),
            optional=tuple(str(path) for path in self._optional_folders()),
        )
        _write_json(run_dir / "view.json", view._asdict())
        return [
            *_python_module(_package_root("amdahl_loop"), "amdahl_loop.adapters.local.view"),
            str(run_dir / "view.json"),
        ]

    def _optional_folders(self) -> list[Path]:
        """Where programs are used to write without being told: home and the temporary folders."""
        named = (self._environ.get("HOME", ""), self._environ.get("TMPDIR", ""), "/tmp", "/var/tmp")  # noqa: S108
        found = [Path(name).resolve() for name in named if name and Path(name).is_dir()]
        return [path for path in found if path != Path("/")]

    def _covered(self, job: TrainingJob) -> list[Path]:
        return [working_dir(job.spec.template.trainer, self._base_dir), self._base_dir, *self._optional_folders()]

    def _outside_scratch(self, job: TrainingJob) -> list[Path]:
        """Scratch paths that no copy of the working directory holds."""
        folder = working_dir(job.spec.template.trainer, self._base_dir)
        return [path for path in scratch_paths(job, self._base_dir) if not _is_inside(path, [folder])]

    def _bundle_probe(self) -> Path:
        """The probe as a zip, made once for these sources."""
        command = [
            *_python_module(_package_root("amdahl_probe"), "amdahl_probe.bundle"),
            str(self._state_dir / "probe"),
        ]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode != 0:
            raise OSError(f"the probe cannot be packed: {told.stderr.strip().rpartition(chr(10))[2]}")
        return Path(told.stdout.strip())

    # --- what a run's folder says -------------------------------------------------------------------------------------

    def _run_dir(self, run: str) -> Path:
        if not _RUN_NAME.fullmatch(run):
            raise ValueError(f"run name {run!r}: give lower-case letters, digits, '-' and '.', at most 100")
        return self._runs_dir / run

    def _read_kept(self, run: str) -> _Kept | None:
        """Who keeps a run; None when it left no trace. A keeper that has not spoken yet is known to who started it."""
        raw = _read_json(self._run_dir(run) / RUN_FILE)
        if raw is not None:
            return _Kept(ProcessId(*raw["keeper"]), raw["started_at_s"])
        if run not in self._keepers or not self._run_dir(run).exists():
            return None
        pid = self._keepers[run].pid
        return _Kept(identify(pid) or ProcessId(pid, 0, ""), None)

    def _is_alive(self, run: str, kept: _Kept) -> bool:
        self._reap(run)
        return kept.keeper.is_alive()

    def _reap(self, run: str) -> None:
        if run in self._keepers:
            self._keepers[run].poll()

    def _kill_strays(self, run: str) -> None:
        run_dir = self._run_dir(run)
        if not kill_all(lambda: find_strays(run_dir)):
            raise RunnerUnavailableError(f"processes {find_strays(run_dir)} of run {run} cannot be killed; end them")

    def _read_devices(self, run: str) -> int:
        return int((_read_json(self._run_dir(run) / "request.json") or {}).get("devices", 1))

    def _read_report(self, run: str) -> BlockReport | None:
        report = parse_block_summary(self._read_summary(run), run)
        return report if isinstance(report, BlockReport) else None

    def _read_summary(self, run: str) -> str:
        """What the supervisor left, one byte more than allowed at most; the job could have written it too."""
        with contextlib.suppress(OSError):
            opened = os.open(self._run_dir(run) / "block" / "summary.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(opened, "rb") as file:
                return file.read(MAX_SUMMARY_BYTES + 1).decode(errors="replace")
        return ""

    def _finish(self, run: str, result: dict[str, Any]) -> Finished:
        """A run that is over. Where the disk was full nothing is believed: it would blame the arm for the machine."""
        why = str(result["why"])
        summary = "" if result["code"] is not None and why else self._read_summary(run)
        lines = _tail(self._run_dir(run) / "keeper.log").splitlines()
        words = f"the supervisor ended with exit code {result['code']}" + (f": {lines[-1]}" if lines else "")
        return Finished(
            summary=summary,
            failure=why if why or summary else words[:200],
            node=self.machine.node,
            started_at_s=result["started_at_s"],
            held_device_s=self._read_devices(run) * result["held_s"],
        )


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/amdahl-loop`, which is `~/.local/state/amdahl-loop` where nothing is set."""
    state = environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(environ.get("HOME", "/")) / ".local/state"
    return home / "amdahl-loop"


def _short_tmp(run_dir: Path) -> Path:
    """A temporary folder with a short path, of this run alone."""
    digest = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"amdahl-{digest}"


def _is_inside(path: Path, folders: Collection[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)


def _package_root(name: str) -> Path:
    """The folder that a package is imported from, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise OSError(f"package {name} is not installed beside this program; install amdahl-loop again")
    return Path(next(iter(spec.submodule_search_locations))).parent


def _python_module(root: Path, module: str) -> list[str]:
    """A command that runs a module of the standard library's company alone: no site, no user's PYTHONPATH, at once."""
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); name = sys.argv[2]; sys.argv[:] = sys.argv[2:]; "
        "runpy.run_module(name, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-I", "-S", "-c", code, str(root), module]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file of ours, which is written in one step; None when it is not there."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tail(path: Path) -> str:
    """The last 2,000 bytes of a log."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        return file.read().decode(errors="replace")
    return ""

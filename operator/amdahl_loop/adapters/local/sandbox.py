"""Which view of the files does a job get on this machine, and which words before its command put it there?"""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from amdahl_loop.adapters.local.processes import remove_tree
from amdahl_loop.adapters.local.programs import run_module
from amdahl_loop.adapters.local.requests import scratch_paths, working_dir
from amdahl_loop.adapters.local.view import View
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.values import Frozen

TRY_TIMEOUT_S = 60.0
"""Entering a view takes milliseconds, or as long as copying two GiB."""


class Choice(Frozen):
    """The view that a job gets, or why it gets none."""

    kind: str = "plain"
    obstacles: tuple[str, ...] = ()


class Sandbox:
    """Protected views for the jobs of one folder."""

    def __init__(self, state_dir: Path, base_dir: Path, environ: Mapping[str, str]) -> None:
        self._state_dir = state_dir
        self._base_dir = base_dir
        self._environ = environ

    def choose(self, job: TrainingJob) -> Choice:
        """The best view that this machine gives for this job's folders; each is tried for real."""
        reasons = []
        for kind in ("overlay", "copy"):
            reason = self._find_misplaced(job, kind) or self._try(job, kind)
            if not reason:
                return Choice(kind=kind)
            reasons.append(f"{kind}: {reason}")
        if job.spec.tuning.trial.isolated:
            return Choice(kind="plain")
        words = (
            "trials would write to your own files, for this machine gives no protected view of them "
            f"({'; '.join(reasons)}). Mend that, or allow user namespaces; or, if the job writes nothing that matters, "
            "set spec.tuning.trial.isolated: true"
        )
        return Choice(obstacles=(words,))

    def enter(self, job: TrainingJob, run_dir: Path, kind: str) -> list[str]:
        """Words to put before a command so that it runs in a fresh view; `run_dir` holds the view's storage."""
        if kind == "plain":
            return []
        folder = working_dir(job.spec.template.trainer, self._base_dir)
        scratch = scratch_paths(job, self._base_dir) if kind == "overlay" else self.outer_scratch(job)
        view = View(
            kind=kind,
            cwd=str(folder),
            scratch=str(run_dir / "view"),
            tmp=str(short_tmp(run_dir)),
            hidden=str(self._state_dir),
            reports=(str(run_dir / "block"),),
            scratch_paths=tuple(str(path) for path in scratch),
            essential=(str(folder), str(self._base_dir)),
            optional=tuple(str(path) for path in self._writable_by_custom()),
        )
        written = run_dir / "view.json"
        written.write_text(json.dumps(view._asdict()))
        return [*run_module("amdahl_loop.adapters.local.view"), str(written)]

    def outer_scratch(self, job: TrainingJob) -> tuple[Path, ...]:
        """Scratch paths outside the working directory: a copy of that does not hold them."""
        folder = working_dir(job.spec.template.trainer, self._base_dir)
        return tuple(path for path in scratch_paths(job, self._base_dir) if not _is_inside(path, [folder]))

    def _writable_by_custom(self) -> Sequence[Path]:
        """Where programs are used to write without being told: home and the temporary folders."""
        named = (self._environ.get("HOME", ""), self._environ.get("TMPDIR", ""), "/tmp", "/var/tmp")  # noqa: S108
        found = [Path(name).resolve() for name in named if name and Path(name).is_dir()]
        return [path for path in found if path != Path("/")]

    def _find_misplaced(self, job: TrainingJob, kind: str) -> str:
        """A scratch path that the view could not give; empty when all are well."""
        folder = working_dir(job.spec.template.trainer, self._base_dir)
        for path in scratch_paths(job, self._base_dir):
            if not path.is_dir() and not _is_inside(path, [folder, self._base_dir, *self._writable_by_custom()]):
                return f"scratchPaths {path} does not exist; create it"
        if kind == "copy":
            for path in self.outer_scratch(job):
                if not path.is_dir() or any(path.iterdir()):
                    return f"scratchPaths {path} is no empty folder, and what it holds could not be protected"
        return ""

    def _try(self, job: TrainingJob, kind: str) -> str:
        """Enter the view once with nothing to do in it; returns what went wrong."""
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="try-", dir=self._state_dir, ignore_cleanup_errors=True) as name:
                run_dir = Path(name)
                (run_dir / "block").mkdir()
                command = [*self.enter(job, run_dir, kind), "true"]
                try:
                    told = subprocess.run(
                        command, capture_output=True, text=True, timeout=TRY_TIMEOUT_S, env=self._environ, check=False
                    )
                finally:
                    remove_tree(run_dir / "view")
                    remove_tree(short_tmp(run_dir))
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        lines = told.stderr.strip().splitlines()
        return "" if told.returncode == 0 else lines[-1] if lines else f"exit code {told.returncode}"


def short_tmp(run_dir: Path) -> Path:
    """A temporary folder with a short path, of this run alone (see View.tmp)."""
    digest = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"amdahl-{digest}"


def _is_inside(path: Path, folders: Iterable[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)

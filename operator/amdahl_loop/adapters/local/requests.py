"""How does a wish for a run become the supervisor's plan (telemetry contract, section 4), and what cannot be run?"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amdahl_loop.domain.commands import escape, expand_environment
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import RunRequest, WindowRequest
from amdahl_loop.domain.template import Container
from amdahl_loop.domain.trackers import TRACKERS_OFF

PLAN_VERSION = "amdahl.plan/1"
GRACE_S = 5.0
MEMORY_SHARE = 0.8
"""Of the machine's memory, where the job sets no limit: the rest is for the loop and the page cache's least."""

NEVER_INHERITED = ("ANTHROPIC_API_KEY", "PYTHONHOME", "PYTHONSTARTUP")
"""Ours, not the training's; and what would lead another interpreter astray."""


def find_obstacles(job: TrainingJob, base_dir: Path) -> tuple[str, ...]:
    """What in the manifest cannot be had on one machine; each line names field, value and fix."""
    trainer = job.spec.template.trainer
    field = "spec.template.spec.containers[trainer]"
    lines = [
        f"{field}.env {variable.name}: valueFrom cannot be had on one machine; give it a value in the manifest"
        for variable in trainer.env
        if "valueFrom" in (variable.model_extra or {})
    ]
    lines += [
        f"{field}.env {variable.name}: names beginning with AMDAHL_ are set by the loop; remove it"
        for variable in trainer.env
        if variable.name.startswith("AMDAHL_")
    ]
    if (trainer.model_extra or {}).get("envFrom"):
        lines.append(f"{field}.envFrom: cannot be had on one machine; write the variables out under env")
    if job.spec.replicas != 1:
        lines.append(f"spec.replicas: {job.spec.replicas}: one machine runs one replica; set 1, or use a cluster")
    if not (folder := working_dir(trainer, base_dir)).is_dir():
        lines.append(f"{field}.workingDir: {folder} is no folder on this machine; create it or correct the path")
    return tuple(lines)


def working_dir(trainer: Container, base_dir: Path) -> Path:
    """Where the command starts: `workingDir` seen from the manifest's folder, which is also the default."""
    return (base_dir / trainer.working_dir).resolve()


def scratch_paths(job: TrainingJob, base_dir: Path) -> tuple[Path, ...]:
    """The job's scratch paths as absolute paths; relative ones are seen from the working directory."""
    folder = working_dir(job.spec.template.trainer, base_dir)
    return tuple((folder / path).resolve() for path in job.spec.tuning.trial.scratch_paths)


def memory_ceiling(job: TrainingJob, machine_bytes: int) -> int:
    """Bytes that a launch may hold: the job's own limit (else request), else a share of the machine."""
    limit = job.spec.template.trainer.resources.quantity("memory")
    return int(limit) if limit else int(machine_bytes * MEMORY_SHARE)


def base_environment(environ: Mapping[str, str], interpreter: Path, beside: bool) -> dict[str, str]:
    """What every process of a run inherits: the loop's environment without what is ours.

    `beside`: put the loop's interpreter's folder first on PATH, so that `python` is the one it is installed with.
    """
    kept = {name: value for name, value in environ.items() if name not in NEVER_INHERITED}
    kept = {name: value for name, value in kept.items() if not name.startswith("AMDAHL_")}
    if beside:
        kept["PATH"] = os.pathsep.join([str(interpreter.parent), *filter(None, [environ.get("PATH", os.defpath)])])
    return {**kept, **TRACKERS_OFF}


def build_plan(
    job: TrainingJob,
    request: RunRequest,
    *,
    cwd: Path,
    enter: Sequence[str],
    probe: Path,
    directory: Path,
    mem_bytes: int,
    scratch: Sequence[Path],
) -> dict[str, Any]:
    """The supervisor's plan as JSON values. `enter` is put before the command, word for word."""
    trainer = job.spec.template.trainer
    return {
        "v": PLAN_VERSION,
        "run": request.run,
        "switch": "live" if request.live else "relaunch",
        "command": [*(escape(word) for word in enter), *trainer.command, *trainer.args],
        "cwd": str(cwd),
        "env": {"AMDAHL_REPLICAS": "1"} | ({"AMDAHL_TRACE": "1"} if request.trace else {}),
        "probe": str(probe),
        "dir": str(directory),
        "startup_timeout_s": request.startup_timeout_s,
        "step_timeout_s": request.step_timeout_s,
        "deadline_s": request.deadline_s,
        "grace_s": GRACE_S,
        "mem_bytes": mem_bytes,
        "scratch_paths": [str(path) for path in scratch],
        "windows": [_plan_window(window, trainer) for window in request.windows],
    }


def _plan_window(window: WindowRequest, trainer: Container) -> dict[str, Any]:
    """One window; the user's variables are repeated in each, since they may refer to knobs."""
    first = {"AMDAHL_REPLICAS": "1", **window.environment}
    return {
        "arm": window.arm.value,
        "index": window.index,
        "scored": window.scored,
        "knobs": {knob.value: value for knob, value in window.knobs.declared().items()},
        "env": expand_environment(first, trainer.env),
        "offset": window.offset,
        "seed": window.seed,
        "warmup_s": window.warmup_s,
        "warmup_steps": window.warmup_steps,
        "measure_s": window.measure_s,
        "min_steps": window.min_steps,
        "steps": window.steps,
        "save_every": window.save_every,
    }

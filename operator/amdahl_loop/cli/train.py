"""How does the training itself go on, with the values in force? In the foreground, on the user's real files.

Not a trial: nothing is isolated, nobody's trackers are switched off, and no telemetry is written. The process becomes
the training, so its output, its signals and its exit code are its own.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from amdahl_loop.adapters.local.programs import bundle_probe, inherit
from amdahl_loop.adapters.local.requests import working_dir
from amdahl_loop.adapters.local.runner import default_state_dir
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.domain.commands import expand, expand_environment
from amdahl_loop.domain.knob_values import knob_environment
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.trackers import TRACKERS_OFF


class Launch(NamedTuple):
    """A process to become."""

    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]


def prepare(job: TrainingJob, base_dir: Path, environ: Mapping[str, str]) -> Launch:
    """The job's own command with the values in force; the probe goes along: it applies loader knobs to any script."""
    trainer = job.spec.template.trainer
    knobs = knob_environment(job.spec.knobs.declared()) | {"AMDAHL_REPLICAS": str(job.spec.replicas)}
    own = expand_environment(knobs, trainer.env)
    environment = {**_inherit(environ), **own}
    paths = [_bundle_probe(default_state_dir(environ)), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = tuple(expand(word, environment) for word in (*trainer.command, *trainer.args))
    return Launch(command, working_dir(trainer, base_dir), environment)


def become(launch: Launch) -> NoReturn:
    """Replace this process by the training; `Stop` where it cannot be started."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.chdir(launch.folder)
        os.execvpe(launch.command[0], launch.command, launch.environment)  # noqa: S606 - no shell is meant
    except OSError as error:
        raise Stop(Exit.ENVIRONMENT, f"{launch.command[0]}: {error.strerror}; correct the trainer's command") from error


def _inherit(environ: Mapping[str, str]) -> dict[str, str]:
    """What a trial inherits, with the user's trackers as they were."""
    inherited = inherit(environ)
    trackers = {name: environ[name] for name in TRACKERS_OFF if name in environ}
    return {name: value for name, value in inherited.items() if name not in TRACKERS_OFF} | trackers


def _bundle_probe(state_dir: Path) -> str:
    """The probe, as the runner packs it."""
    try:
        return str(bundle_probe(state_dir))
    except OSError as error:
        raise Stop(Exit.ENVIRONMENT, str(error)) from error

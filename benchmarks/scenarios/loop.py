"""What does the loop make of a job? Runs the real command line in a work folder and keeps what it says."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import HERE, JOBS

LONGEST_LOOP_S = 3600.0
"""No loop of the quick profile comes near; it ends one that hangs."""


@dataclass(frozen=True)
class Tried:
    """One experiment, as the command line tells it."""

    knob: str
    before: int | bool | str | None
    after: int | bool | str
    verdict: str
    reason: str
    sentence: str
    effect: float | None

    def __str__(self) -> str:
        change = f"{self.knob} {self.before} → {self.after}"
        effect = "" if self.effect is None else f" {100 * self.effect:.0f} %"
        return f"{change}: {self.verdict}{effect}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Found:
    """What a finished loop says: its diagnosis, its experiments, the values it ends with, and its own wall time."""

    bottleneck: str
    sentence: str
    experiments: tuple[Tried, ...]
    knobs: dict[str, int | bool | str]
    end: str
    wall_s: float

    @property
    def wins(self) -> tuple[Tried, ...]:
        """The experiments that were won."""
        return tuple(tried for tried in self.experiments if tried.verdict == "Won")


def prepare(work: Path, *data: str) -> None:
    """Copy the jobs into the work folder and write their data (named, else all): trials must find it there."""
    shutil.copytree(JOBS, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    subprocess.run([sys.executable, "prepare.py", *data], cwd=work, check=True, env=environment())


def environment() -> dict[str, str]:
    """The caller's environment with this interpreter first on PATH, so that `python` in a manifest is this one."""
    home = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{home}{os.pathsep}{os.environ.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


def run_loop(name: str, manifest: str, work: Path, out: Path, profile: str, neighbour: bool = False) -> Found:
    """Run the loop to its end, or take up one that was cut short; a finished one is only read."""
    out.mkdir(parents=True, exist_ok=True)
    told, clock = out / "loop.json", out / "wall_s"
    if not told.exists():
        path = work / f"{name}.yaml"
        path.write_text(manifest)
        begun_s = time.monotonic()
        with _neighbour(neighbour):
            text = _call(["run", str(path), "--profile", profile, "--ledger", str(out / "ledger.sqlite")], out)
        spent_s = time.monotonic() - begun_s + (float(clock.read_text()) if clock.exists() else 0.0)
        clock.write_text(f"{spent_s:.1f}")
        told.write_text(text)
    return read_found(json.loads(told.read_text()), float(clock.read_text()))


def _call(arguments: list[str], out: Path) -> str:
    program = Path(sys.executable).with_name("amdahl-loop")
    with (out / "loop.log").open("ab") as log:
        done = subprocess.run(
            [program, *arguments, "-o", "json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            timeout=LONGEST_LOOP_S,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"amdahl-loop {' '.join(arguments)} ended with {done.returncode}; see {out / 'loop.log'}")
    return done.stdout


def read_found(told: dict[str, Any], wall_s: float) -> Found:
    """Parse what `run -o json` printed."""
    diagnosis = told["diagnosis"] or {"class": "none", "sentence": told["reason"]}
    return Found(
        bottleneck=diagnosis["class"],
        sentence=diagnosis["sentence"],
        experiments=tuple(
            Tried(e["knob"], e["from"], e["to"], e["verdict"], e.get("reason", ""), e["sentence"], e["effect"])
            for e in told["experiments"]
        ),
        knobs=told["final"]["knobs"],
        end=told.get("reason", ""),
        wall_s=wall_s,
    )


@contextmanager
def _neighbour(is_there: bool) -> Iterator[None]:
    if not is_there:
        yield
        return
    process = subprocess.Popen([sys.executable, HERE / "neighbour.py", "AMDAHL_DATALOADER_WORKERS", "0"])
    try:
        yield
    finally:
        process.terminate()
        process.wait()

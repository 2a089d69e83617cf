"""The whole command line on a simulated machine: real manifests, a real SQLite ledger, processes that only a formula has."""

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from amdahl_loop.cli.main import main
from amdahl_loop.cli.session import World, open_console
from amdahl_loop.cli.train import Launch
from amdahl_loop.ports import Clock
from builders import make_manifest
from fakes import SimulatedRunner, Truth, loader_bound

TEXT = """\
# what a user wrote
apiVersion: amdahl-loop.io/v1alpha1
kind: TrainingJob
metadata: {name: pydocs}
spec:
  knobs:
    dataloaderWorkers: 0   # the culprit
  template:
    spec:
      containers:
        - name: trainer
          command: [python, train.py]
  tuning: {profile: quick, budget: {deviceHours: "100"}}
"""


@dataclass(frozen=True)
class Called:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


@dataclass
class Cli:
    """Calls the command line in a folder of its own."""

    folder: Path
    truth: Truth = field(default_factory=lambda: Truth(phases_s=loader_bound))
    runners: list[SimulatedRunner] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    width: int | None = None
    """Columns of a terminal; None is no terminal."""

    def __post_init__(self) -> None:
        self._now_s = 1_000.0
        self.write(TEXT)

    @property
    def manifest(self) -> Path:
        """The job's manifest."""
        return self.folder / "job.yaml"

    @property
    def ledger(self) -> Path:
        """The default ledger."""
        return self.folder / "state" / "amdahl-loop" / "ledger.sqlite"

    @property
    def submitted(self) -> list[str]:
        """Every run that was started, over all calls."""
        return [run for runner in self.runners for run in runner.submitted]

    def write(self, manifest: str | Mapping[str, Any]) -> None:
        """Put a manifest in place."""
        if isinstance(manifest, str):
            self.manifest.write_text(manifest)
        else:
            YAML(typ="safe").dump(manifest, self.manifest)

    def __call__(self, *words: str | Path) -> Called:
        """Run one command."""
        out, err = io.StringIO(), io.StringIO()
        environment = {"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder / "state"), "PATH": "/usr/bin:/bin"}
        world = World(
            make_runner=lambda *_: self._make_runner(),
            device_type=lambda: "cpu:4",
            train=self._train,
            clock=self._tell_time,
            sleep=self._sleep,
            environment=environment,
            open_console=self._open_console,
            stdout=out,
            stderr=err,
        )
        try:
            code = main([str(word) for word in words], world)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Called(code, out.getvalue(), err.getvalue())

    def _open_console(self, stream: TextIO) -> Console:
        if self.width is None:
            return open_console(stream)
        return Console(file=stream, width=self.width, height=50, force_terminal=True, highlight=False)

    def _make_runner(self) -> SimulatedRunner:
        self.runners.append(SimulatedRunner(self.truth, now_s=self._now_s))
        return self.runners[-1]

    def _tell_time(self) -> float:
        """One clock for the loop and for the machine: a second passes with each look, and runs take their time."""
        runner_s = self.runners[-1].now_s if self.runners else 0.0
        self._set_time(max(self._now_s + 1.0, runner_s))
        return self._now_s

    def _set_time(self, now_s: float) -> None:
        self._now_s = now_s
        if self.runners:
            self.runners[-1].now_s = now_s

    async def _sleep(self, until_s: float, _clock: Clock, _stop: asyncio.Event) -> None:
        """Nobody waits for hours in a test."""
        self._set_time(max(self._now_s, until_s))

    def _train(self, launch: Launch) -> None:
        self.launches.append(launch)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A command line whose job waits for its loader."""
    return Cli(tmp_path)


@pytest.fixture
def make_cli(tmp_path: Path) -> Callable[..., Cli]:
    """A command line with a job of the caller's."""

    def make(truth: Truth, knobs: dict[str, Any] | None = None, tuning: dict[str, Any] | None = None) -> Cli:
        cli = Cli(tmp_path, truth)
        cli.write(make_manifest(knobs, {"profile": "quick", **(tuning or {})}))
        return cli

    return make

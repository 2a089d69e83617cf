"""Runs of real torch scripts, with and without the probe, that several test modules share."""

import functools
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from amdahl_probe import records

SCRIPTS = Path(__file__).parent / "scripts"

PYTHON = os.environ.get("AMDAHL_PROBE_PYTHON", sys.executable)
"""The interpreter, and so the torch, that runs the scripts; pytest itself may have another."""


@functools.cache
def look_at_torch() -> dict[str, Any]:
    """`version` of the scripts' torch, and what it `has` (name -> bool) of what the scripts use where they can."""
    asked = subprocess.run([PYTHON, SCRIPTS / "torch_has.py"], capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


def torch_has(name: str) -> bool:
    """Whether the scripts' torch has an interface; without it a test expects less, and the session says so."""
    return look_at_torch()["has"][name]


class Ran(NamedTuple):
    """A finished process."""

    code: int
    out: str
    errors: str


class Scripts:
    """Runs scripts, two at a time, each once for the whole session: importing torch is what costs."""

    def __init__(self, home: Path, probe_zip: Path, bare_env: dict[str, str]) -> None:
        self.home, self._zip, self._env = home, str(probe_zip), bare_env
        self._pool = ThreadPoolExecutor(2)
        self._futures: dict[str, Future[Ran]] = {}

    def start(self, name: str, *arguments: str, probe: bool = True, **environment: str) -> None:
        """Queue `python ARGUMENTS` with its own telemetry directory."""
        env = {**self._env, **environment}
        if probe:
            path = [self._zip, *filter(None, [environment.get("PYTHONPATH")])]
            env["PYTHONPATH"] = os.pathsep.join(path)
            env.setdefault("AMDAHL_TELEMETRY_DIR", str(self.directory(name)))
        (self.home / name).mkdir()
        self._futures[name] = self._pool.submit(self._run, [PYTHON, *arguments], env)

    def _run(self, command: list[str], env: dict[str, str]) -> Ran:
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def out(self, name: str) -> Path:
        """The directory a script may write to."""
        return self.home / name

    def directory(self, name: str) -> Path:
        """Where its telemetry goes."""
        return self.home / f"{name}-telemetry"

    def result(self, name: str) -> Ran:
        """Wait for it."""
        return self._futures[name].result()

    def lines(self, name: str, rank: int = 0) -> list[dict[str, Any]]:
        """What a rank wrote; every line must be one the supervisor believes."""
        self.result(name)
        lines = (self.directory(name) / f"rank-{rank}.jsonl").read_bytes().splitlines()
        assert not [record for record in map(records.parse, lines) if isinstance(record, records.Refused)]
        return [json.loads(line) for line in lines]

    def steps(self, name: str, rank: int = 0) -> list[dict[str, Any]]:
        """Its steps."""
        return [line for line in self.lines(name, rank) if line["k"] == "step"]

    def close(self) -> None:
        """Wait for all."""
        self._pool.shutdown()


def find_port() -> str:
    """A port nobody has."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return str(asked.getsockname()[1])

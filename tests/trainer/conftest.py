"""Builders for trainer tests: tiny configurations, engines in this process, and real runs in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from amdahl_trainer import config as configs
from amdahl_trainer import train
from amdahl_trainer.config import Config, Scalar
from amdahl_trainer.loop import Engine
from amdahl_trainer.peers import Alone, Place
from amdahl_trainer.report import Reporter, Telemetry

torch.set_num_threads(1)

#: A model and corpus small enough that a step takes a few milliseconds.
TINY: dict[str, Scalar] = {
    "run.max_steps": 12,
    "run.torch_threads": 1,
    "run.gc_every": 5,
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 48,
    "data.max_documents": 150,
    "data.seq_len": 64,
    "batch.global_sequences": 8,
    "optim.warmup_steps": 3,
    "optim.decay_steps": 12,
    "metrics.log_every": 1,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory in which the corpus is built once for all tests."""
    return tmp_path_factory.mktemp("amdahl-cache")


@pytest.fixture
def tiny(cache: Path, tmp_path: Path) -> Callable[..., Config]:
    """A tiny configuration with some keys changed: `tiny({"run.seed": 2})`."""

    def make(changes: Mapping[str, Scalar] | None = None) -> Config:
        return configs.build(settings(cache, tmp_path / "out", changes or {}))

    return make


def settings(cache: Path, out: Path, changes: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {**TINY, "data.cache_dir": str(cache), "run.out_dir": str(out), **changes}


@pytest.fixture
def tiny_arguments(cache: Path, tmp_path: Path) -> list[str]:
    """The tiny configuration as command-line arguments."""
    return [f"--{key}={value}" for key, value in settings(cache, tmp_path / "out", {}).items()]


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """A whole engine in this process, its loader open; parts given by name replace the real ones."""
    made: list[Engine] = []

    def make(config: Config, environ: Mapping[str, str] | None = None, **parts: Any) -> Engine:
        told = {"AMDAHL_TELEMETRY_DIR": str(tmp_path / "telemetry"), **(environ or {})}
        begun_ns = time.monotonic_ns()
        reporter = Reporter(Telemetry.from_environ(told), Place(), "cpu", begun_ns)
        job = train.Job(config, told, Place(), torch.device("cpu"), Alone(), reporter)
        engine = train.build(job, train.Startup(begun_ns), lambda: False)
        engine.parts = dataclasses.replace(engine.parts, **parts)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.parts.loader.close()
        engine.parts.reporter.close(engine.steps, "exit")


@dataclass
class Run:
    """What a run in processes of its own left behind."""

    codes: list[int | None]
    home: Path
    records: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def output(self) -> str:
        return (self.home / "log").read_text()

    def of(self, kind: str, rank: int = 0) -> list[dict[str, Any]]:
        """The records of one kind."""
        return [record for record in self.records[rank] if record["k"] == kind]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.of("step")]

    @property
    def sample_digests(self) -> list[int]:
        """The order-free digest of each step's samples over all ranks."""
        ranks = [self.of("step", rank) for rank in range(len(self.records))]
        return [sum(int(step["ids"], 16) for step in steps) & 0xFFFFFFFF for steps in zip(*ranks, strict=True)]


class Ranks:
    """Running processes of one run."""

    def __init__(self, zygote: Zygote, home: Path, pids: Sequence[int]) -> None:
        self.zygote, self.home, self.pids = zygote, home, pids
        self.codes: dict[int, int | None] = {}

    @property
    def output(self) -> str:
        return (self.home / "log").read_text()

    def records(self, rank: int = 0) -> list[dict[str, Any]]:
        """What a rank has written so far."""
        path = self.home / f"rank-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(
        self, is_there: Callable[[dict[str, Any]], bool], timeout_s: float = 300, rank: int = 0
    ) -> dict[str, Any]:
        """The first record of a rank that is as wanted."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for record in self.records(rank):
                if is_there(record):
                    return record
            time.sleep(0.01)
        raise AssertionError(f"no such record in {timeout_s} s: {(self.home / 'log').read_text()}")

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.pids[rank], number)

    def wait(self, rank: int, timeout_s: float = 600) -> int | None:
        """The exit code of one rank; None if it did not end and was killed."""
        if rank not in self.codes:
            self.codes[rank] = self.zygote.ask({"do": "wait", "pid": self.pids[rank], "timeout_s": timeout_s})["code"]
        return self.codes[rank]

    def join(self, timeout_s: float = 600) -> Run:
        ranks = range(len(self.pids))
        return Run([self.wait(rank, timeout_s) for rank in ranks], self.home, [self.records(rank) for rank in ranks])


class Zygote:
    """Starts processes; see zygote.py."""

    def __init__(self) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, bufsize=1
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def start(
        self, home: Path, arguments: Sequence[str], nproc: int, environ: Mapping[str, str], script: str | None
    ) -> Ranks:
        home.mkdir(parents=True, exist_ok=True)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if nproc > 1 else {}
        pids = []
        for rank in range(nproc):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(nproc)} if nproc > 1 else {}
            told = {"AMDAHL_TELEMETRY_DIR": str(home), **_plain_environ(), **shared, **own, **environ}
            request: dict[str, Any] = {"do": "start", "arguments": list(arguments), "environ": told}
            request |= {"log": str(home / "log")} | ({"script": script} if script else {})
            pids.append(int(self.ask(request)["pid"]))
        return Ranks(self, home, pids)


def _plain_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}


def _free_port() -> int:
    """Not one that the kernel gives away for outgoing connections (32768 on): another test's could take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(60)
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.fixture
def start(zygote: Zygote, cache: Path, tmp_path: Path) -> Callable[..., Ranks]:
    """Start a tiny run: `start("name", {"run.seed": 2}, nproc=2)`. Runs that share `out` share checkpoints."""

    def go(
        name: str,
        changes: Mapping[str, Scalar] | None = None,
        nproc: int = 1,
        environ: Mapping[str, str] | None = None,
        out: str | None = None,
        script: str | None = None,
    ) -> Ranks:
        told = settings(cache, tmp_path / "out" / (out or name), changes or {})
        arguments = [f"--{key}={value}" for key, value in told.items()]
        return zygote.start(tmp_path / name, arguments, nproc, environ or {}, script)

    return go


@pytest.fixture
def run(start: Callable[..., Ranks]) -> Callable[..., Run]:
    """Start a tiny run and wait for its end."""

    def go(*arguments: Any, **named: Any) -> Run:
        return start(*arguments, **named).join()

    return go

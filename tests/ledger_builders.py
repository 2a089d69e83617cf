"""Ledgers as a loop leaves them: a scenario played to its end on a simulated machine, kept where a test wants it."""

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import Body, parse_export
from amdahl_loop.cli.main import main
from amdahl_loop.cli.session import World
from amdahl_loop.cli.session import connect as connect_for_real
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.passing import identify
from amdahl_loop.reconcile import Ports, tick
from builders import make_job
from fakes import SimulatedRunner, Truth

MANY_TICKS = 400
CLUSTER_UID = "0f0e0d0c-0b0a-0908-0706-050403020100"


def make_cluster_job(uid: str = CLUSTER_UID, name: str = "pydocs", **manifest: Any) -> TrainingJob:
    """A job as a cluster names it."""
    job = make_job(
        tuning={"profile": "quick", "budget": {"deviceHours": "100"}, **manifest.pop("tuning", {})}, **manifest
    )
    metadata = job.metadata.model_copy(update={"uid": uid, "name": name})
    return job.model_copy(update={"metadata": metadata})


def play(job: TrainingJob, truth: Truth, path: Path, failing: str = "") -> tuple[Body, ...]:
    """Everything that a loop recorded of a job once nothing was left to do; the ledger lies at `path`.

    `failing`: once all is done, the job fails so under the values in force, and the loop goes on from there.
    """
    runner = SimulatedRunner(truth, now_s=1_000_000.0)

    def tell_time() -> float:
        runner.now_s += 1.0
        return runner.now_s

    async def loop() -> None:
        with SqliteLedger.open(path) as ledger:
            ports = Ports(runner=runner, ledger=ledger, clock=tell_time)
            await go_on(ports)
            if failing:
                await tick(job, identify(job), ports, failing=failing)
                await go_on(ports)

    async def go_on(ports: Ports) -> None:
        for _ in range(MANY_TICKS):
            if (await tick(job, identify(job), ports)).is_over:
                return
        raise AssertionError("the loop does not end")

    asyncio.run(loop())
    return read_bodies(path)


def read_bodies(path: Path) -> tuple[Body, ...]:
    """What a ledger holds."""
    with SqliteLedger.open(path, exclusive=False) as ledger:
        return tuple(parse_export(ledger.export_lines()))


@dataclass(frozen=True)
class Called:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Connect = Callable[..., Any]


def call(
    *words: str | Path, connect: Connect = connect_for_real, environment: Mapping[str, str] | None = None
) -> Called:
    """One command of the command line, as a user types it."""
    out, err = io.StringIO(), io.StringIO()
    known = environment if environment is not None else {"HOME": "/nowhere", "PATH": "/usr/bin:/bin"}
    world = World(stdout=out, stderr=err, environment=known, connect=connect)
    try:
        code = main([str(word) for word in words], world)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return Called(code, out.getvalue(), err.getvalue())


def reach(make_client: Callable[[], KubeClient], namespace: str = "team") -> Connect:
    """A way into a cluster of the test's own."""

    async def connect(*_: object) -> tuple[KubeClient, str]:
        return make_client(), namespace

    return connect

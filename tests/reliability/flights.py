"""How does a test catch an experiment in the act? A scene with a block in flight whose pod never ends by itself."""

import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

from amdahl_loop.domain.children import EXPERIMENT_LABEL
from fakes import Truth, loader_bound
from reliability.hands import Behaviour, Hands
from reliability.operators import Nursery
from reliability.programs import pod_status
from reliability.scenes import Scene, setting, training_job
from reliability.wire import Object
from testbed.cluster import Cluster

HELD = "d1"
SOON_S = 900.0
"""A bound on hanging; what is asked for comes with the next pass."""


def _end(hands: Hands, block: str, plan: Object) -> Object | None:
    """Every block ends at once, but for the one that is held."""
    if block == HELD:
        return pod_status("Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, podIP="127.0.0.9")
    return hands.succeed(block, plan)


@asynccontextmanager
async def in_flight(server: Cluster, nursery: Nursery, folder: Path) -> AsyncIterator[Scene]:
    """A scene whose block `d1` runs."""
    async with (
        setting(server, nursery, folder) as theatre,
        theatre.scene(Behaviour(Truth(phases_s=loader_bound), end=_end)) as scene,
    ):
        await scene.apply(training_job())
        scene.start()
        await scene.reach(f"POST jobs {HELD}")
        await scene.wait("its pod runs", lambda: _is_started(scene))
        yield scene


async def _is_started(scene: Scene) -> bool:
    return any(run.endswith(f"-{HELD}") for run in scene.village.started)


async def block_jobs(scene: Scene) -> list[str]:
    """Names of the Jobs of blocks, and of their pods."""
    found = [*await scene.jobs(), *await scene.wire.items(scene.path("pods"))]
    return [item["metadata"]["name"] for item in found if EXPERIMENT_LABEL in item["metadata"].get("labels", {})]


async def no_block(scene: Scene) -> None:
    """Wait until nothing of a block is left."""

    async def is_gone() -> bool:
        return not await block_jobs(scene)

    await scene.wait("no block and no pod of one is left", is_gone, SOON_S)


async def verdicts(scene: Scene) -> list[tuple[str, str]]:
    """Word and reason of every Experiment; empty where it is open."""
    found = [(e.get("status") or {}).get("verdict") or {} for e in await scene.experiments()]
    return [(verdict.get("word", ""), verdict.get("reason", "")) for verdict in found]


async def closed(scene: Scene, *wanted: tuple[str, str]) -> None:
    """Wait until the first experiments have these verdicts."""

    async def is_so() -> bool:
        return sorted(wanted) == sorted(v for v in await verdicts(scene) if v[0])

    await scene.wait(f"verdicts {wanted}", is_so)


async def held_job(scene: Scene) -> Object:
    """The Job of the block in flight."""
    return next(job for job in await scene.jobs() if job["metadata"]["name"].endswith(f"-{HELD}"))


def release(scene: Scene) -> Awaitable[None]:
    """From now on every block ends; the one in flight does at once."""
    scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
    return _finish_held(scene)


async def _finish_held(scene: Scene) -> None:
    for pod in await scene.wire.items(scene.path("pods")):
        if EXPERIMENT_LABEL in pod["metadata"]["labels"]:
            trainer = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
            text = next(v["value"] for v in trainer["env"] if v["name"] == "AMDAHL_PLAN")
            status = scene.hands.succeed(HELD, json.loads(text.replace("$$", "$")))
            await scene.hands.set_pod(scene.namespace, pod["metadata"]["name"], status)

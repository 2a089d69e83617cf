"""What if everything goes wrong all the time? Whole lives of a win under faults drawn at random, one after another without a pause.

The oracle is the undisturbed life: as long as faults come, and whatever they are, every life ends as that one did.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from reliability.injuries import EVERY_WOUND, RESET, EveryKind, OneBehind, always
from reliability.operators import Nursery
from reliability.relay import Fault, open_relay
from reliability.scenes import Scene, setting
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold_all, run
from testbed.cluster import Cluster

LIVES = 12
AT_ONCE = 3
LEAST_FAULTS = 5
"""In every life; it ends when its faults do not hold it up any longer."""

Strike = Callable[[Scene, random.Random], Awaitable[None]]


async def _kill(scene: Scene, _: random.Random) -> None:
    scene.operator.kill()
    scene.start()


async def _stop(scene: Scene, draw: random.Random) -> None:
    scene.operator.send(signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(0.5, 4))
    scene.operator.send(signal.SIGCONT)


async def _suffer(scene: Scene, fault: Fault, for_s: float) -> None:
    """A fault stands in the way for a while."""
    scene.relay.fault = fault
    await asyncio.sleep(for_s)
    del scene.relay.fault


async def _go_away(scene: Scene, draw: random.Random) -> None:
    await _suffer(scene, always(draw.choice([500, 503, 429, RESET])), draw.uniform(0.5, 3))


async def _wound(scene: Scene, draw: random.Random) -> None:
    await _suffer(scene, EveryKind(tuple(draw.sample(EVERY_WOUND, len(EVERY_WOUND)))), draw.uniform(1, 4))


async def _lag(scene: Scene, draw: random.Random) -> None:
    await _suffer(scene, OneBehind(), draw.uniform(1, 4))


async def _break_watches(scene: Scene, draw: random.Random) -> None:
    scene.relay.watches_gone, scene.relay.watch_limit_s = 3, 0.5
    await asyncio.sleep(draw.uniform(1, 3))
    scene.relay.watches_gone, scene.relay.watch_limit_s = 0, None


async def _double(scene: Scene, draw: random.Random) -> None:
    """A second operator for some seconds, as where a node is only thought to be lost."""
    async with open_relay(scene.wire) as other:
        scene.start(other)
        await asyncio.sleep(draw.uniform(2, 5))
        scene.processes.pop().close()


STRIKES: dict[str, Strike] = {
    "killed": _kill,
    "stopped": _stop,
    "server away": _go_away,
    "calls go wrong": _wound,
    "lists lag": _lag,
    "watches break": _break_watches,
    "two operators": _double,
}


async def live(scene: Scene, draw: random.Random, struck: list[str]) -> None:
    """Strike, and again, until the life is at its end; `struck`: with what, and after how many writes."""
    while len(struck) < LEAST_FAULTS or not WIN_AND_ROLL_BACK.has_ended(await scene.job()):
        name, written = draw.choice(sorted(STRIKES)), len(scene.relay.writes)
        await STRIKES[name](scene, draw)
        struck.append(f"{name} from write {written} to {len(scene.relay.writes)}")
        await asyncio.sleep(draw.uniform(0, 2))


def soak(server: Cluster, nursery: Nursery, folder: Path, lives: int) -> dict[str, Run]:
    """So many lives, some at a time, each under the faults that it met. Seeds are the numbers of the lives."""
    struck: list[list[str]] = [[] for _ in range(lives)]
    room = asyncio.Semaphore(AT_ONCE)

    async def go() -> list[Run]:
        async with setting(server, nursery, folder) as theatre:

            async def one(number: int) -> Run:
                async with room:
                    draw = random.Random(number)
                    return await run(
                        theatre, WIN_AND_ROLL_BACK, disturb=lambda scene: live(scene, draw, struck[number])
                    )

            return list(await asyncio.gather(*(one(number) for number in range(lives))))

    runs = asyncio.run(go())
    return {
        f"life {number}, {', '.join(met)}": lived for number, (met, lived) in enumerate(zip(struck, runs, strict=True))
    }


def count_kinds(lives: Iterable[str]) -> Counter[str]:
    """How often each kind of fault struck."""
    return Counter({kind: sum(met.count(f", {kind} from") for met in lives) for kind in STRIKES})


def test_a_life_under_random_faults_comes_to_the_same_end(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """One life, five faults at least."""
    lives = soak(server, nursery, tmp_path, 1)
    hold_all(undisturbed, lives)
    assert count_kinds(lives).total() >= LEAST_FAULTS


@pytest.mark.slow
def test_lives_under_random_faults_all_come_to_the_same_end(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """Without a pause, every kind of fault again and again; three days of it are this test in a loop with other seeds."""
    lives = soak(server, nursery, tmp_path, LIVES)
    seen = count_kinds(lives)
    print(f"{len(lives)} lives, {seen.total()} faults: {dict(seen)}, {sum(run.took_s for run in lives.values()):.0f} s")
    hold_all(undisturbed, lives)
    assert all(seen.values())

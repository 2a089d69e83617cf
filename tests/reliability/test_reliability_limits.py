"""What if the operator's own container is too small, or its machine stands still? Later, and the same."""

import asyncio
import signal
from pathlib import Path

from reliability.limits import Limits, open_limits
from reliability.operators import Nursery
from reliability.scenes import Scene
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold, live
from testbed.cluster import Cluster

TOO_SMALL_MIB = (1, 2, 4, 6, 8)
"""A start alone touches more; each lives a little longer than the one before."""
SLEEP_S = 20.0


def test_an_operator_that_is_killed_for_memory_again_and_again_loses_nothing(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """The kernel kills it wherever it happens to ask for memory, five starts in a row; then its limit is raised: the same end."""

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d1")
        for size in TOO_SMALL_MIB:
            with open_limits() as limits:
                limits.set_memory(size)
                limits.put(scene.operator.pid)
                await scene.wait("it is killed", lambda limits=limits: _is_killed(limits))
                await scene.wait("it has ended", lambda: _has_ended(scene))
            scene.start()

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)


async def _is_killed(limits: Limits) -> bool:
    return limits.kills > 0


async def _has_ended(scene: Scene) -> bool:
    return scene.operator.has_ended


def test_an_operator_with_a_twentieth_of_a_core_comes_to_the_same_end(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """`cpu: 50m`, the chart's request as a limit: slow, and nothing else."""

    async def disturb(scene: Scene) -> None:
        with open_limits() as limits:
            limits.set_cpu(50)
            limits.put(scene.operator.pid)
            await scene.wait("the end", lambda: _is_over(scene))
            scene.operator.kill()
        scene.start()

    hold(undisturbed, live(server, nursery, tmp_path, disturb))


async def _is_over(scene: Scene) -> bool:
    return WIN_AND_ROLL_BACK.has_ended(await scene.job())


def test_an_operator_that_stood_still_takes_up_what_happened(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """Its machine is suspended in the middle of a trial: when it wakes, its watches have ended, and its block too."""

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d1")
        scene.relay.watch_limit_s = 1.0
        scene.operator.send(signal.SIGSTOP)
        await asyncio.sleep(SLEEP_S)
        scene.relay.watch_limit_s = None
        scene.operator.send(signal.SIGCONT)

    hold(undisturbed, live(server, nursery, tmp_path, disturb))

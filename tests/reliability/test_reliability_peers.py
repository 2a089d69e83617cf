"""What if two operators work on the same jobs? Nothing happens twice, nobody fights, and old intentions are refused."""

import asyncio
import signal
from pathlib import Path

from reliability.operators import Nursery
from reliability.relay import Call, Send, open_relay
from reliability.scenes import Scene
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold, live
from reliability.wire import Reply
from testbed.cluster import Cluster

REST_S = 5.0
"""Two passes of an operator that waits for pods; whoever fights writes in each."""
MOST_WRITES = 4
"""Writes of two operators together, as a multiple of one's: each may try what the other has just done, and no more."""


def test_two_operators_do_everything_once(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """Both alive for the whole life of a win: the same end, every block started once, the spec written once each way, no fight."""
    tried: list[list[Call]] = []

    async def disturb(scene: Scene) -> None:
        async with open_relay(scene.wire) as other:
            scene.start(other)

            async def have_come_to_rest() -> bool:
                before = len(scene.relay.writes) + len(other.writes)
                await asyncio.sleep(REST_S)
                return await _is_over(scene) and len(scene.relay.writes) + len(other.writes) == before

            await scene.wait("the end, and nobody writes any more", have_come_to_rest)
            tried.append(other.writes)
            scene.processes.pop().close()

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)
    assert len(lived.writes) + len(tried[0]) <= MOST_WRITES * len(undisturbed.writes)
    assert tried[0], "the second operator has done nothing"


async def _is_over(scene: Scene) -> bool:
    return WIN_AND_ROLL_BACK.has_ended(await scene.job())


def test_an_operator_that_wakes_up_late_is_refused(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """Stopped in the middle of a write while another one goes on: what it had in mind then is outdated when it arrives."""
    late: list[int] = []

    async def disturb(scene: Scene) -> None:
        held, go_on = asyncio.Event(), asyncio.Event()

        async def hold(call: Call, send: Send) -> Reply:
            if call.kind != "PATCH experiments/status" or held.is_set():
                return await send(call)
            scene.processes[0].send(signal.SIGSTOP)
            held.set()
            await go_on.wait()
            reply = await send(call)
            late.append(reply.status)
            return reply

        await scene.reach("POST jobs d1")
        scene.relay.fault = hold
        await held.wait()
        async with open_relay(scene.wire) as other:
            scene.start(other)
            await scene.wait("the other one has gone on", lambda: _has_run(scene, 5))
            go_on.set()
            scene.processes[0].send(signal.SIGCONT)
            await scene.wait("the end", lambda: _is_over(scene))
            scene.processes.pop().close()

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)
    assert late == [409]


async def _has_run(scene: Scene, count: int) -> bool:
    return len(scene.village.started) >= count

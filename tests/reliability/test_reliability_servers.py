"""What if the API server or its store goes away, or comes back with an older memory?"""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from reliability.operators import Nursery
from reliability.relay import Call, Send, name_write
from reliability.scenes import Scene
from reliability.sweeps import Run, find_faults, hold, live
from reliability.wire import Reply
from testbed.cluster import Cluster


def test_servers_that_die_and_come_back_cost_only_time(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """The API server killed in discovery, the store in a check, both before the win is applied: the same end."""

    async def disturb(scene: Scene) -> None:
        for write, names in (
            ("POST jobs d1", ["kube-apiserver"]),
            ("POST jobs r0-0", ["etcd"]),
            ("PATCH experiments/status block n0", ["kube-apiserver", "etcd"]),
        ):
            await scene.reach(write)
            for name in names:
                await asyncio.to_thread(server.kill, name)
            for name in reversed(names):
                await asyncio.to_thread(server.start, name)

    hold(undisturbed, live(server, nursery, tmp_path, disturb))


@pytest.mark.parametrize(
    ("taken", "restored"),
    [("POST jobs d1", "POST jobs r1-0"), ("POST jobs s0", "PATCH experiments/status rolledBack")],
    ids=["mid-discovery", "before-the-win"],
)
def test_a_store_that_was_put_back_is_caught_up_with(
    taken: str, restored: str, server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """The operator finds that its cluster has forgotten, and ends; started anew, it comes to the same end and the same bank.

    Only what was forgotten is run again.
    """
    blocks: list[list[str]] = []

    async def disturb(scene: Scene) -> None:
        gate = asyncio.Event()

        async def wait(call: Call, send: Send) -> Reply:
            await gate.wait()
            return await send(call)

        await scene.reach(taken)
        await asyncio.to_thread(server.snapshot_etcd, tmp_path / "store")
        await scene.reach(restored)
        scene.relay.fault = wait
        await asyncio.to_thread(server.restore_etcd, tmp_path / "store")
        blocks.append([block["name"] for e in await scene.experiments() for block in e["status"].get("blocks", [])])
        del scene.relay.fault
        gate.set()
        scene.hands.forget(scene.namespace)
        before = scene.operator

        async def has_ended() -> bool:
            return before.has_ended

        await scene.wait("the operator ends by itself", has_ended)
        assert "the API server's store was put back" in scene.log
        known = len(scene.relay.writes)

        async def has_lived_on() -> bool:
            return any(name_write(call) == "PATCH experiments/status rolledBack" for call in scene.relay.writes[known:])

        scene.start()  # as a kubelet does
        await scene.wait("the new one comes to the end", has_lived_on)

    lived = live(server, nursery, tmp_path, disturb)
    again = Counter(lived.state["started"]) if lived.state else Counter()
    assert not [fault for fault in find_faults(undisturbed, [lived]) if ": started:" not in fault]
    assert set(again) == set(undisturbed.state["started"])
    assert max(again.values()) <= 2
    assert all(again[name] == 1 for name in blocks[0]), "a block that the store remembers was run again"

"""How ranks meet in a store that outlives them: each start of theirs is by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from amdahl_trainer import launch, meeting
from amdahl_trainer.errors import Exit, PeerError
from amdahl_trainer.heartbeat import Heartbeat
from amdahl_trainer.place import Meeting, Place

#: Long enough for threads on a busy machine.
LIMIT_S = 60


def at_once(works: Sequence[Callable[[], object]]) -> list:
    """What they return, each run in a thread of its own."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [begun.result(LIMIT_S) for begun in [pool.submit(work) for work in works]]


def come(store, rank, world=3):
    """A rank comes, and returns the number of the start it belongs to."""
    start = meeting.enter(store, Place(rank, world), LIMIT_S)
    meeting.within(store, start).set(f"rank/{rank}", "here")
    keys = [f"rank/{one}" for one in range(world)]
    meeting.await_all(store, start, keys, LIMIT_S, tells=rank == 0)
    return start


def test_each_start_has_keys_of_its_own():
    """All ranks of a start come to the same number, another one than those before; what these wrote is not seen."""
    store = dist.HashStore()
    numbers = [at_once([lambda rank=rank: come(store, rank) for rank in range(3)]) for _ in range(3)]
    assert numbers == [["1"] * 3, ["2"] * 3, ["3"] * 3]
    assert not meeting.within(store, "4").check(["rank/0"])


def test_a_rank_that_died_before_the_others_came_disturbs_no_later_start():
    """It has asked for a number that nobody told it; the ranks that come later are told theirs."""
    store = dist.HashStore()
    with pytest.raises(PeerError, match="rank 0 of 3 did not come for 0 s"):
        meeting.enter(store, Place(1, 3), 0)
    assert at_once([lambda rank=rank: come(store, rank) for rank in range(3)]) == ["1"] * 3


def test_a_rank_that_comes_to_ranks_that_have_met_waits_for_another_start():
    """As when a pod is started anew alone: it does not take the place of the rank that the others are about to miss."""
    store = dist.HashStore()
    at_once([lambda rank=rank: come(store, rank) for rank in range(3)])
    with pytest.raises(PeerError, match="rank 0 of 3 did not come for 0 s"):
        meeting.enter(store, Place(2, 3), 0)


def test_the_ranks_that_are_missing_are_named():
    """By the first rank, which awaits all."""
    store = dist.HashStore()
    start = meeting.enter(store, Place(0, 3), 0)
    meeting.within(store, start).set("rank/0", "here")
    with pytest.raises(PeerError, match="ranks 1, 2 of 3 did not come for 0 s"):
        meeting.await_all(store, start, ["rank/0", "rank/1", "rank/2"], 0, tells=True)


def test_a_verdict_holds_for_its_own_start_alone():
    """A store that torchrun holds still has it when the ranks are started anew."""
    port = launch.free_port()
    held = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)  # as torchrun's agent does
    at = Meeting("127.0.0.1", port, is_held_by_first=False)

    both = [Heartbeat(at, Place(rank, 2), LIMIT_S) for rank in (0, 1)]
    at_once([one.meet for one in both])
    both[1].end(Exit.DATA)
    again = Heartbeat(at, Place(0, 1), LIMIT_S)
    again.meet()
    assert (both[0].inquire("closed").code, again.inquire("late").code) == (Exit.PEER_DIED, Exit.PEER_HUNG)
    del held

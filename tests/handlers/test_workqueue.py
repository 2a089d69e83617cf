"""One pass per job at a time, many jobs at once, and a fault of one delays no other."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import pytest

from amdahl_loop.workqueue import FIRST_BACKOFF_S, WorkQueue


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run one scenario; a queue that never gets there fails after a while."""
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_key_added_often_before_its_pass_is_taken_once() -> None:
    """Ten events, one pass."""

    async def scenario() -> None:
        taken, done = [], asyncio.Event()

        async def take(key: str) -> None:
            taken.append(key)
            if key == "last":
                done.set()

        queue = WorkQueue(take, workers=1)
        for _ in range(10):
            queue.add("job")
        queue.add("last")
        task = asyncio.create_task(queue.run())
        await done.wait()
        task.cancel()
        assert taken == ["job", "last"]

    run(scenario)


def test_a_key_added_during_its_pass_gets_one_more_and_never_two_at_once() -> None:
    """Whatever changed while a pass ran is seen by the next."""

    async def scenario() -> None:
        running, most, passes = 0, 0, 0
        twice = asyncio.Event()

        async def take(key: str) -> None:
            nonlocal running, most, passes
            running += 1
            most = max(most, running)
            passes += 1
            if passes == 1:
                queue.add(key)
                queue.add(key)
            await asyncio.sleep(0)
            running -= 1
            if passes == 2:
                twice.set()

        queue = WorkQueue(take, workers=4)
        queue.add("job")
        task = asyncio.create_task(queue.run())
        await twice.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        assert (most, passes, len(queue)) == (1, 2, 0)

    run(scenario)


def test_a_job_that_hangs_or_fails_delays_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """One pass never returns, one raises each time; a hundred others are taken."""
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        taken: set[str] = set()
        done = asyncio.Event()

        async def take(key: str) -> None:
            if key == "hangs":
                await asyncio.Event().wait()
            if key == "poison":
                raise ValueError(key)
            taken.add(key)
            if len(taken) == 100:
                done.set()

        queue = WorkQueue(take, workers=2)
        for key in ("hangs", "poison", *map(str, range(100))):
            queue.add(key)
        task = asyncio.create_task(queue.run())
        await done.wait()
        queue.add("poison")
        assert queue.due_in_s("poison") is not None
        task.cancel()

    run(scenario)


@pytest.mark.parametrize("during", [True, False], ids=["while its pass runs", "after it"])
@pytest.mark.parametrize(
    ("fails", "wishes", "is_at_once"),
    [
        (False, [False], True),
        (True, [], False),
        (True, [False], False),
        (True, [False, False], False),
        (True, [True], True),
        (True, [False, True], True),
        (True, [True, False], True),
    ],
    ids=[
        "well, touched",
        "failing",
        "failing, touched",
        "failing, touched twice",
        "failing, changed by its owner",
        "failing, touched and changed",
        "failing, changed and touched",
    ],
)
def test_only_its_owner_brings_a_failing_job_s_next_look_forward(
    fails: bool, wishes: list[bool], is_at_once: bool, during: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An object that fails and is touched all the time must not spin; the owner's change may be the remedy."""
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        ended = asyncio.Event()

        async def take(key: str) -> float:
            if during:
                wish()
            ended.set()
            if fails:
                raise ValueError(key)
            return 300.0

        def wish() -> None:
            for is_changed in wishes:
                queue.add("job", is_changed=is_changed)

        queue = WorkQueue(take, workers=1, clock=lambda: 100.0)
        queue.add("job")
        queue.add("later", after_s=1000.0)
        task = asyncio.create_task(queue.run())
        while not ended.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not during:
            wish()
        due_in_s = queue.due_in_s("job")
        assert due_in_s is not None
        assert due_in_s == 0.0 if is_at_once else due_in_s >= FIRST_BACKOFF_S

    run(scenario)


def test_a_back_off_grows_whatever_its_owner_does_and_ends_with_a_pass_that_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failure doubles it, one success forgets it."""
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        waits: list[float] = []
        outcomes = iter([False, False, False, True, False])
        done = asyncio.Event()

        async def take(key: str) -> float:
            if next(outcomes):
                return 300.0
            raise ValueError(key)

        async def look(key: str) -> float | None:
            try:
                return await take(key)
            finally:
                asyncio.get_running_loop().call_soon(note)

        def note() -> None:
            due_in_s = queue.due_in_s("job")
            assert due_in_s is not None
            waits.append(due_in_s)
            if len(waits) == 5:
                done.set()
            else:
                queue.add("job", is_changed=True)

        queue = WorkQueue(look, workers=1, draws=Undrawn(), clock=lambda: 100.0)
        queue.add("job")
        task = asyncio.create_task(queue.run())
        await done.wait()
        task.cancel()
        assert waits == [0.5, 1.0, 2.0, 300.0, 0.5]

    run(scenario)


class Undrawn(random.Random):
    """Nothing is left to chance."""

    def random(self) -> float:
        return 0.0


def test_the_earliest_wish_counts() -> None:
    """A job that rests for minutes is looked at now when an event says so; a later wish changes nothing."""

    async def scenario() -> None:
        order: list[str] = []
        done = asyncio.Event()

        async def take(key: str) -> None:
            order.append(key)
            if len(order) == 1:
                done.set()

        queue = WorkQueue(take, workers=1)
        queue.add("job", after_s=3600.0)
        queue.add("job")
        queue.add("job", after_s=7200.0)
        task = asyncio.create_task(queue.run())
        await done.wait()
        await asyncio.sleep(0)
        task.cancel()
        assert (order, len(queue)) == (["job"], 0)

    run(scenario)

"""One pass per job at a time, many jobs at once, and a fault of one delays no other."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest

from amdahl_loop.workqueue import WorkQueue


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
        assert "poison" in queue._due
        task.cancel()

    run(scenario)


def test_events_do_not_shorten_the_back_off_of_a_failing_job(caplog: pytest.LogCaptureFixture) -> None:
    """An object that fails and is touched all the time must not spin."""
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        passes = 0
        failed = asyncio.Event()

        async def take(key: str) -> None:
            nonlocal passes
            passes += 1
            queue.add(key)
            failed.set()
            raise ValueError(key)

        queue = WorkQueue(take)
        queue.add("poison")
        task = asyncio.create_task(queue.run())
        await failed.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert passes == 1
        assert queue._due["poison"][0] > time.monotonic()
        task.cancel()

    run(scenario)


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

"""Which job is to be looked at next? One pass per job at a time, many jobs at once, nothing twice in the queue.

Events only say that something may have changed; a pass reads what is there. A job that is asked for while its pass runs
gets one more pass afterwards. A pass says how long the job may rest; one that fails is tried again, later each time.
"""

import asyncio
import heapq
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 300.0
JITTER = 0.2
"""Share by which a back-off is stretched at random, so that jobs which failed together do not return together."""

Key = TypeVar("Key", bound=Hashable)
Pass = Callable[[Key], Awaitable[float | None]]
"""One look at a job: seconds until the next, or None where the job is gone."""

_log = logging.getLogger(__name__)


class WorkQueue(Generic[Key]):
    """Keys with the time at which each is due; the earliest wish for a key counts."""

    def __init__(self, take: Pass[Key], workers: int = 8, draws: random.Random | None = None) -> None:
        self._take, self._workers, self._draws = take, workers, draws or random.Random()
        self._due: dict[Key, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._running: set[Key] = set()
        self._asked: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._number = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait or run."""
        return len(self._due) + len(self._running)

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Look at a key after so long; sooner where that is wished already. While its pass runs: once more after it."""
        if key in self._running:
            self._asked.add(key)
            return
        at_s = time.monotonic() + after_s
        known = self._due.get(key)
        if known is not None and known[0] <= at_s:
            return
        self._number += 1
        self._due[key] = (at_s, self._number)
        heapq.heappush(self._heap, (at_s, self._number, key))
        self._changed.set()

    @property
    def oldest_s(self) -> float:
        """Seconds for which the oldest key has been due; 0 where none is."""
        return max(0.0, time.monotonic() - min((at_s for at_s, _ in list(self._due.values())), default=math.inf))

    def is_overdue(self, by_s: float) -> bool:
        """Whether some key has been due for longer than this."""
        return self.oldest_s > by_s

    async def run(self) -> None:
        """Work until cancelled; passes that run are then waited for, so that no effect is cut in half needlessly."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._pause()
                while len(self._running) < self._workers and (key := self._pop()) is not None:
                    task = asyncio.create_task(self._work(key))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pause(self) -> None:
        """Sleep until something is due and a worker is free, or until something changes."""
        self._changed.clear()
        is_full = len(self._running) >= self._workers
        rest_s = self._heap[0][0] - time.monotonic() if self._heap and not is_full else None
        if rest_s is not None and rest_s <= 0:
            return
        alarm = None if rest_s is None else asyncio.get_running_loop().call_later(rest_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    def _pop(self) -> Key | None:
        """The key that has been due for longest; None where none is. A wish that was overtaken is dropped."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            at_s, number, key = heapq.heappop(self._heap)
            if self._due.get(key) == (at_s, number):
                del self._due[key]
                self._running.add(key)
                return key
        return None

    async def _work(self, key: Key) -> None:
        try:
            rest_s = await self._take(key)
            self._failures.pop(key, None)
        except Exception:  # noqa: BLE001  # one job's fault must not stop the others (I8); it is logged and tried again
            rest_s = self._back_off(key)
            _log.exception("the pass for %s failed; next try in %.1f s", key, rest_s)
        self._running.discard(key)
        if key in self._asked:
            self._asked.discard(key)
            self.add(key, min(rest_s or 0.0, self._backoff_floor_s(key)))
        elif rest_s is not None:
            self.add(key, rest_s)
        self._changed.set()

    def _back_off(self, key: Key) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return self._backoff_floor_s(key, count) * (1 + JITTER * self._draws.random())

    def _backoff_floor_s(self, key: Key, count: int | None = None) -> float:
        """An event does not shorten the back-off of a job that fails, or a poison object would spin."""
        failures = self._failures.get(key, 0) if count is None else count
        return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (failures - 1)) if failures else 0.0

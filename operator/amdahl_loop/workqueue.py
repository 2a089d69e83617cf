"""Which job is to be looked at next? One pass per job at a time, many jobs at once, nothing twice in the queue.

Events only say that something may have changed; a pass reads what is there. A job that is asked for while its pass runs
gets one more pass afterwards. A pass says how long the job may rest; one that fails is tried again, later each time,
and no event brings that forward but its owner's own change: it may be the remedy.
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

    def __init__(
        self,
        take: Pass[Key],
        workers: int = 8,
        draws: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._take, self._workers, self._draws, self._clock = take, workers, draws or random.Random(), clock
        self._due: dict[Key, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._running: set[Key] = set()
        self._asked: dict[Key, bool] = {}
        """Keys that were asked for while their pass runs, and whether their owner has changed them."""
        self._failures: dict[Key, int] = {}
        self._retry_at_s: dict[Key, float] = {}
        self._number = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait or run."""
        return len(self._due) + len(self._running)

    def add(self, key: Key, after_s: float = 0.0, *, is_changed: bool = False) -> None:
        """Look at a key after so long; sooner where that is wished already. While its pass runs: once more after it.

        One whose pass fails is not looked at before its back-off ends, or a poison object that is touched all the time
        would spin, unless its owner has changed it (`is_changed`).
        """
        if key in self._running:
            self._asked[key] = is_changed or self._asked.get(key, False)
            return
        at_s = self._clock() + after_s
        if not is_changed:
            at_s = max(at_s, self._retry_at_s.get(key, at_s))
        known = self._due.get(key)
        if known is not None and known[0] <= at_s:
            return
        self._number += 1
        self._due[key] = (at_s, self._number)
        heapq.heappush(self._heap, (at_s, self._number, key))
        self._changed.set()

    def due_in_s(self, key: Key) -> float | None:
        """Seconds until a key is looked at; None where nobody has asked for it."""
        known = self._due.get(key)
        return None if known is None else max(0.0, known[0] - self._clock())

    @property
    def oldest_s(self) -> float:
        """Seconds for which the oldest key has been due; 0 where none is."""
        return max(0.0, self._clock() - min((at_s for at_s, _ in list(self._due.values())), default=math.inf))

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
        rest_s = self._heap[0][0] - self._clock() if self._heap and not is_full else None
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
        while self._heap and self._heap[0][0] <= self._clock():
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
            self._retry_at_s.pop(key, None)
        except Exception:  # noqa: BLE001  # one job's fault must not stop the others (I8); it is logged and tried again
            rest_s = self._back_off(key)
            _log.exception("the pass for %s failed; next try in %.1f s", key, rest_s)
        self._running.discard(key)
        is_changed = self._asked.pop(key, None)
        if is_changed is not None:
            self.add(key, is_changed=is_changed)
        elif rest_s is not None:
            self.add(key, rest_s)
        self._changed.set()

    def _back_off(self, key: Key) -> float:
        """Seconds until a pass that has failed is tried again: twice as many each time."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        least_s: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (count - 1))
        rest_s = least_s * (1 + JITTER * self._draws.random())
        self._retry_at_s[key] = self._clock() + rest_s
        return rest_s

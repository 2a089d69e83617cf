"""Which jobs has the operator described, and when did each description arrive? One watch on every TrainingJob."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from server import Object, Server

JOBS = "/apis/amdahl-loop.io/v1alpha1/trainingjobs"

Key = tuple[str, str]


@dataclass
class Census:
    """The latest that the server said of each job."""

    generations: dict[Key, int] = field(default_factory=dict)
    told: dict[Key, int] = field(default_factory=dict)
    """Generation that the status speaks of."""
    told_at_s: dict[Key, float] = field(default_factory=dict)
    """When a status first spoke of the latest generation, by the event loop's clock."""
    observed: set[Key] = field(default_factory=set)
    """Jobs whose work has been measured."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, job: Object) -> None:
        """A job as the server shows it now."""
        metadata, status = job["metadata"], job.get("status") or {}
        key = (metadata["namespace"], metadata["name"])
        told = int(status.get("observedGeneration", 0))
        if told != self.told.get(key):
            self.told_at_s[key] = asyncio.get_running_loop().time()
        self.generations[key], self.told[key] = int(metadata["generation"]), told
        if "observation" in status:
            self.observed.add(key)
        self._changed.set()

    async def follow(self, server: Server, version: str) -> None:
        """Keep up until cancelled."""
        async for job in server.watch(JOBS, version):
            self.note(job)

    @property
    def untold(self) -> int:
        """Jobs whose status does not speak of their present spec."""
        return sum(self.told.get(key) != generation for key, generation in self.generations.items())

    async def wait(self, holds: Callable[[], bool], limit_s: float, what: str) -> float:
        """Wait until something holds, asked at most five times a second; returns when it was found to."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s
        while not holds():
            if loop.time() > end_s:
                raise TimeoutError(f"after {limit_s:.0f} s still not: {what}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 1.0)
            except TimeoutError:
                continue
            await asyncio.sleep(0.2)
        return loop.time()

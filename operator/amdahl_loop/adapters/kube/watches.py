"""What comes, changes and goes in the cluster, told by metadata alone?

For kinds of which there are many, and of which an event only says that somebody should look: pods, Jobs and closed
experiments. Nothing of an object but its metadata is sent, parsed or kept.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.transport import BARE, BARE_LIST, Request, UnreachableError

WATCH_S = 600
PAUSE_S = 1.0
"""Between two watches; nothing that comes meanwhile is lost."""
PAGE = 500

Hear = Callable[[Object, bool], Awaitable[None]]
"""Told an object's metadata, and whether it is gone, or no longer selected."""
Compare = Callable[[Sequence[Object]], Awaitable[None]]
"""Told the metadata of all there is, after a time of which nothing was heard."""

_log = logging.getLogger("amdahl_loop")


class Streams(Protocol):
    """A way to the API server that watches."""

    def stream(self, request: Request) -> AsyncIterator[Object]:
        """The events of one watch."""


class Watch:
    """Watches the objects of a kind in a namespace, or (None) in all, that a selector of labels picks."""

    def __init__(
        self, streams: Streams, client: KubeClient, kind: Kind, namespace: str | None, labels: str, *, version: str = ""
    ) -> None:
        """`version`: from where on; empty: from the first look on, of which is told by `compare`."""
        self._streams, self._client = streams, client
        self._kind, self._namespace, self._labels = kind, namespace, labels
        self._version = version

    async def place(self) -> None:
        """Begin here and now: what was before is known otherwise."""
        self._version = await self._client.version(self._kind, self._namespace)

    async def follow(self, hear: Hear, compare: Compare, pause_s: float = PAUSE_S) -> None:
        """Keep up until cancelled."""
        while True:
            try:
                if not self._version:
                    self._version = await self._look(compare)
                await self._watch(hear)
            except (ApiUnavailable, UnreachableError, KeyError, TypeError) as error:  # what was not understood as well
                _log.info("%s are watched again in %.0f s: %s", self._kind.value.plural, pause_s, repr(error))
            await asyncio.sleep(pause_s)

    async def _look(self, compare: Compare) -> str:
        """Tell of everything; the version from which on to watch."""
        found, version = list[Object](), ""
        async for page in self._client.pages(self._kind, self._namespace, self._labels, PAGE, accept=BARE_LIST):
            version = version or page.resource_version
            found.extend(page.items)
        await compare(found)
        return version

    async def _watch(self, hear: Hear) -> None:
        """One watch, until the server ends it, or no longer knows our place."""
        query = (
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("labelSelector", self._labels),
            ("resourceVersion", self._version),
            ("timeoutSeconds", str(WATCH_S)),
        )
        request = Request(method="GET", path=self._kind.path(self._namespace), query=query, accept=BARE)
        async for event in self._streams.stream(request):
            change, told = event.get("type"), event.get("object") or {}
            if change == "ERROR":
                self._version = ""
                raise UnreachableError(f"{told.get('code')} {told.get('message')}"[:300])
            if change != "BOOKMARK":
                await hear(told, change == "DELETED")
            self._version = str(told["metadata"]["resourceVersion"])

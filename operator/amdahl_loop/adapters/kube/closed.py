"""Which closed Experiments come and go while the operator runs, without their evidence being sent?

The operator itself is told of open ones alone. Closed ones are many and large, and change no more; but somebody may
import them, or delete one so that its question is asked again. A watch on their metadata tells, and only what is news
is then read.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key, key_of
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.transport import BARE, BARE_LIST, Request, UnreachableError
from amdahl_loop.domain.children import CLOSED_LABEL

CLOSED = f"{CLOSED_LABEL}=true"
OPEN = f"{CLOSED_LABEL}!=true"
"""Selectors. What is closed and not labelled yet, because a crash came between, counts as open."""

WATCH_S = 600
PAUSE_S = 5.0
"""Between two watches: nobody waits for this news, and nothing that comes meanwhile is lost."""
LIST_PAGE = 500

Tell = Callable[[Key, str], None]
"""Told where an Experiment is that came or went, and the name of its job, as far as it is known."""

_log = logging.getLogger("amdahl_loop")


class Streams(Protocol):
    """A way to the API server that watches."""

    def stream(self, request: Request) -> AsyncIterator[Object]:
        """The events of one watch."""


class ClosedWatch:
    """Keeps the memory of closed Experiments of a namespace, or (None) of all, as the server has them."""

    def __init__(
        self,
        streams: Streams,
        client: KubeClient,
        index: ExperimentIndex,
        namespace: str | None,
        tell: Tell,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._streams, self._client, self._index, self._tell = streams, client, index, tell
        self._namespace, self._pause_s = namespace, pause_s
        self._version = index.listed.get(namespace, "")

    async def follow(self) -> None:
        """Keep up until cancelled, from the list on that the index was built from."""
        while True:
            try:
                await self._watch()
            except (ApiUnavailable, UnreachableError) as error:
                _log.info("closed Experiments are watched again in %.0f s: %s", self._pause_s, error)
            await asyncio.sleep(self._pause_s)

    async def _watch(self) -> None:
        """One watch, until the server ends it. Where it no longer knows our place, everything is listed anew."""
        if not self._version:
            await self._list()
        query = (
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("labelSelector", CLOSED),
            ("resourceVersion", self._version),
            ("timeoutSeconds", str(WATCH_S)),
        )
        request = Request(method="GET", path=Kind.EXPERIMENT.path(self._namespace), query=query, accept=BARE)
        async for event in self._streams.stream(request):
            told = event.get("object") or {}
            if event.get("type") == "ERROR":
                self._version = ""
                raise UnreachableError(f"{told.get('code')} {told.get('message')}"[:300])
            if event.get("type") != "BOOKMARK":
                await self._note(key_of(told), str(event.get("type")))
            self._version = str(told["metadata"]["resourceVersion"])

    async def _note(self, key: Key, change: str) -> None:
        """What was added is read, unless it is known; what seems to be gone may only have lost its label."""
        if change == "DELETED" or (change == "ADDED" and not self._index.is_closed(key)):
            await check(self._client, self._index, key, self._tell)

    async def _list(self) -> None:
        """All that are closed, by name: what is not known is read, what is not there is forgotten."""
        there, version = set[Key](), ""
        async for page in self._client.pages(Kind.EXPERIMENT, self._namespace, CLOSED, LIST_PAGE, accept=BARE_LIST):
            version = version or page.resource_version
            there.update(key_of(item) for item in page.items)
        known = set(self._index.closed_keys(self._namespace))
        for key in sorted(there ^ known):
            await check(self._client, self._index, key, self._tell)
        self._version = version


async def check(client: KubeClient, index: ExperimentIndex, key: Key, tell: Tell) -> None:
    """Read one Experiment: what it says now is remembered, and what is gone is forgotten."""
    job = index.job_of(key)
    document = await client.get(Kind.EXPERIMENT, *key)
    if document is None:
        index.forget(key)
        tell(key, job)
    elif index.hear(document):
        tell(key, index.job_of(key))

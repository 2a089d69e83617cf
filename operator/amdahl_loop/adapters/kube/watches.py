"""What comes, changes and goes in the cluster, told by metadata alone?

For kinds of which there are many, and of which an event only says that somebody should look: pods, Jobs and closed
experiments. Nothing of an object but its metadata is sent, parsed or kept.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.rows import Key, key_of
from amdahl_loop.adapters.kube.streaming import tell_all
from amdahl_loop.adapters.kube.transport import BARE, Request, UnreachableError

WATCH_S = 600
PAUSE_S = 1.0
"""Between two watches; nothing that comes meanwhile is lost."""
PAGE = 500
"""Objects by metadata a page, where the server does not stream."""
LOOKS = 3
"""So often a server is asked that tells of less than before, until it is believed: one answer may be an old one."""

Hear = Callable[[Object, bool], Awaitable[None]]
"""Told an object's metadata, and whether it is gone, or no longer selected."""
Compare = Callable[[Sequence[Object]], Awaitable[None]]
"""Told the metadata of all there is, after a time of which nothing was heard."""

_log = logging.getLogger("amdahl_loop")


class StorePutBackError(Exception):
    """The server's store was put back to an older state: what is remembered of it may never have been."""


class Watch:
    """Watches the objects of a kind in a namespace, or (None) in all, that a selector of labels picks."""

    def __init__(
        self, client: KubeClient, kind: Kind, namespace: str | None, labels: str, *, version: str = ""
    ) -> None:
        """`version`: from where on; empty: from the first look on, of which is told by `compare`."""
        self._client = client
        self._kind, self._namespace, self._labels = kind, namespace, labels
        self._version = version
        self._is_lost = not version

    async def follow(self, hear: Hear, compare: Compare, pause_s: float = PAUSE_S) -> None:
        """Keep up until cancelled. StorePutBackError where the server has forgotten what it has told of."""
        has_ended = False
        while True:
            try:
                if has_ended:
                    await self._confirm()
                if self._is_lost:
                    self._version, self._is_lost = await self._look(compare), False
                await self._watch(hear)
            except (ApiUnavailable, UnreachableError, KeyError, TypeError) as error:  # what was not understood as well
                _log.info("%s are watched again in %.0f s: %s", self._kind.value.plural, pause_s, repr(error))
            has_ended = True
            await asyncio.sleep(pause_s)

    async def _confirm(self) -> None:
        """Make sure that the server has come at least as far as it had told.

        A watch from a version that is yet to come is no error to it: it stays silent until that version is there, and
        all that happens before is never told.
        """
        version = ""
        for _ in range(LOOKS):
            version = await self._client.version(self._kind, self._namespace)
            if not is_before(version, self._version):
                return
        raise StorePutBackError(f"{self._kind.value.plural} are at version {version} and were at {self._version}")

    async def _look(self, compare: Compare) -> str:
        """Tell of everything; the version from which on to watch."""
        found: dict[Key, Object] = {}

        def hear(told: Object, is_gone: bool) -> None:
            if is_gone:
                found.pop(key_of(told), None)
            else:
                found[key_of(told)] = told

        where = self._kind, self._namespace, self._labels
        version = await tell_all(self._client, *where, hear, page=PAGE, is_bare=True)
        await compare(tuple(found.values()))
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
        async for event in self._client.stream(request):
            change, told = event.get("type"), event.get("object") or {}
            if change == "ERROR":
                self._is_lost = True
                raise UnreachableError(f"{told.get('code')} {told.get('message')}"[:300])
            if change != "BOOKMARK":
                await hear(told, change == "DELETED")
            self._version = str(told["metadata"]["resourceVersion"])


def is_before(version: str, other: str) -> bool:
    """Whether a collection's version is older than another of its versions; never where a server counts otherwise."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)

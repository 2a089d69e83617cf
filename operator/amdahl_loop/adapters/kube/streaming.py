"""What is there of a kind, however much, in one stream from the API server's own copy?

A list comes by pages, and the server answers a later page from its store where it keeps no copy of the moment of the
first one. It keeps none of a collection in which nothing has changed since the store was last compacted, which happens
every five minutes (kubernetes/kubernetes pull request 132876); then it decodes every object, also those that no
selector picks: at 50,000 Experiments a minute of CPU. A watch that begins with all there is comes from the copy, one
object after another (`sendInitialEvents`, where the server's feature WatchList is on).
"""

from collections.abc import Callable
from contextlib import aclosing

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.transport import BARE, BARE_LIST, WHOLE, Request, UnreachableError

PATIENCE_S = 600
"""The server ends a stream after so long, wherever it is."""
END = "k8s.io/initial-events-end"

Hear = Callable[[Object, bool], None]
"""Told an object, or its metadata, and whether it is gone meanwhile."""


async def tell_all(
    client: KubeClient, kind: Kind, namespace: str | None, labels: str, hear: Hear, *, page: int, is_bare: bool = False
) -> str:
    """Tell of every object that is selected, or (`is_bare`) of its metadata; the version from which on to watch.

    A server that does not stream is asked by pages, of so many objects; so is one whose stream breaks, and what it has
    told of before is told again.
    """
    version = await _stream(client, kind, namespace, labels, hear, is_bare=is_bare)
    if version:
        return version
    accept = BARE_LIST if is_bare else WHOLE
    async for found in client.pages(kind, namespace, labels, page, accept=accept):
        version = version or found.resource_version
        for item in found.items:
            hear(item, False)
    return version


async def _stream(
    client: KubeClient, kind: Kind, namespace: str | None, labels: str, hear: Hear, *, is_bare: bool
) -> str:
    """The same by a stream; empty where that is refused, or ends before everything was told."""
    query = (
        ("watch", "true"),
        ("sendInitialEvents", "true"),
        ("resourceVersionMatch", "NotOlderThan"),
        ("allowWatchBookmarks", "true"),
        ("labelSelector", labels),
        ("timeoutSeconds", str(PATIENCE_S)),
    )
    request = Request(method="GET", path=kind.path(namespace), query=query, accept=BARE if is_bare else WHOLE)
    try:
        async with aclosing(client.stream(request)) as events:
            async for event in events:
                change, told = event.get("type"), event.get("object") or {}
                metadata = told.get("metadata") or {}
                if change in ("ADDED", "MODIFIED", "DELETED"):
                    hear(told, change == "DELETED")
                elif change != "BOOKMARK":
                    return ""
                elif (metadata.get("annotations") or {}).get(END) == "true":
                    return str(metadata["resourceVersion"])
    except UnreachableError:
        return ""
    return ""

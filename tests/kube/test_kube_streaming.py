"""Is everything told of, by a stream or, where there is none or it breaks, by pages?"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.streaming import tell_all
from amdahl_loop.adapters.kube.transport import BARE, BARE_LIST, WHOLE, Answer, Request, UnreachableError
from kube_builders import impatient

BREAK = "the connection breaks"


def show(name: str) -> Object:
    """An object."""
    return {"metadata": {"name": name}}


def tell(change: str, name: str) -> Object:
    """An event."""
    return {"type": change, "object": show(name)}


def mark(version: str, is_end: bool = True) -> Object:
    """The server's place; at the end of what there is, it says so."""
    annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if is_end else {}
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version} | annotations}}


REFUSAL = {"type": "ERROR", "object": {"code": 422, "message": "sendInitialEvents is forbidden"}}


class Server:
    """It streams these events, and has two pages."""

    def __init__(self, *events: Any) -> None:
        self.events, self.asked = events, list[Request]()
        self.is_left = False

    async def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """One watch."""
        self.asked.append(request)
        try:
            for event in self.events:
                if event == BREAK:
                    raise UnreachableError(BREAK)
                yield event
        finally:
            self.is_left = True

    async def send(self, request: Request) -> Answer:
        """One page."""
        self.asked.append(request)
        if ("continue", "2") in request.query:
            return Answer(status=200, body={"metadata": {"resourceVersion": "8"}, "items": [show("b")]})
        metadata = {"resourceVersion": "7", "continue": "2"}
        return Answer(status=200, body={"metadata": metadata, "items": [show("a")]})

    async def close(self) -> None:
        """Nothing is open."""


def listen(server: Server, is_bare: bool = False) -> tuple[str, list[tuple[str, bool]]]:
    """The version, and all that was told."""
    told: list[tuple[str, bool]] = []

    def hear(document: Object, is_gone: bool) -> None:
        told.append((document["metadata"]["name"], is_gone))

    asked = tell_all(impatient(server), Kind.EXPERIMENT, "team", "a=b", hear, page=1, is_bare=is_bare)
    return asyncio.run(asked), told


@pytest.mark.parametrize(
    ("events", "version", "told"),
    [
        ([mark("5")], "5", []),
        ([tell("ADDED", "x"), tell("ADDED", "y"), mark("5"), tell("ADDED", "later")], "5", ["x", "y"]),
        ([tell("ADDED", "x"), mark("4", is_end=False), tell("ADDED", "y"), mark("5")], "5", ["x", "y"]),
        ([tell("ADDED", "x"), tell("MODIFIED", "x"), mark("5")], "5", ["x", "x"]),
    ],
    ids=["nothing", "all there is", "a place in between", "changed meanwhile"],
)
def test_one_stream_tells_all(events: list[Object], version: str, told: list[str]) -> None:
    """Nothing else is asked, and the stream is left at its end."""
    server = Server(*events)
    assert listen(server) == (version, [(name, False) for name in told])
    assert len(server.asked) == 1
    assert server.is_left


def test_what_goes_meanwhile_is_told_of() -> None:
    """Nobody would tell of it later."""
    server = Server(tell("ADDED", "x"), tell("DELETED", "x"), mark("5"))
    assert listen(server) == ("5", [("x", False), ("x", True)])


@pytest.mark.parametrize(
    ("events", "before"),
    [
        ([REFUSAL], []),
        ([BREAK], []),
        ([tell("ADDED", "a"), BREAK], ["a"]),
        ([tell("ADDED", "a"), REFUSAL], ["a"]),
        ([tell("ADDED", "a")], ["a"]),
        ([tell("ADDED", "a"), mark("5", is_end=False)], ["a"]),
        ([{"message": "a proxy's word"}], []),
    ],
    ids=["not served", "no answer", "broken", "given up", "ended", "ended at a place", "no event"],
)
def test_where_no_stream_comes_to_its_end_pages_do(events: list[Any], before: list[str]) -> None:
    """All of it again, so that nothing is left out; the version is that of the first page."""
    server = Server(*events)
    assert listen(server) == ("7", [(name, False) for name in (*before, "a", "b")])
    assert len(server.asked) == 3


@pytest.mark.parametrize(("is_bare", "accepts"), [(False, [WHOLE, WHOLE, WHOLE]), (True, [BARE, BARE_LIST, BARE_LIST])])
def test_what_is_asked_for(is_bare: bool, accepts: list[str]) -> None:
    """Whole objects or their metadata, either way; only what the selector picks."""
    server = Server(REFUSAL)
    listen(server, is_bare)
    assert [request.accept for request in server.asked] == accepts
    assert all(("labelSelector", "a=b") in request.query for request in server.asked)
    assert ("sendInitialEvents", "true") in server.asked[0].query

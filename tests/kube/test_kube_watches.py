"""What does a watch do once it has ended? It goes on, or begins anew, or finds that the server's store was put back."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.adapters.kube.watches import StorePutBackError, Watch

GONE: Object = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
PLACE = "50"


def event(version: str) -> Object:
    """Something has changed."""
    return {"type": "MODIFIED", "object": {"metadata": {"name": "train-r0", "resourceVersion": version}}}


class Server:
    """Its first watch ends, its second stands; asked for the version of all, it answers as it is told."""

    def __init__(self, first: Sequence[Object], versions: Sequence[str]) -> None:
        self._first, self._versions = first, list(versions)
        self.watched_from: list[str] = []
        self.is_watched_again = asyncio.Event()

    async def send(self, request: Request) -> Answer:
        """A list; the last answer again and again."""
        del request
        version = self._versions.pop(0) if len(self._versions) > 1 else self._versions[0]
        return Answer(status=200, body={"metadata": {"resourceVersion": version}, "items": []})

    async def stream(self, request: Request) -> AsyncIterator[Object]:
        """The first watch ends after its events, the second never does. What there is is not streamed."""
        if ("sendInitialEvents", "true") in request.query:
            yield GONE
            return
        self.watched_from.append(dict(request.query)["resourceVersion"])
        if len(self.watched_from) > 1:
            self.is_watched_again.set()
            await asyncio.Event().wait()
        for told in self._first:
            yield told

    async def close(self) -> None:
        """Nothing is open."""


async def follow(server: Server) -> list[Sequence[Object]]:
    """Watch until the second watch stands; what was compared."""
    compared: list[Sequence[Object]] = []

    async def hear(told: Object, is_gone: bool) -> None:
        del told, is_gone

    async def compare(found: Sequence[Object]) -> None:
        compared.append(found)

    watch = Watch(KubeClient(server), Kind.JOB, "team", "", version=PLACE)
    following = asyncio.create_task(watch.follow(hear, compare, pause_s=0.0))
    again = asyncio.create_task(server.is_watched_again.wait())
    await asyncio.wait((following, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not following.done():
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return compared
    await following
    raise AssertionError("a watch never ends by itself")


@pytest.mark.parametrize(
    ("first", "versions", "place", "looks"),
    [
        ([], ["50"], "50", 0),
        ([event("70")], ["90"], "70", 0),
        ([event("70")], ["60", "90"], "70", 0),
        ([event("70"), GONE], ["90", "95"], "95", 1),
        ([event("zebra")], ["ape"], "zebra", 0),
    ],
    ids=["nothing has happened", "more has", "one answer was old", "its place was forgotten", "no numbers"],
)
def test_a_watch_goes_on_from_its_place(first: list[Object], versions: list[str], place: str, looks: int) -> None:
    """The server has come at least as far as it had told; where its place is forgotten, all there is is looked at."""
    server = Server(first, versions)
    assert len(asyncio.run(follow(server))) == looks
    assert server.watched_from == [PLACE, place]


@pytest.mark.parametrize("first", [[event("70")], [event("70"), GONE]], ids=["went silent", "forgot its place"])
def test_a_server_that_has_forgotten_what_it_told_ends_the_watch(first: list[Object]) -> None:
    """A watch from a version that is yet to come would be deaf: its store was put back, and nothing is watched."""
    server = Server(first, ["60"])
    with pytest.raises(StorePutBackError, match="jobs are at version 60 and were at 70"):
        asyncio.run(follow(server))
    assert server.watched_from == [PLACE]

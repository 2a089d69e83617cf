"""What comes out of a watch, however the server cuts it up?"""

import asyncio
import json

import pytest
from kubernetes.aio.client import Configuration

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.transport import KubeTransport, Request

LONG = "x" * 400_000
"""Annotations of an object may have 256 KiB together, and it is told of in one line."""


async def watch(parts: list[bytes]) -> list[Object]:
    """The events of a watch that the server sends in these parts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = KubeTransport(Configuration(host=f"http://127.0.0.1:{port}"))
    try:
        return [event async for event in transport.stream(Request(method="GET", path="/watch"))]
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("size", [1, 7, 65_536, 10_000_000], ids=["a byte", "a few", "64 KiB", "all"])
def test_events_are_whole_however_they_come(size: int) -> None:
    """One part may hold several events, and one event several parts."""
    events: list[Object] = [{"type": "ADDED", "object": {"metadata": {"name": f"n{i}"}}} for i in range(3)]
    text = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    assert asyncio.run(watch([text[at : at + size] for at in range(0, len(text), size)])) == events


def test_an_object_with_long_annotations_does_not_end_the_watch() -> None:
    """The HTTP library reads lines of 128 KiB; the Kubernetes library above it allows for more."""
    event: Object = {"type": "ADDED", "object": {"metadata": {"annotations": {"note": LONG}}}}
    text = json.dumps(event).encode() + b"\n"
    assert asyncio.run(watch([text[:100_000], text[100_000:], text])) == [event, event]

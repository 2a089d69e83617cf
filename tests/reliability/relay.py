"""What stands between the operator and the API server? A relay that numbers every write and lets a test decide its fate.

A `Fault` is given each call and the way to the server: it may send the call once, not at all, or with another answer; it may kill
the operator before or after, hang, or cut the connection. Without a fault the relay changes nothing.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from amdahl_loop.domain.children import read_run
from reliability.wire import Object, Reply, Wire

_FORWARDED = ("Accept", "Content-Type", "User-Agent")
_COLLECTIONS = re.compile(
    r"/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/?]+)(?:/(?P<name>[^/?]+))?(?:/(?P<part>\w+))?"
)


class Cut(Exception):  # noqa: N818 (what happens to the connection, not an error of ours)
    """The connection is broken; the operator never learns what became of its request."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the operator. `number` counts its writes from 0; reads bear the number of the next write."""

    number: int
    method: str
    path: str
    """Path with its query."""
    content: bytes = field(repr=False)
    content_type: str = ""

    @property
    def is_write(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET"

    @property
    def is_watch(self) -> bool:
        """Whether it asks for a stream of events."""
        return "watch=true" in self.path or "watch=1" in self.path

    @property
    def is_list(self) -> bool:
        """Whether it reads a collection."""
        match = _COLLECTIONS.search(self.path)
        return self.method == "GET" and not self.is_watch and (match is None or match["name"] is None)

    @property
    def kind(self) -> str:
        """What it is about, for tables: `PATCH experiments/status`."""
        match = _COLLECTIONS.search(self.path)
        if match is None:
            return f"{self.method} {self.path.partition('?')[0].rpartition('/')[2]}"
        return f"{self.method} {match['plural']}" + (f"/{match['part']}" if match["part"] else "")

    @property
    def body(self) -> Object:
        """What it says, as an object."""
        found: Object = json.loads(self.content or b"{}")
        return found


Send = Callable[[Call], Awaitable[Reply]]
Fault = Callable[[Call, Send], Awaitable[Reply]]


async def _pass_on(call: Call, send: Send) -> Reply:
    return await send(call)


class Relay:
    """One operator's way to the API server."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._fault: Fault = _pass_on
        self.watch_delay_s = 0.0
        self.watch_limit_s: float | None = None
        self.watches_gone = 0
        """So many watches more are told that their version is too old."""
        self.watch_filter: Callable[[Call, bytes], list[bytes]] | None = None
        """What becomes of each line of a watch: passed on, dropped, doubled."""
        self.calls: list[Call] = []
        self.outcomes: list[tuple[Call, int]] = []
        """Every call with the status that was answered; 0: none."""
        self._writes = 0
        self.port = 0

    @property
    def fault(self) -> Fault:
        """What decides the fate of each call; deleted, nothing does."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault

    @fault.deleter
    def fault(self) -> None:
        self._fault = _pass_on

    @property
    def writes(self) -> list[Call]:
        """Every write that the operator has tried, in order."""
        return [call for call in self.calls if call.is_write]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Take a request of the operator's to where the fault lets it go."""
        call = Call(
            number=self._writes,
            method=request.method,
            path=request.raw_path,
            content=await request.read(),
            content_type=request.headers.get("Content-Type", ""),
        )
        self._writes += call.is_write
        self.calls.append(call)
        try:
            if call.is_watch:
                return await self._watch(call, request)
            reply = await self.fault(call, self._send)
        except (Cut, aiohttp.ClientError, TimeoutError, OSError):
            self.outcomes.append((call, 0))
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError from None
        self.outcomes.append((call, reply.status))
        headers = {"Retry-After": reply.retry_after} if reply.retry_after else {}
        return web.Response(status=reply.status, body=reply.content, content_type=reply.content_type, headers=headers)

    async def _send(self, call: Call) -> Reply:
        return await self._wire.send(call.method, call.path, call.content or None, call.content_type)

    async def _watch(self, call: Call, request: web.Request) -> web.StreamResponse:
        """Pass a stream of events on, line by line."""
        refused = await self.fault(call, _answer_nothing)
        if refused.status != 200:
            return web.Response(status=refused.status, body=refused.content, content_type=refused.content_type)
        if self.watches_gone > 0:
            self.watches_gone -= 1
            return web.Response(body=_GONE, content_type="application/json")
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(self.watch_limit_s),
                self._wire.session.get(self._wire.url + call.path) as answer,
            ):
                stream.set_status(answer.status)
                await stream.prepare(request)
                async for line in _lines(answer):
                    await asyncio.sleep(self.watch_delay_s)
                    for kept in self.watch_filter(call, line) if self.watch_filter else [line]:
                        await stream.write(kept)
        if not stream.prepared:
            await stream.prepare(request)
        await stream.write_eof()
        return stream


_GONE = json.dumps(
    {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
).encode()


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: an object may be longer than what aiohttp reads at once."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"


async def _answer_nothing(_: Call) -> Reply:
    return Reply(200, b"")


def name_write(call: Call) -> str:
    """A write as a table names it, without names that differ from run to run: `POST jobs d0`."""
    body = call.body
    status, metadata = body.get("status") or {}, body.get("metadata") or {}
    if call.kind == "POST events":
        return f"{call.kind} {body['reason']}"
    if call.kind == "PATCH experiments/status":
        if status.get("reserved"):
            return f"{call.kind} reserve {_short(status['reserved']['run'])}"
        if status.get("blocks"):
            return f"{call.kind} block {status['blocks'][-1]['name']}"
        if status.get("holdouts"):
            return f"{call.kind} holdout {status['holdouts'][-1]['name']}"
        if status.get("applications"):
            return f"{call.kind} {status['applications'][-1]['kind']}"
        return f"{call.kind} {'verdict' if status.get('verdict') else 'loss'}"
    if call.kind == "PATCH trainingjobs/status":
        return f"{call.kind} {'observation' if 'observation' in status else 'conditions'}"
    if call.kind in ("POST jobs", "POST configmaps"):
        return f"{call.kind} {_short(metadata['name'])}"
    if call.method == "DELETE":
        return f"{call.kind} {_short(call.path.partition('?')[0].rpartition('/')[2])}"
    return call.kind


def _short(name: str) -> str:
    if name.startswith("amdahl-probe-"):
        return "amdahl-probe"
    block = read_run(name)
    is_block = block is not None and len(block.experiment.rpartition("-")[2]) == 10
    return name.removeprefix(f"{block.experiment}-") if block is not None and is_block else name


@asynccontextmanager
async def open_relay(wire: Wire) -> AsyncIterator[Relay]:
    """A relay that listens on a free port of loopback."""
    relay = Relay(wire)
    application = web.Application(client_max_size=64 * 2**20)
    application.router.add_route("*", "/{path:.*}", relay.handle)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    relay.port = runner.addresses[0][1]
    try:
        yield relay
    finally:
        await runner.cleanup()

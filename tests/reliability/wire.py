"""How do the parts of a reliability test speak to the API server: the relay, the hands, the inventory?

Plain HTTPS as the administrator, asynchronous, one request at a time and no retries: what goes wrong is seen at once.
"""

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]
HANG_S = 300.0
"""A bound on hanging: a server that is away refuses at once, and one on a busy machine greets when it has its turn."""
CLOSING_S = 0.2
"""Connections over TLS are closed by the event loop, some turns after the session."""
MERGE = "application/merge-patch+json"


class ServerAwayError(aiohttp.ClientError):
    """The server answers, and cannot do what it is asked for now: its store is away. Whoever plays a controller comes back."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the API server: status, body as it came, and Retry-After where the server asks for patience."""

    status: int
    content: bytes
    content_type: str = "application/json"
    retry_after: str = ""

    @property
    def body(self) -> Object:
        """The body as an object."""
        found: Object = json.loads(self.content or b"{}")
        return found


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection to one API server."""

    url: str
    session: aiohttp.ClientSession

    async def send(self, method: str, path: str, content: bytes | None = None, content_type: str = "") -> Reply:
        """One request, one answer; aiohttp.ClientError where there is none."""
        headers = {"Content-Type": content_type} if content_type else {}
        async with self.session.request(method, self.url + path, data=content, headers=headers) as answer:
            return Reply(
                status=answer.status,
                content=await answer.read(),
                content_type=answer.content_type,
                retry_after=answer.headers.get("Retry-After", ""),
            )

    async def ask(self, method: str, path: str, content: bytes | None = None, content_type: str = "") -> Reply:
        """A request that is answered; ServerAwayError where the server cannot."""
        reply = await self.send(method, path, content, content_type)
        if reply.status >= 500:
            raise ServerAwayError(f"{method} {path}: {reply.status} {reply.content[:300]!r}")
        return reply

    async def get(self, path: str) -> Object | None:
        """The object or list at a path; None where there is none."""
        while (reply := await self.ask("GET", path)).status == 429:
            await asyncio.sleep(1)  # the storage of a new definition is made ready
        if reply.status == 404:
            return None
        assert reply.status == 200, reply.content
        return reply.body

    async def items(self, path: str) -> list[Object]:
        """The items of a collection."""
        found = await self.get(path)
        return list((found or {}).get("items") or ())

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """Create an object."""
        return await self.ask("POST", path, json.dumps(body).encode(), "application/json")

    async def merge(self, path: str, body: Mapping[str, Any]) -> Reply:
        """Merge fields into an object."""
        return await self.ask("PATCH", path, json.dumps(body).encode(), MERGE)

    async def delete(self, path: str, **options: Any) -> Reply:
        """Delete the object at a path."""
        return await self.ask("DELETE", path, json.dumps(options).encode(), "application/json")


@asynccontextmanager
async def open_wire(kubeconfig: Path) -> AsyncIterator[Wire]:
    """Connect as the user of a kubeconfig of the testbed's."""
    document = yaml.safe_load(kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("certificate", "key"):
            Path(folder, name).write_bytes(base64.b64decode(user[f"client-{name}-data"]))
        context.load_cert_chain(Path(folder, "certificate"), Path(folder, "key"))
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=HANG_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Wire(cluster["server"], session)
    await asyncio.sleep(CLOSING_S)

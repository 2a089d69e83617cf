"""How does the benchmark speak to the API server? Many requests at once, and one watch, as its administrator."""

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import yaml

Object = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 32
MERGE = "application/merge-patch+json"
LONGEST_LINE = 1 << 22


class ServerError(Exception):
    """The API server refused what the benchmark needs; the message is the server's."""


class Server:
    """An API server; an async context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self._url = cluster["server"]
        self._ssl = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]) + b"\n")
            pair.flush()
            self._ssl.load_cert_chain(pair.name)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """One request that must succeed; returns the object."""
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind, "Accept": "application/json"}
        async with self._session.request(method, self._url + path, data=content, headers=headers) as response:
            answer: Object = json.loads(await response.read())
            if response.status >= 300:
                raise ServerError(f"{method} {path}: {response.status} {answer.get('message')}"[:1000])
            return answer

    async def watch(self, path: str, version: str) -> AsyncIterator[Object]:
        """Objects of a collection as they change, from a resourceVersion on, until the caller has enough."""
        url = f"{self._url}{path}?watch=1&resourceVersion={version}&timeoutSeconds=7200"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, timeout=timeout, read_bufsize=LONGEST_LINE) as response:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ServerError(f"watch {path}: {event['object']}"[:1000])
                yield event["object"]


async def for_all(items: Iterable[Item], work: Callable[[Item], Awaitable[Result]]) -> list[Result]:
    """Do something for each item, several at once; the results in the order of the items."""
    queue, results = list(enumerate(items)), {}
    queue.reverse()

    async def take() -> None:
        while queue:
            index, item = queue.pop()
            results[index] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(take())
    return [results[index] for index in sorted(results)]

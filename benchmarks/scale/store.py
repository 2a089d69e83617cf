"""How do fifty thousand Experiments get into a cluster within minutes? The server writes one, and its store copies it.

What comes to lie in the store is byte for byte what the server wrote of the first one, under other names. Each would
take it two requests of ten milliseconds and more, and none of them is what the benchmark is about.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from machine import find_flags

PUTS = 64
"""Puts in one transaction: less than the MiB and a half that the store takes at once."""
AT_ONCE = 4


class Store:
    """The etcd behind a cluster of the testbed's; an async context manager."""

    def __init__(self, folder: Path) -> None:
        flags = find_flags("kube-apiserver", folder)
        self._url = flags["--etcd-servers"]
        self._ssl = ssl.create_default_context(cafile=flags["--etcd-cafile"])
        self._ssl.load_cert_chain(flags["--etcd-certfile"], flags["--etcd-keyfile"])

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._ssl))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def read(self, key: str) -> str:
        """What lies under a key; KeyError where nothing does."""
        found = await self._ask("/v3/kv/range", {"key": _encode(key)})
        if not found.get("kvs"):
            raise KeyError(key)
        return base64.b64decode(found["kvs"][0]["value"]).decode()

    async def put_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Put every value under its key, many at once."""
        rest = iter(pairs)

        async def work() -> None:
            while some := list(islice(rest, PUTS)):
                puts = [{"requestPut": {"key": _encode(key), "value": _encode(value)}} for key, value in some]
                await self._ask("/v3/kv/txn", {"success": puts})

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    async def _ask(self, path: str, body: dict[str, object]) -> dict[str, list[dict[str, str]]]:
        async with self._session.post(self._url + path, data=json.dumps(body)) as response:
            text = await response.text()
            if response.status != 200:
                raise OSError(f"the store refused {path}: {response.status} {text[:300]}")
            answer: dict[str, list[dict[str, str]]] = json.loads(text)
            return answer


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

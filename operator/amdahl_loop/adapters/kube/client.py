"""What can the operator ask of the API server, and what may come back?

Refusals are values: the caller knows what a 409 or a 422 means. Silence is not: requests without an answer, 429 and 5xx
are repeated here, since everything the operator writes has a name or a resourceVersion; what still fails raises
ApiUnavailable, and the caller's queue comes back later.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self

from amdahl_loop.adapters.kube.answers import (
    ApiUnavailable,
    Cause,
    Page,
    Refused,
    is_transient,
    must,
    read,
    read_refusal,
)
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.transport import (
    BARE,
    BARE_LIST,
    WHOLE,
    Answer,
    Request,
    Transport,
    UnreachableError,
    open_transport,
)
from amdahl_loop.adapters.kube.transport import USER_AGENT as USER_AGENT

__all__ = ["ApiUnavailable", "Cause", "KubeClient", "Refused"]

FIELD_MANAGER = "amdahl-loop"
ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 30.0
"""A server that asks for more patience gets it from the queue, which holds up no other job meanwhile."""

CLOCKS_AGREE_S = 2.0
"""Clocks that differ by less are taken for equal: the server tells whole seconds, and an answer takes its time."""

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_OURS = (("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict"))
"""Strict: a misspelt field of a user's template is refused with its name, never dropped in silence."""

Propagation = Literal["Background", "Foreground", "Orphan"]


class KubeClient:
    """The operator's way to the API server; an async context manager. `sleep`, `draw` and `clock` are injected."""

    def __init__(
        self,
        transport: Transport,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._sleep = sleep
        self._draw = draw
        self._clock = clock
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Seconds since the epoch by the server's clock, once it has answered.

        Whatever lies in the cluster is dated by it, so nothing that is compared with such a date may come from our own
        clock, which may be wrong by an hour. It tells whole seconds: a smaller difference is none.
        """
        return self._clock() + self._ahead_s

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> Self:
        """A client for the named kubeconfig, else for the cluster around this pod, else for kubectl's own choice."""
        return cls(await open_transport(kubeconfig, context))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object as it is now, None where there is none. ApiUnavailable where it may not be read."""
        answer = await self._send(Request(method="GET", path=kind.path(namespace, name)))
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        return must(answer, f"read {kind.value.plural} {namespace}/{name}")

    async def get_uid(self, kind: Kind, namespace: str, name: str) -> str | None:
        """UID of an object as it is now, without its content being sent; None where there is none."""
        answer = await self._send(Request(method="GET", path=kind.path(namespace, name), accept=BARE))
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        return str(must(answer, f"read {kind.value.plural} {namespace}/{name}")["metadata"]["uid"])

    async def has_any(self, kind: Kind, namespace: str, labels: str) -> bool:
        """Whether there is any object of a kind that these labels select."""
        query = (("limit", "1"), ("labelSelector", labels))
        request = Request(method="GET", path=kind.path(namespace), query=query, accept=BARE_LIST)
        return bool(must(await self._send(request), f"list {kind.value.plural}").get("items"))

    async def version(self, kind: Kind, namespace: str | None) -> str:
        """The version of a collection as it is now: from there on it can be watched."""
        path, query = kind.path(namespace), (("limit", "1"),)
        answer = await self._send(Request(method="GET", path=path, query=query, accept=BARE_LIST))
        return str(must(answer, f"list {kind.value.plural}")["metadata"]["resourceVersion"])

    async def list(
        self, kind: Kind, namespace: str | None, labels: str = "", limit: int = 500, fields: str = ""
    ) -> AsyncIterator[Object]:
        """Every object of a kind, `limit` a page; each that is there all the while comes exactly once.

        `labels` and `fields` are selectors in kubectl's notation.
        Items of a list lack `apiVersion` and `kind`; they are put back, so that an item looks like an object.
        """
        async for page in self.pages(kind, namespace, labels, limit, fields):
            for item in page.items:
                yield kind.header | item

    async def pages(
        self,
        kind: Kind,
        namespace: str | None,
        labels: str = "",
        limit: int = 500,
        fields: str = "",
        accept: str = WHOLE,
    ) -> AsyncIterator[Page]:
        """The same by pages, items as they come. The next page is on its way while one is read."""
        query = [("limit", str(limit))]
        query += [("labelSelector", labels)] if labels else []
        query += [("fieldSelector", fields)] if fields else []

        async def ask(token: str) -> Answer:
            following = (("continue", token),) if token else ()
            path = kind.path(namespace)
            return await self._send(Request(method="GET", path=path, query=(*query, *following), accept=accept))

        token, answer = "", await ask("")
        while True:
            metadata = answer.body.get("metadata") or {}
            following = metadata.get("continue") or ""
            if answer.status == HTTPStatus.GONE and token and following:
                token, answer = following, await ask(following)  # too slow for one view: the rest comes as it is now
                continue
            page = Page(
                must(answer, f"list {kind.value.plural}").get("items") or (), str(metadata.get("resourceVersion", ""))
            )
            if not following:
                yield page
                return
            asked = asyncio.ensure_future(ask(following))
            try:
                yield page
                token, answer = following, await asked
            finally:
                asked.cancel()

    def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """The events of one watch, as they come, and of no second one. UnreachableError where it breaks off."""
        return self._transport.stream(request)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def create(self, kind: Kind, namespace: str, body: Object, dry_run: bool = False) -> Object | Refused:
        """Create an object by its name. A lost answer looks like a name that is taken: the caller adopts its own."""
        query = (*_OURS, *((("dryRun", "All"),) if dry_run else ()))
        body = kind.header | body
        return read(await self._send(Request(method="POST", path=kind.path(namespace), query=query, body=body)))

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> Object | Refused:
        """Replace an object of ours; the body carries the resourceVersion it was read at."""
        return await self._put(kind.path(namespace, name), kind, body)

    async def replace_status(self, kind: Kind, namespace: str, name: str, body: Object) -> Object | Refused:
        """Replace an object's status; the body carries the resourceVersion it was read at."""
        return await self._put(kind.path(namespace, name, "status"), kind, body)

    async def _put(self, path: str, kind: Kind, body: Object) -> Object | Refused:
        assert body["metadata"].get("resourceVersion"), "an update without a resourceVersion could undo another's"
        return read(await self._send(Request(method="PUT", path=path, query=_OURS, body=kind.header | body)))

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object) -> Object | Refused:
        """Merge some fields into an object of ours; with `metadata.resourceVersion`, only if it is still that one."""
        path = kind.path(namespace, name)
        return read(await self._send(Request(method="PATCH", path=path, query=_OURS, body=body, content_type=_MERGE)))

    async def patch_status(self, kind: Kind, namespace: str, name: str, body: Object) -> Object | Refused:
        """Merge some fields into an object's status; with `metadata.resourceVersion`, only if it is still that one."""
        path = kind.path(namespace, name, "status")
        return read(await self._send(Request(method="PATCH", path=path, query=_OURS, body=body, content_type=_MERGE)))

    async def apply(self, kind: Kind, namespace: str, name: str, body: Object, force: bool = False) -> Object | Refused:
        """Server-side apply as our field manager; a 409 names the managers of fields that are not ours."""
        query = (*_OURS, ("force", "true" if force else "false"))
        path = kind.path(namespace, name)
        body = kind.header | body
        body["metadata"] = {"name": name} | body.get("metadata", {})
        return read(await self._send(Request(method="PATCH", path=path, query=query, body=body, content_type=_APPLY)))

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: Propagation = "Background"
    ) -> bool | Refused:
        """Delete the object of that name and uid; False where it is gone already, 409 where another bears its name."""
        options = {"propagationPolicy": propagation, "preconditions": {"uid": uid}}
        answer = await self._send(Request(method="DELETE", path=kind.path(namespace, name), body=options))
        value = read(answer)
        if isinstance(value, Refused):
            return False if value.is_gone else value
        return True

    async def post_event(self, about: Object, reason: str, message: str, warning: bool = False) -> None:
        """Tell the owner of an object something once; the same words within an hour are not repeated.

        Events are courtesy: a refusal is ignored. `reason` is a CamelCase word; the message is cut at 1,000 characters.
        """
        metadata, now_s = about["metadata"], self._clock()
        words = "\0".join([metadata.get("uid", ""), reason, message, str(int(now_s // 3600))])
        namespace = metadata["namespace"]
        regarding = {key: about[key] for key in ("apiVersion", "kind")} | {
            key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion") if key in metadata
        }
        event = {
            "metadata": {
                "name": f"{metadata['name'][:200]}.{hashlib.sha256(words.encode()).hexdigest()[:16]}",
                "namespace": namespace,
            },
            "eventTime": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": "amdahl-loop.io/operator",
            "reportingInstance": FIELD_MANAGER,
            "action": reason,
            "reason": reason,
            "note": message[:1000],
            "type": "Warning" if warning else "Normal",
            "regarding": regarding,
        }
        await self.create(Kind.EVENT, namespace, event)

    # --- patience -----------------------------------------------------------------------------------------------------

    async def _send(self, request: Request) -> Answer:
        """Send until there is an answer that means something; ApiUnavailable after `ATTEMPTS`."""
        pause_s, last = FIRST_PAUSE_S, "no answer"
        refused: Refused | None = None
        asked_s: float | None = None
        for attempt in range(ATTEMPTS):
            try:
                answer = await self._transport.send(request)
            except UnreachableError as error:
                last, refused, asked_s = str(error), None, None
            else:
                if answer.at_s is not None:
                    ahead_s = answer.at_s - self._clock()
                    self._ahead_s = ahead_s if abs(ahead_s) >= CLOCKS_AGREE_S else 0.0
                if not is_transient(answer.status):
                    return answer
                refused, asked_s = read_refusal(answer), answer.retry_after_s
                last = f"{answer.status} {refused.message}"
            if (asked_s or 0.0) > LONGEST_RETRY_AFTER_S or attempt + 1 == ATTEMPTS:
                break
            await self._sleep(max(asked_s or 0.0, pause_s * (0.5 + 0.5 * self._draw())))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        raise ApiUnavailable(f"{request.method} {request.path}: {last}"[:500], refused, asked_s)

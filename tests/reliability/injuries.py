"""What can go wrong between an operator and the API server, short of either dying? Faults of the relay."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from reliability.relay import Call, Cut, Fault, Send
from reliability.wire import Reply

LOST = "lost"
RESET = "reset"
Wound = int | str
"""A status that is answered instead, `LOST` (done, and the answer never comes), or `RESET` (neither)."""

EVERY_WOUND: tuple[Wound, ...] = (500, RESET, 429, LOST, 503, 409, 504, LOST)
_REASONS = {
    403: "Forbidden",
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def refuse(status: int, retry_after: str = "") -> Reply:
    """A refusal as the API server words it."""
    said = {"kind": "Status", "status": "Failure", "reason": _REASONS[status], "code": status}
    content = json.dumps(said | {"message": f"injected {status}"}).encode()
    return Reply(status, content, retry_after=retry_after)


async def wound(call: Call, send: Send, what: Wound) -> Reply:
    """One call goes wrong. A conflict is possible only where a version was sent; elsewhere the server breaks down instead."""
    if what == RESET:
        raise Cut
    if what == LOST:
        await send(call)
        raise Cut
    if what == 409 and b'"resourceVersion"' not in call.content:
        what = 500
    assert isinstance(what, int)
    return refuse(what, "1" if what == 429 else "")


class EveryKind:
    """Of each kind of call the first few go wrong, each in another way."""

    def __init__(self, wounds: tuple[Wound, ...] = EVERY_WOUND) -> None:
        self._wounds = wounds
        self.seen: Counter[str] = Counter()
        self.struck: defaultdict[str, list[Wound]] = defaultdict(list)

    async def __call__(self, call: Call, send: Send) -> Reply:
        """The fault."""
        kind = f"list {call.kind}" if call.is_list else call.kind
        number = self.seen[kind]
        self.seen[kind] += 1
        if call.is_watch or number >= 2 * len(self._wounds) or number % 2:
            return await send(call)
        what = self._wounds[number // 2]
        self.struck[kind].append(what)
        return await wound(call, send, what)


def always(what: Wound, retry_after: str = "") -> Fault:
    """Nothing works."""

    async def fault(call: Call, send: Send) -> Reply:
        if isinstance(what, int):
            return refuse(what, retry_after)
        return await wound(call, send, what)

    return fault


def hang(hung: asyncio.Event, *names: str) -> Fault:
    """Every call of these kinds is done, and its answer never comes; `hung` tells of the first."""

    async def fault(call: Call, send: Send) -> Reply:
        reply = await send(call)
        if call.kind in names:
            hung.set()
            await asyncio.sleep(3600)
        return reply

    return fault


def forbid(*kinds: str) -> Fault:
    """The operator has lost these rights: what the server's authorization says, admission is never asked."""
    said = {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403}
    said["message"] = 'jobs.batch is forbidden: User "operator" cannot create resource "jobs" in API group "batch"'

    async def fault(call: Call, send: Send) -> Reply:
        return Reply(403, json.dumps(said).encode()) if call.kind in kinds else await send(call)

    return fault


class OneBehind:
    """A cache that lags: every list shows what the one before it showed, and so does every read by name of these kinds."""

    def __init__(self, kinds: Iterable[str] = ()) -> None:
        self._kinds = frozenset(kinds)
        self._before: dict[str, Reply] = {}
        self.stale = 0
        """Answers that were not what the server held."""

    async def __call__(self, call: Call, send: Send) -> Reply:
        """The fault."""
        reply = await send(call)
        if call.is_write or call.is_watch or reply.status not in (200, 404):
            return reply
        if not call.is_list and call.kind not in self._kinds:
            return reply
        before = self._before.get(call.path, reply)
        self._before[call.path] = reply
        self.stale += before.content != reply.content
        return before

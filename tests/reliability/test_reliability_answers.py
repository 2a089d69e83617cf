"""What if the API server answers badly, late, with old news, or not at all? The same end as undisturbed, and no storm on the way."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from reliability.injuries import EVERY_WOUND, EveryKind, OneBehind, always, forbid, hang
from reliability.operators import Nursery
from reliability.relay import Call
from reliability.scenes import Scene, conditions_of
from reliability.sweeps import Disturb, Run, hold, hold_all, live, live_at_once
from testbed.cluster import Cluster

OUTAGE_S = 12.0
MOST_PER_S = 2.0
"""Requests for one job while nothing works (fault 6)."""


def test_every_kind_of_call_may_fail_in_every_way(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """409, 429, 500, 503, 504, a reset, and twice a lost answer, on every kind of call, reads too: the same end, nothing run twice."""
    fault = EveryKind()

    async def disturb(scene: Scene) -> None:
        scene.relay.fault = fault

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)
    kinds = {
        "POST jobs",
        "POST experiments",
        "PATCH experiments/status",
        "PATCH trainingjobs/status",
        "PATCH trainingjobs",
    }
    kinds |= {
        "PUT configmaps",
        "PATCH configmaps",
        "DELETE jobs",
        "GET trainingjobs",
        "GET experiments",
        "list GET jobs",
    }
    assert kinds <= set(fault.struck)
    assert {wound for kind in kinds for wound in fault.struck[kind]} == set(EVERY_WOUND)


def test_an_outage_is_borne_without_a_storm(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """503 to everything for a while, in the middle of a block: few requests meanwhile, and the same end after it."""
    counted: list[Call] = []

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d1")
        before, scene.relay.fault = len(scene.relay.calls), always(503)
        await asyncio.sleep(OUTAGE_S)
        counted.extend(call for call in scene.relay.calls[before:] if not call.is_watch)
        del scene.relay.fault

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)
    assert 0 < len(counted) <= MOST_PER_S * OUTAGE_S


def test_retry_after_is_waited_for(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """429 with Retry-After 5: no call is repeated before; the same end."""
    asked: dict[str, list[float]] = {}
    patient = always(429, "5")

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d1")

        async def fault(call: Call, send: object) -> object:
            if not call.is_watch:
                asked.setdefault(f"{call.method} {call.path}", []).append(time.monotonic())
            return await patient(call, send)

        scene.relay.fault = fault
        await asyncio.sleep(OUTAGE_S)
        del scene.relay.fault

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)
    gaps = [later - sooner for times in asked.values() for sooner, later in pairwise(times)]
    assert gaps
    assert min(gaps) >= 5


def test_an_answer_that_never_comes_is_given_up(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """A connection that is open and silent, after a write was done: the operator gives it up, reads what there is, and goes on."""

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d0")
        hung = asyncio.Event()
        scene.relay.fault = hang(hung, "PATCH experiments/status")
        await hung.wait()
        del scene.relay.fault

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)


def test_old_news_starts_nothing_twice(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """Every list shows what the one before it showed, for the whole life, or every read for a while: the same end, no block twice."""
    lists, reads = OneBehind(), OneBehind(("GET trainingjobs", "GET experiments", "GET configmaps"))

    async def lag(scene: Scene) -> None:
        scene.relay.fault = lists

    async def lag_for_a_while(scene: Scene) -> None:
        scene.relay.fault = reads
        await scene.reach("PATCH experiments/status block d1")
        del scene.relay.fault

    lives = live_at_once(server, nursery, tmp_path, {"lists": lag, "lists and reads": lag_for_a_while})
    hold_all(undisturbed, lives)
    assert min(lists.stale, reads.stale) > 0


def test_a_lost_right_is_no_evidence(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """403 to every new Job, for a while in the middle of an experiment: said on the job, held against nobody; the same end after it."""

    async def disturb(scene: Scene) -> None:
        await scene.reach("PATCH experiments/status block d0")
        scene.relay.fault = forbid("POST jobs")

        async def is_said() -> bool:
            return conditions_of(await scene.job()).get("Stalled") == ("True", "RefusedByServer")

        await scene.wait("the job says so", is_said)
        await asyncio.sleep(OUTAGE_S)
        del scene.relay.fault

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)


def _blind(_: Call, line: bytes) -> list[bytes]:
    return [line] if b'"type":"ADDED"' in line[:40] or b'"BOOKMARK"' in line[:40] else []


def _double(_: Call, line: bytes) -> list[bytes]:
    return [line, line]


class _Reorder:
    """Every second event overtakes the one before it."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def __call__(self, call: Call, line: bytes) -> list[bytes]:
        held = self._held.pop(call.path, None)
        if held is None:
            self._held[call.path] = line
            return []
        return [line, held]


def test_events_are_only_a_wake_up(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """Every change and every deletion hidden, or told twice, or out of order: the same end, later."""

    def through(filtering: Callable[[Call, bytes], list[bytes]]) -> Disturb:
        async def disturb(scene: Scene) -> None:
            scene.relay.watch_filter = filtering

        return disturb

    filters = {"hidden": _blind, "doubled": _double, "out of order": _Reorder()}
    disturbs = {name: through(filtering) for name, filtering in filters.items()}
    hold_all(undisturbed, live_at_once(server, nursery, tmp_path, disturbs))


def test_watches_that_break_and_lag_are_taken_up_again(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """Every watch ends after two seconds, at first with 410 Gone, and every event comes late: the same end."""

    async def disturb(scene: Scene) -> None:
        scene.relay.watch_delay_s = 0.5
        scene.relay.watch_limit_s = 2.0
        scene.relay.watches_gone = 3

    hold(undisturbed, live(server, nursery, tmp_path, disturb))

"""The real operator killed before and after every write of a whole life of a win, on a real API server: the end is the same.

Each run is killed twice, the second time in its other half, so that half as many runs hold every point. The sample is part of the
ordinary suite; `python -m pytest tests/reliability -m "cluster and slow"` runs all of it and prints what was struck.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from reliability.kills import Point
from reliability.operators import Nursery
from reliability.scenes import setting
from reliability.sweeps import LOSS_OF_A_WIN, WIN_AND_ROLL_BACK, Run, Scenario, find_faults, run, sweep
from testbed.cluster import Cluster

SAMPLE = ((10, 44), (17, 51), (26, 63), (33, 72))
"""Of each stage of a block one write, and writes of verdict, application, spec and revision."""


def pair_up(count: int) -> list[tuple[Point, ...]]:
    """Every write before and after, two to a run: one in each half, one before and one after."""
    half = (count + 1) // 2
    pairs = [(at, at + half) for at in range(half)]
    return [(Point(a, after), Point(b, not after)) for a, b in pairs for after in (False, True)]


def strike(runs: Iterable[Run]) -> set[tuple[Point, str]]:
    """Every point at which an operator was killed, and the write that was cut."""
    return {struck for run in runs for struck in zip(run.points, run.victims, strict=False)}


def play(
    server: Cluster, nursery: Nursery, folder: Path, scenario: Scenario, plans: Iterable[tuple[Point, ...]] | None
) -> tuple[Run, list[Run]]:
    """The undisturbed run and those that were killed: at these points, or at every one.

    After a first kill numbers are shifted by a write or two, so that a second one may miss its write: it gets a run of its own.
    """

    async def go() -> tuple[Run, list[Run]]:
        async with setting(server, nursery, folder) as theatre:
            expected = await run(theatre, scenario)
            assert not expected.fault, expected.fault
            runs = await sweep(theatre, scenario, plans or pair_up(len(expected.writes) + 1))
            if plans is None:
                known = {(name, point.after) for point, name in strike(runs)}
                wanted = [(name, after) for name in dict.fromkeys(expected.writes) for after in (False, True)]
                left = [(Point(-1, after, name),) for name, after in wanted if (name, after) not in known]
                runs += await sweep(theatre, scenario, left)
            return expected, runs

    return asyncio.run(go())


def check(expected: Run, runs: list[Run]) -> None:
    """No run went another way, and no block was ever started twice."""
    assert set(expected.state["started"].values()) == {1}
    faults = find_faults(expected, runs)
    assert not faults, f"{len(faults)} of {len(runs)} runs:\n" + "\n".join(faults)


def test_a_sample_of_kills_changes_nothing(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """[P] Same objects, same evidence, same words; every block started once, nothing left over; at least forty writes."""
    plans = [(Point(a, bool(n % 2)), Point(b, not n % 2)) for n, (a, b) in enumerate(SAMPLE)]
    expected, runs = play(server, nursery, tmp_path, WIN_AND_ROLL_BACK, plans)
    assert len(expected.writes) >= 40
    assert expected.state["experiments"][0]["verdict"]["word"] == "Won"
    assert [kind for kind, *_ in expected.state["experiments"][0]["applications"]] == ["applied", "rolledBack"]
    assert expected.state["blockPods"] == []
    assert all(len(run.victims) == len(run.points) for run in runs)
    check(expected, runs)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [WIN_AND_ROLL_BACK, LOSS_OF_A_WIN], ids=["win-and-roll-back", "loss-of-a-win"])
def test_killed_at_every_write_the_end_is_the_same(
    scenario: Scenario, server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """[P] Before and after every write: same end. Every write that an undisturbed life makes was struck in both ways."""
    expected, runs = play(server, nursery, tmp_path, scenario, None)
    struck = strike(runs)
    ways = {False: "before", True: "after"}
    for number, name in enumerate(expected.writes):
        print(number, name, *(ways[after] for after in ways if any(n == name and p.after is after for p, n in struck)))
    print(f"{len(expected.writes)} writes, {len(runs)} runs, {sum(len(run.victims) for run in runs)} kills")
    check(expected, runs)
    for after in ways:
        names = {name for point, name in struck if point.after is after}
        assert names >= set(expected.writes), f"never struck: {set(expected.writes) - names}"

"""Fixtures of the reliability tests: an API server with our definitions, and operators at the ready."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_operator import define
from reliability.operators import Nursery, open_nursery
from reliability.scenes import setting
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, run
from testbed.cluster import Cluster
from testbed.fixtures import api_server

__all__ = ["api_server"]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def server(api_server: Cluster) -> Cluster:
    """An API server with our definitions and the trials' priority class."""
    return define(api_server)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Operators that start at once."""
    with open_nursery() as opened:
        yield opened


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Complete sweeps take half an hour: they run where `slow` is asked for by name (`-m "cluster and slow"`), samples of them always."""
    if re.search(r"(?<!not )\bslow\b", config.getoption("markexpr")):
        return
    whole = [item for item in items if item.path.parent == HERE and item.get_closest_marker("slow")]
    if whole:
        items[:] = [item for item in items if item not in whole]
        config.hook.pytest_deselected(items=whole)


@pytest.fixture(scope="session")
def undisturbed(server: Cluster, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole life of a win that nobody disturbs: what every disturbed one is held to."""

    async def go() -> Run:
        async with setting(server, nursery, tmp_path_factory.mktemp("undisturbed")) as theatre:
            return await run(theatre, WIN_AND_ROLL_BACK)

    found = asyncio.run(go())
    assert not found.fault, found.fault
    return found

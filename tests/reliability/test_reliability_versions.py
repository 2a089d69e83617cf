"""What if another version of the operator takes over in the middle of an experiment, and the first one comes back?"""

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.operators import Nursery, open_nursery
from reliability.scenes import Scene, setting
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold, run
from testbed.cluster import Cluster

ROOT = Path(__file__).parents[2]
EDITS = {
    "operator/amdahl_loop/domain/constants.py": ('JUDGE_VERSION = "', 'JUDGE_VERSION = "next-'),
    "operator/amdahl_loop/adapters/kube/probe.py": ('"-I", ', ""),  # packs the probe beside it, not the one installed
    "trainer_image/amdahl_probe/__init__.py": ('"""', '"""The next version. '),
}
"""What the next version has changed: how it judges, and the probe, byte for byte another one."""


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Operators of a version that is not out yet."""
    source = tmp_path_factory.mktemp("next")
    for package in ("operator/amdahl_loop", "trainer_image/amdahl_probe"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in EDITS.items():
        text = (source / name).read_text()
        assert before in text, name
        (source / name).write_text(text.replace(before, after, 1))
    with open_nursery(source) as opened:
        yield opened


async def hand_over(scene: Scene, nursery: Nursery) -> None:
    """As a Deployment with strategy Recreate does it: the old one is asked to end, then the new one starts."""
    before = scene.operator
    before.send(signal.SIGTERM)

    async def has_ended() -> bool:
        return before.has_ended

    await scene.wait("the old one has ended", has_ended)
    scene.nursery = nursery
    scene.start()


def test_versions_take_over_from_each_other(
    server: Cluster, nursery: Nursery, next_version: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """There, back and there again: plan, blocks and verdict are those of the version that made the plan, no Job is replaced, the end is the same."""
    judged: list[str] = []

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d1")
        await hand_over(scene, next_version)
        await scene.reach("POST jobs r0-0")
        await hand_over(scene, nursery)
        await scene.reach("PATCH experiments/status applied")
        await hand_over(scene, next_version)
        (experiment,) = await scene.experiments()
        judged.append(experiment["spec"]["constants"]["judgeVersion"])

    async def go() -> Run:
        async with setting(server, nursery, tmp_path) as theatre:
            return await run(theatre, WIN_AND_ROLL_BACK, disturb=disturb)

    lived = asyncio.run(go())
    hold(undisturbed, lived)
    assert not judged[0].startswith("next-")
    assert lived.writes.count("POST configmaps amdahl-probe") == 2, "each version brings its own probe"

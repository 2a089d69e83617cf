"""What if clocks are wrong, or other objects are poison? The same end as undisturbed."""

import asyncio
import copy
from pathlib import Path

import pytest

from amdahl_loop.adapters.kube.experiments import render
from judge_builders import make_plan
from reliability.operators import Nursery
from reliability.scenes import Scene, setting, training_job
from reliability.sweeps import WIN_AND_ROLL_BACK, Disturb, Run, hold, run
from testbed.cluster import Cluster

HOUR_S = 3600.0


def live(server: Cluster, nursery: Nursery, folder: Path, disturb: Disturb, clock: Path | None = None) -> Run:
    """A whole life of a win, disturbed."""

    async def go() -> Run:
        async with setting(server, nursery, folder) as theatre:
            return await run(theatre, WIN_AND_ROLL_BACK, disturb=disturb, clock=clock)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("first_s", "then_s", "last_s"),
    [(HOUR_S, HOUR_S, HOUR_S), (-HOUR_S, -HOUR_S, -HOUR_S), (0.0, -300.0, 2 * HOUR_S)],
    ids=["an-hour-ahead", "an-hour-behind", "stepping"],
)
def test_a_wrong_clock_changes_no_end(
    first_s: float, then_s: float, last_s: float, server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """The operator's clock is wrong, or is set while blocks run: the same blocks, verdict and roll-back, and the job is restarted once."""
    clock = tmp_path / "clock"
    clock.write_text(str(first_s))

    def set_to(offset_s: float) -> None:
        new = clock.with_suffix(".new")
        new.write_text(str(offset_s))
        new.replace(clock)

    async def disturb(scene: Scene) -> None:
        await scene.reach("POST jobs d2")
        set_to(then_s)
        await scene.reach("PATCH experiments/status verdict")
        set_to(last_s)

    lived = live(server, nursery, tmp_path, disturb, clock)
    hold(undisturbed, lived)


def test_poison_stops_nobody_else(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """Twenty jobs that cannot be used and twenty Experiments whose plan is forged lie beside a healthy job: its life is the same."""

    async def disturb(scene: Scene) -> None:
        for number in range(20):
            document = copy.deepcopy(training_job(f"poison-{number}"))
            trainer = document["spec"]["template"]["spec"]["containers"][0]
            trainer["env"] = [{"name": "AMDAHL_PLAN", "value": "mine"}]
            await scene.apply(document)
            body = render(make_plan(), scene.namespace)
            body["metadata"]["name"] = f"poison-{number}"
            body["spec"] |= {"job": f"poison-{number}", "planHash": "0" * 16}
            made = await scene.wire.post(scene.path("experiments"), body)
            assert made.status == 201, made.content

    lived = live(server, nursery, tmp_path, disturb)
    hold(undisturbed, lived)

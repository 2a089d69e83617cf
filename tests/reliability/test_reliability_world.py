"""What if clocks are wrong, or other objects are poison? The same end as undisturbed."""

import copy
from pathlib import Path

from amdahl_loop.adapters.kube.experiments import render
from judge_builders import make_plan
from reliability.operators import Nursery
from reliability.scenes import Scene, training_job
from reliability.sweeps import Disturb, Run, hold, hold_all, live, live_at_once
from testbed.cluster import Cluster

HOUR_S = 3600.0


CLOCKS = {
    "an hour ahead": (HOUR_S, HOUR_S, HOUR_S),
    "an hour behind": (-HOUR_S, -HOUR_S, -HOUR_S),
    "stepping": (0.0, -300.0, 2 * HOUR_S),
}
"""By how much the operator's clock is wrong: at first, in discovery, and from the verdict on."""


def test_a_wrong_clock_changes_no_end(server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run) -> None:
    """The operator's clock is wrong, or is set while blocks run: the same blocks, verdict and roll-back, and the job is restarted once."""
    clocks: dict[str, Path | None] = {}

    def setting_clocks(name: str) -> Disturb:
        first_s, then_s, last_s = CLOCKS[name]
        clock = clocks[name] = tmp_path / name.replace(" ", "-")
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

        return disturb

    disturbs = {name: setting_clocks(name) for name in CLOCKS}
    hold_all(undisturbed, live_at_once(server, nursery, tmp_path, disturbs, clocks))


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

"""What if nodes, images and programs fail under a trial? Each trouble has its word, none is evidence for or against a win it did not see.

Whole lives: what each word means by itself is tested in `tests/kube/test_kube_outcomes.py`, real pods in `tests/e2e/test_kube_pods.py`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import Arm, WindowOutcome
from fakes import Truth, loader_bound
from reliability.hands import Behaviour, Hands
from reliability.operators import Nursery
from reliability.programs import measure, pod_status, read_windows, stamp
from reliability.scenes import Scene, Theatre, conditions_of, setting, training_job
from reliability.wire import Object
from testbed.cluster import Cluster

WELL = Truth(phases_s=loader_bound)


def _disrupted(reason: str) -> Object:
    """A pod that was taken away while it ran."""
    ended = {"exitCode": 143, "reason": "Error", "startedAt": stamp(), "finishedAt": stamp()}
    status = pod_status("Failed", {"terminated": ended})
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": stamp()}
    return status | {"conditions": [*status["conditions"], target]}


def _evicted() -> Object:
    ended = {"exitCode": 137, "reason": "Error", "startedAt": stamp(), "finishedAt": stamp()}
    return pod_status("Failed", {"terminated": ended}, reason="Evicted", message="The node was low on memory")


def _waiting(reason: str) -> Object:
    """A container that will never start."""
    return pod_status("Pending", {"waiting": {"reason": reason, "message": "no such image"}})


Told = Callable[[Hands, str, Object], Object]
"""What becomes of a block's pod."""


def _foreign(hands: Hands, block: str, plan: Object) -> Object:
    """The report of somebody else's run."""
    return hands.end_pod(encode_report(measure(WELL, block, "somebody-0123456789-d0", read_windows(plan))))


def _half(hands: Hands, block: str, plan: Object) -> Object:
    """A report that was cut in the middle."""
    whole = encode_report(measure(WELL, block, plan["run"], read_windows(plan)))
    return hands.end_pod(whole[: len(whole) // 2])


TAKEN: dict[str, tuple[str, Told]] = {
    "d0": ("evicted", lambda *_: _evicted()),
    "d1": ("node_lost", lambda *_: _disrupted("DeletionByTaintManager")),
    "d2": ("image_pull", lambda *_: _waiting("ErrImageNeverPull")),
    "r0-0": ("preempted", lambda *_: _disrupted("PreemptionByScheduler")),
    "s0": ("evicted", lambda *_: _disrupted("EvictionByEvictionAPI")),
}
"""What nodes and images do to blocks, and the word for it."""

GARBLED: dict[str, tuple[str, Told]] = {
    "d0": ("summary is no JSON", lambda hands, *_: hands.end_pod("no report at all {")),
    "d1": ("no_summary", lambda hands, *_: hands.end_pod("")),
    "d2": ("summary is no JSON", _half),
    "r0-0": ("summary is of run", _foreign),
    "s0": ("summary is no JSON", lambda hands, *_: hands.end_pod("[" * 1400)),
}
"""What programs leave instead of a summary, and the word for it."""


async def _live(theatre: Theatre, behaviour: Behaviour, word: str) -> tuple[Scene, Object]:
    """A job's life up to its first verdict; its only Experiment."""
    async with theatre.scene(behaviour) as scene:
        await scene.apply(training_job())
        scene.start()

        async def is_closed() -> bool:
            found = await scene.experiments()
            return bool(found) and (found[0].get("status") or {}).get("verdict", {}).get("word") == word

        await scene.wait(f"the verdict {word}", is_closed)

        async def is_quiet() -> bool:
            blocks = [name for name in await scene.names("jobs") if not name.startswith("waits-r")]
            return not blocks and conditions_of(await scene.job()).get("Experimenting", ("", ""))[0] == "False"

        await scene.wait("nothing of a block is left", is_quiet)
        assert len(scene.village.started) == len(set(scene.village.started))
        (experiment,) = await scene.experiments()
        return scene, experiment


@pytest.mark.parametrize("told", [TAKEN, GARBLED], ids=["taken", "garbled"])
def test_what_befalls_a_block_from_outside_is_void_and_named(
    told: dict[str, tuple[str, Told]], server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """Eviction, node loss, an image that is not there, preemption; garbage, silence, another run's report: void each, and the win is found all the same."""

    def end(hands: Hands, block: str, plan: Object) -> Object:
        return told[block][1](hands, block, plan) if block in told else hands.succeed(block, plan)

    async def go() -> None:
        async with setting(server, nursery, tmp_path) as theatre:
            _, experiment = await _live(theatre, Behaviour(WELL, end=end), "Won")
            blocks = {block["name"]: block for block in experiment["status"]["blocks"]}
            said = {name: blocks[name].get("failure", "") for name in told}
            assert [name for name, (word, _) in told.items() if not said[name].startswith(word)] == [], said
            assert [name for name in told if "summary" in blocks[name]] == []
            assert {vote["check"] for vote in experiment["status"]["verdict"]["votes"]} == {0, 1, 2}

    asyncio.run(go())


@pytest.mark.parametrize("outcome", [WindowOutcome.CRASH, WindowOutcome.OOM, WindowOutcome.HANG])
def test_a_variant_that_fails_loses(outcome: WindowOutcome, server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """A crash, no memory or a hang under the variant is a loss for it, never missing data; nothing is applied."""

    def fails(knobs: Knobs) -> WindowOutcome:
        return outcome if knobs.dataloader_workers else WindowOutcome.OK

    async def go() -> None:
        async with setting(server, nursery, tmp_path) as theatre:
            behaviour = Behaviour(Truth(phases_s=loader_bound, outcome=fails))
            scene, experiment = await _live(theatre, behaviour, "Vetoed")
            assert outcome.value.replace("_", " ") in experiment["status"]["verdict"]["sentence"].replace("_", " ")
            assert "applications" not in experiment["status"]
            assert (await scene.job())["spec"]["knobs"] == {"dataloaderWorkers": 0}

    asyncio.run(go())


def test_a_container_that_is_killed_for_memory_says_which_arm_it_ran(
    server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """OOM of the whole container in a window of the variant: its last word before the window convicts the variant."""

    def killed(hands: Hands, block: str, plan: Object) -> Object | None:
        if block != "d1":
            return hands.succeed(block, plan)
        at = next(w["index"] for w in plan["windows"] if w["arm"] == "B")
        report = measure(WELL, block, plan["run"], read_windows(plan)[:at])
        cut = report.model_copy(update={"state": "running", "running_arm": Arm.VARIANT, "running_index": at})
        return hands.end_pod(render_block_summary(cut) or "", exit_code=137, reason="OOMKilled")

    async def go() -> None:
        async with setting(server, nursery, tmp_path) as theatre:
            _, experiment = await _live(theatre, Behaviour(WELL, end=killed), "Vetoed")
            assert "the variant ended in oom" in experiment["status"]["verdict"]["sentence"]

    asyncio.run(go())

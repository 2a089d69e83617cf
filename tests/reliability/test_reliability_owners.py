"""What if people change things in the middle of an experiment? It ends in words within a pass or two, and leaves nothing behind.

A block is in flight in each of these tests, and its pod never ends by itself.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reliability.flights import HELD, SOON_S, block_jobs, closed, in_flight, no_block, release, verdicts
from reliability.operators import Nursery
from reliability.relay import Call, Send, name_write
from reliability.scenes import JOB, Scene, conditions_of, training_job
from reliability.wire import Reply
from testbed.cluster import Cluster

Edit = Callable[[Scene], Awaitable[object]]
LONG_S = 4.0
"""A pause that no pass makes which is not put off; it comes after the fourth failure."""
STORM = 40
"""Refusals without such a pause: four failures, and every event of a child that goes."""


def change(**spec: Any) -> Edit:
    """Its owner applies another spec."""

    async def edit(scene: Scene) -> object:
        document = training_job()
        document["spec"] |= spec
        return await scene.apply(document)

    return edit


def paused() -> Edit:
    """Its owner annotates it, and nothing else."""

    async def edit(scene: Scene) -> object:
        document = training_job()
        document["metadata"]["annotations"] = {"amdahl-loop.io/paused": "true"}
        return await scene.apply(document)

    return edit


def other_image() -> Edit:
    """Its owner applies another image."""
    container = {"name": "trainer", "image": "example/train:2", "command": ["python", "train.py"]}
    return change(template={"spec": {"containers": [container]}})


def test_a_job_that_is_relabelled_goes_on(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Labels and annotations of its own say nothing of the work: nothing is cancelled or replaced, and only a queue's name follows."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            before = await scene.wire.get(scene.path("jobs", f"{JOB}-r0"))
            document = training_job()
            labels = {"team": "vision", "kueue.x-k8s.io/queue-name": "night", "app.kubernetes.io/managed-by": "Helm"}
            document["metadata"] |= {"labels": labels, "annotations": {"note": "renamed"}}
            await scene.apply(document)
            await release(scene)
            await scene.reach("POST jobs d3")
            after = await scene.wire.get(scene.path("jobs", f"{JOB}-r0"))
            assert before is not None
            assert after is not None
            assert after["metadata"]["uid"] == before["metadata"]["uid"]
            made = next(call.body for call in scene.relay.writes if name_write(call) == "POST jobs d3")
            assert labels.keys() & made["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}
            await closed(scene, ("Won", "won"))

    asyncio.run(go())


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (change(knobs={"dataloaderWorkers": 2}), "Cancelled"),
        (change(knobs={"dataloaderWorkers": 0, "prefetchFactor": 4}), "Cancelled"),
        (other_image(), "Cancelled"),
        (change(tuning={"profile": "quick", "budget": {"deviceHours": "0"}}), "BudgetExhausted"),
        (change(tuning={"profile": "quick", "mode": "Observe"}), "Cancelled"),
        (change(tuning={"profile": "quick", "pin": ["dataloaderWorkers"]}), "Cancelled"),
    ],
    ids=["the-knob-under-test", "another-knob", "the-image", "no-budget", "only-observed", "pinned"],
)
def test_an_owner_s_change_ends_the_experiment(
    edit: Edit, reason: str, server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """The experiment is closed as inconclusive with the reason, its block stopped; what the block had held is charged."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            (before,) = await scene.experiments()
            await edit(scene)
            await closed(scene, ("Inconclusive", reason))
            ended = await scene.wire.get(scene.path("experiments", before["metadata"]["name"]))
            assert ended is not None
            gone = [f"{before['metadata']['name']}-{HELD}"]
            await scene.wait("its block is gone", lambda: _is_gone(scene, gone[0]), SOON_S)
            assert [block["name"] for block in ended["status"]["blocks"]] == ["p0", "d0"]
            assert "reserved" not in ended["status"]

    asyncio.run(go())


async def _is_gone(scene: Scene, name: str) -> bool:
    return await scene.wire.get(scene.path("jobs", name)) is None


@pytest.mark.parametrize(
    ("edit", "condition"),
    [
        (change(suspend=True), ("Suspended", "True", "Suspended")),
        (paused(), ("Experimenting", "True", "Deciding")),
    ],
    ids=["suspended", "paused"],
)
def test_a_pause_stops_the_block_and_keeps_the_experiment(
    edit: Edit, condition: tuple[str, str, str], server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """[P] No pod of a trial within a pass; nothing is decided; the experiment goes on when the pause is over."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            await edit(scene)
            await no_block(scene)
            kind, *wanted = condition

            async def says_so() -> bool:
                return conditions_of(await scene.job()).get(kind) == tuple(wanted)

            await scene.wait(f"{condition}", says_so, SOON_S)
            assert await verdicts(scene) == [("", "")]
            scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
            await scene.apply(training_job())
            await closed(scene, ("Won", "won"))

    asyncio.run(go())


def test_a_policy_stops_every_block_of_its_namespace(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """[P] `paused` in a TuningPolicy: no pod of a trial within a pass, the experiment stays open."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            policy = {"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TuningPolicy", "metadata": {"name": "stop"}}
            made = await scene.wire.post(scene.path("tuningpolicies"), policy | {"spec": {"paused": True}})
            assert made.status == 201, made.content
            await no_block(scene)
            assert await verdicts(scene) == [("", "")]

    asyncio.run(go())


def test_a_deleted_job_takes_its_block_along_and_leaves_its_ledger(
    server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """Children gone, the experiment closed as cancelled, the operator at rest."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            await scene.wire.delete(scene.path("trainingjobs", JOB), propagationPolicy="Background")
            await no_block(scene)
            await closed(scene, ("Inconclusive", "Cancelled"))

            async def has_no_child() -> bool:
                return not await scene.jobs() and not await scene.names("services")

            await scene.wait("its children are collected", has_no_child, SOON_S)
            assert len(await scene.experiments()) == 1

    asyncio.run(go())


def test_a_job_that_is_made_anew_is_another_job(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Deleted and created under the same name between two passes: the old experiment is cancelled, its block goes, the new job is measured anew."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            old = await scene.job()
            scene.operator.send(signal.SIGSTOP)
            await scene.wire.delete(scene.path("trainingjobs", JOB), propagationPolicy="Background")
            new = await scene.apply(training_job())
            scene.operator.send(signal.SIGCONT)
            await closed(scene, ("Inconclusive", "Cancelled"))
            await no_block(scene)

            async def is_measured() -> bool:
                return conditions_of(await scene.job()).get("Observed") == ("True", "Measured")

            await scene.wait("the new job is measured", is_measured)
            assert old["metadata"]["uid"] != new["metadata"]["uid"]

            async def is_alone() -> bool:
                owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in await scene.jobs()}
                return owners == {new["metadata"]["uid"]}

            await scene.wait("nothing of the old job is left", is_alone)

    asyncio.run(go())


def test_a_namespace_that_is_going_is_left_alone(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Terminating: nothing can be made any more. The operator tries again ever later, and holds it against no block."""
    refused_s: list[float] = []

    async def note(call: Call, send: Send) -> Reply:
        reply = await send(call)
        if reply.status == 403:
            refused_s.append(time.monotonic())
        return reply

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            scene.relay.fault = note
            await scene.wire.delete(f"/api/v1/namespaces/{scene.namespace}")
            for plural in ("jobs", "pods", "configmaps"):
                await scene.wire.send("DELETE", f"{scene.path(plural)}?propagationPolicy=Background")

            async def waits_longer() -> bool:
                assert len(refused_s) <= STORM, await scene.describe()
                return any(later - sooner >= LONG_S for sooner, later in pairwise(refused_s))

            await scene.wait("it waits longer from try to try", waits_longer)
            assert not scene.operator.has_ended
            assert await block_jobs(scene) == []
            (experiment,) = await scene.experiments()
            assert [block["name"] for block in experiment["status"]["blocks"]] == ["p0", "d0"]
            assert await verdicts(scene) == [("", "")]

    asyncio.run(go())

"""What if people change things in the middle of an experiment? It ends in words within a pass or two, and leaves nothing behind.

A block is in flight in each of these tests, and its pod never ends by itself.
"""

import asyncio
import copy
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL
from fakes import Truth, loader_bound
from reliability.hands import Behaviour, Hands, pod_status
from reliability.operators import Nursery
from reliability.scenes import JOB, Scene, conditions_of, setting, training_job
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold, run
from reliability.wire import Object, Wire
from testbed.cluster import Cluster

HELD = "d1"
SOON_S = 240.0
"""A bound on hanging; what is asked for comes with the next pass."""


def _end(hands: Hands, block: str, plan: Object) -> Object | None:
    """Every block ends at once, but for the one that is held."""
    if block == HELD:
        return pod_status("Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, podIP="127.0.0.9")
    return hands.succeed(block, plan)


@asynccontextmanager
async def in_flight(server: Cluster, nursery: Nursery, folder: Path) -> AsyncIterator[Scene]:
    """A scene whose block `d1` runs."""
    async with (
        setting(server, nursery, folder) as theatre,
        theatre.scene(Behaviour(Truth(phases_s=loader_bound), end=_end)) as scene,
    ):
        await scene.apply(training_job())
        scene.start()
        await scene.reach(f"POST jobs {HELD}")
        await scene.wait("its pod runs", lambda: _is_started(scene))
        yield scene


async def _is_started(scene: Scene) -> bool:
    return any(run.endswith(f"-{HELD}") for run in scene.village.started)


async def block_jobs(scene: Scene) -> list[str]:
    """Names of the Jobs of blocks, and of their pods."""
    found = [*await scene.jobs(), *await scene.wire.items(scene.path("pods"))]
    return [item["metadata"]["name"] for item in found if EXPERIMENT_LABEL in item["metadata"].get("labels", {})]


async def no_block(scene: Scene) -> None:
    """Wait until nothing of a block is left."""

    async def is_gone() -> bool:
        return not await block_jobs(scene)

    await scene.wait("no block and no pod of one is left", is_gone, SOON_S)


async def verdicts(scene: Scene) -> list[tuple[str, str]]:
    """Word and reason of every Experiment; empty where it is open."""
    found = [(e.get("status") or {}).get("verdict") or {} for e in await scene.experiments()]
    return [(verdict.get("word", ""), verdict.get("reason", "")) for verdict in found]


async def closed(scene: Scene, *wanted: tuple[str, str]) -> None:
    """Wait until the first experiments have these verdicts."""

    async def is_so() -> bool:
        return sorted(wanted) == sorted(v for v in await verdicts(scene) if v[0])

    await scene.wait(f"verdicts {wanted}", is_so)


Edit = Callable[[Scene], Awaitable[object]]


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


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (change(knobs={"dataloaderWorkers": 2}), "Cancelled"),
        (change(knobs={"dataloaderWorkers": 0, "prefetchFactor": 4}), "Cancelled"),
        (other_image(), "Cancelled"),
        (change(tuning={"profile": "quick", "budget": {"deviceHours": "0"}}), "BudgetExhausted"),
    ],
    ids=["the-knob-under-test", "another-knob", "the-image", "no-budget"],
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
            owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in await scene.jobs()}
            assert owners == {new["metadata"]["uid"]}

    asyncio.run(go())


def test_a_namespace_that_is_going_is_left_alone(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Terminating: nothing can be created any more; the operator says so a few times, and does not storm."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            await scene.wire.delete(f"/api/v1/namespaces/{scene.namespace}")
            for plural in ("jobs", "pods", "configmaps"):
                await scene.wire.send("DELETE", f"{scene.path(plural)}?propagationPolicy=Background")
            await asyncio.sleep(5)
            before = len(scene.relay.writes)
            await asyncio.sleep(10)
            assert len(scene.relay.writes) - before <= 20
            assert not scene.operator.has_ended
            assert await block_jobs(scene) == []

    asyncio.run(go())


async def held_job(scene: Scene) -> Object:
    """The Job of the block in flight."""
    return next(job for job in await scene.jobs() if job["metadata"]["name"].endswith(f"-{HELD}"))


def release(scene: Scene) -> Awaitable[None]:
    """From now on every block ends; the one in flight does at once."""
    scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
    return _finish_held(scene)


async def _finish_held(scene: Scene) -> None:
    for pod in await scene.wire.items(scene.path("pods")):
        if EXPERIMENT_LABEL in pod["metadata"]["labels"]:
            trainer = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
            text = next(v["value"] for v in trainer["env"] if v["name"] == "AMDAHL_PLAN")
            status = scene.hands.succeed(HELD, json.loads(text.replace("$$", "$")))
            await scene.hands.set_pod(scene.namespace, pod["metadata"]["name"], status)


def test_a_block_without_an_owner_is_still_ours(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Owner references stripped from the block and the running job's objects keep their names: adopted or named, never doubled."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            job = await held_job(scene)
            path = scene.path("jobs", job["metadata"]["name"])
            done = await scene.wire.merge(path, {"metadata": {"ownerReferences": None}})
            assert done.status == 200, done.content
            await release(scene)
            await closed(scene, ("Won", "won"))
            await no_block(scene)
            assert len(scene.village.started) == len(set(scene.village.started))

    asyncio.run(go())


def test_a_running_job_without_its_owner_is_named(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Its owner reference stripped, the job's own Job is somebody else's: said in a condition, not replaced, not deleted, not doubled."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            await scene.wire.merge(scene.path("jobs", f"{JOB}-r0"), {"metadata": {"ownerReferences": None}})

            async def is_named() -> bool:
                return conditions_of(await scene.job()).get("Stalled") == ("True", "Squatted")

            await scene.wait("it is named", is_named, SOON_S)
            assert [name for name in await scene.names("jobs") if name.startswith(f"{JOB}-r")] == [f"{JOB}-r0"]

    asyncio.run(go())


def test_a_block_whose_labels_are_gone_is_no_evidence_and_runs_no_second_time(
    server: Cluster, nursery: Nursery, tmp_path: Path
) -> None:
    """Labels stripped mid-flight (the chart's policies forbid it): the block is squatted and void, a spare one takes its place."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            job = await held_job(scene)
            scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
            labels = dict.fromkeys(
                (EXPERIMENT_LABEL, JOB_LABEL)
            )  # without any, the server gives a Job its pods' labels
            path = scene.path("jobs", job["metadata"]["name"])
            done = await scene.wire.merge(path, {"metadata": {"labels": labels}})
            assert done.status == 200, done.content
            await closed(scene, ("Won", "won"))
            (experiment,) = await scene.experiments()
            failures = {b["name"]: b.get("failure", "") for b in experiment["status"]["blocks"]}
            assert failures[HELD].startswith("squatted")
            assert len(scene.village.started) == len(set(scene.village.started))

    asyncio.run(go())


@pytest.mark.parametrize("what", ["pods", "jobs"])
def test_a_block_that_somebody_deletes_is_void(what: str, server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Its pod deleted: void, a spare block runs. Its Job deleted: the block is not recorded, so it runs again under its name."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
            found = next(i for i in await scene.wire.items(scene.path(what)) if HELD in i["metadata"]["name"])
            name = found["metadata"]["name"]
            await scene.wire.delete(scene.path(what, name), gracePeriodSeconds=0, propagationPolicy="Background")
            await closed(scene, ("Won", "won"))
            await no_block(scene)
            (experiment,) = await scene.experiments()
            blocks = {block["name"]: block for block in experiment["status"]["blocks"]}
            assert len(blocks) == len(experiment["status"]["blocks"])
            assert ("summary" in blocks[HELD]) is (what == "jobs")

    asyncio.run(go())


def test_a_squatter_on_a_blocks_name_is_left_alone(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Somebody's Job bears the next block's name: named in the block's record, neither adopted nor deleted; the experiment goes on."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            (experiment,) = await scene.experiments()
            name = f"{experiment['metadata']['name']}-d2"
            container = {"name": "c", "image": "i"}
            template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
            made = await scene.wire.post(
                scene.path("jobs"), {"metadata": {"name": name}, "spec": {"template": template}}
            )
            assert made.status == 201, made.content
            await release(scene)
            await closed(scene, ("Won", "won"))
            (experiment,) = await scene.experiments()
            failures = {b["name"]: b.get("failure", "") for b in experiment["status"]["blocks"]}
            assert failures["d2"].startswith("squatted")
            found = await scene.wire.get(scene.path("jobs", name))
            assert found is not None
            assert found["metadata"]["uid"] == made.body["metadata"]["uid"]

    asyncio.run(go())


def test_definitions_may_be_upgraded_under_a_running_operator(
    server: Cluster, nursery: Nursery, tmp_path: Path, undisturbed: Run
) -> None:
    """Every definition gets a new optional field and a column while blocks run: the same end as ever."""
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    async def edit(wire: Wire, plural: str, change: Callable[[Object], None]) -> Object:
        path = f"{root}/{plural}.amdahl-loop.io"
        definition = await wire.get(path)
        assert definition is not None
        before = copy.deepcopy(definition["spec"])
        change(definition)
        done = await wire.send("PUT", path, json.dumps(definition).encode(), "application/json")
        assert done.status == 200, done.content
        return before

    def upgrade(definition: Object) -> None:
        (version,) = definition["spec"]["versions"]
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["later"] = {"type": "string"}
        columns = version.setdefault("additionalPrinterColumns", [])
        columns.append({"name": "Later", "type": "string", "jsonPath": ".spec.later"})

    async def go() -> None:
        before: dict[str, Object] = {}

        async def disturb(scene: Scene) -> None:
            await scene.reach("POST jobs d1")
            for plural in ("trainingjobs", "experiments", "tuningpolicies"):
                before[plural] = await edit(scene.wire, plural, upgrade)

        async with setting(server, nursery, tmp_path) as theatre:
            try:
                lived = await run(theatre, WIN_AND_ROLL_BACK, disturb=disturb)
            finally:
                for plural, spec in before.items():
                    await edit(theatre.wire, plural, lambda definition, spec=spec: definition.update(spec=spec))
        assert len(before) == 3
        hold(undisturbed, lived)

    asyncio.run(go())

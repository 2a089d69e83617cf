"""What if somebody lays hands on what the operator has made? Adopted or named, never doubled, and no evidence.

A block is in flight in most of these tests, and its pod never ends by itself.
"""

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL, REVISION_LABEL
from reliability.flights import HELD, SOON_S, closed, held_job, in_flight, no_block, release
from reliability.operators import Nursery
from reliability.scenes import JOB, Scene, conditions_of, setting
from reliability.sweeps import WIN_AND_ROLL_BACK, Run, hold, run
from reliability.wire import Object, Wire
from testbed.cluster import Cluster


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


def test_labels_that_are_stripped_cost_nothing(server: Cluster, nursery: Nursery, tmp_path: Path) -> None:
    """Mid-flight (the chart's policies forbid it), from the block's Job and the running one: both name their owner, so the block is recorded and removed, and the job goes on."""

    async def go() -> None:
        async with in_flight(server, nursery, tmp_path) as scene:
            job = await held_job(scene)
            scene.village.behaviour.end = lambda hands, block, plan: hands.succeed(block, plan)
            labels = dict.fromkeys(
                (EXPERIMENT_LABEL, JOB_LABEL)
            )  # without any, the server gives a Job its pods' labels
            path = scene.path("jobs", job["metadata"]["name"])
            running = scene.path("jobs", f"{JOB}-r0")
            for one in (path, running):
                gone = {**labels, REVISION_LABEL: None}
                done = await scene.wire.merge(one, {"metadata": {"labels": gone}})
                assert done.status == 200, done.content
            await release(scene)
            await closed(scene, ("Won", "won"))
            (experiment,) = await scene.experiments()
            assert not [b for b in experiment["status"]["blocks"] if b.get("failure")]
            assert len(scene.village.started) == len(set(scene.village.started))
            left = {item["metadata"]["name"]: item["metadata"]["labels"] for item in await scene.jobs()}
            assert [name for name in left if name.startswith(experiment["metadata"]["name"])] == []
            assert all(labels[JOB_LABEL] == JOB for labels in left.values())

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

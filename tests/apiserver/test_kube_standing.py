"""What becomes of a job's values, its savings and its place when it stops, ends, or its owner sets a limit?"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.domain.api.timestamps import to_epoch_s
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL
from amdahl_loop.domain.knob_values import Knobs
from cluster_builders import stamp
from kube_builders import see_job
from pass_builders import Passes, said
from pod_builders import make_template

NONE, TWO = Knobs(dataloader_workers=0), Knobs(dataloader_workers=2)


async def change(job: Passes, **spec: Any) -> None:
    """The owner changes the spec."""
    path = (Kind.TRAINING_JOB, job.scene.namespace, "pydocs")
    done = await job.scene.client.patch(*path, {"spec": spec})
    assert isinstance(done, dict), done


async def end(job: Passes, name: str = "pydocs-r0") -> None:
    """The Job controller: every pod has ended well."""
    now = stamp(time.time())
    kinds = ("SuccessCriteriaMet", "Complete")
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
    await job.scene.set_job(name, active=0, ready=0, succeeded=1, completionTime=now, conditions=conditions)


async def overlay(job: Passes) -> None:
    """Two workers are proven and run as an overlay, since the spec may not be written."""
    await job.settle()
    await job.scene.play_pods("pydocs-r0")
    await job.win("pydocs-e0", NONE, TWO)
    await job.settle()
    assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "2"


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        ({"mode": "Observe"}, "ModeKeepsSpec"),
        ({"mode": "Recommend"}, "ModeKeepsSpec"),
        ({"mode": "Overlay", "pin": ["dataloaderWorkers"]}, "OutsideLimits"),
        ({"mode": "Overlay", "knobs": {"dataloaderWorkers": {"max": 1}}}, "OutsideLimits"),
    ],
    ids=["Observe", "Recommend", "pinned", "bounded"],
)
def test_an_overlay_ends_with_its_owner_s_word_and_comes_back_with_it(
    passes: Callable[..., None], tuning: dict[str, Any], reason: str
) -> None:
    """The declared value runs again, the conditions say why; without the limit the proven one is in force once more."""

    async def scenario(job: Passes) -> None:
        await overlay(job)
        await change(job, tuning=tuning)
        seen = await job.settle()
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
        assert said(seen, "ApplyConflict")[:2] == ("False", reason)
        assert said(seen, "Tuned")[0] == "False"
        assert [told.until for told in seen.status.standstills] == [None]
        await change(job, tuning={"mode": "Overlay", "pin": None, "knobs": None})
        seen = await job.settle()
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "2"
        assert said(seen, "Tuned")[:2] == ("True", "ProvenValues")

    passes(scenario, tuning={"mode": "Overlay"})


def test_a_tuned_job_saves_nothing_while_it_is_suspended(passes: Callable[..., None]) -> None:
    """From the pass that sees it stop until the one that sees it run, whatever was said in between."""

    async def scenario(job: Passes) -> None:
        await overlay(job)
        await change(job, suspend=True)
        await job.settle()
        await job.scene.delete_pods(*(await job.scene.objects(Kind.POD)))
        await job.scene.set_job("pydocs-r0", active=0, ready=0)
        seen = await job.settle()
        assert said(seen, "Suspended")[0] == "True"
        assert seen.status.wasted_device_hours_per_hour == 0.0
        (still,) = seen.status.standstills
        assert still.until is None
        job.scene.ahead_s += 7200
        assert (await job.settle()).status.standstills == (still,)
        await change(job, suspend=False)
        await job.settle()
        await job.scene.play_pods("pydocs-r1")
        (over,) = (await job.settle()).status.standstills
        assert over.until is not None
        assert 7200 <= to_epoch_s(over.until) - to_epoch_s(over.since) < 7200 + 600

    passes(scenario, tuning={"mode": "Overlay"})


def test_a_job_that_has_ended_does_not_run_again_when_its_job_is_tidied_away(passes: Callable[..., None]) -> None:
    """A clean-up deletes finished Jobs: the TrainingJob stays complete, after a restart of the operator too."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        pods = await job.scene.play_pods("pydocs-r0")
        await end(job)
        seen = await job.settle()
        assert said(seen, "Complete")[0] == "True"
        (raw,) = (await job.scene.objects(Kind.JOB)).values()
        await job.scene.client.delete(Kind.JOB, job.scene.namespace, "pydocs-r0", raw["metadata"]["uid"])
        for tidied in (False, True):
            if tidied:
                await job.scene.delete_pods(*pods)
            seen = await job.settle()
            assert await job.scene.objects(Kind.JOB) == {}
            assert said(seen, "Complete")[:2] == ("True", "Finished")
            assert said(seen, "Ready")[0] == "True"

    passes(scenario)


async def start_block(job: Passes) -> None:
    """A block of the job's is there."""
    seen = await see_job(job.scene.client, job.scene.namespace)
    owner = {"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TrainingJob", "name": "pydocs", "uid": seen.uid}
    labels = {JOB_LABEL: "pydocs", EXPERIMENT_LABEL: "pydocs-e0"}
    metadata = {"name": "pydocs-e0-p0", "labels": labels, "ownerReferences": [owner | {"controller": True}]}
    metadata["annotations"] = {"amdahl-loop.io/run": "pydocs-e0-p0"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "example/train:1"}]}
    body = {"metadata": metadata, "spec": {"template": {"spec": pod}}}
    made = await job.scene.client.create(Kind.JOB, job.scene.namespace, body)
    assert isinstance(made, dict), made


CLASHING = make_template(env=[{"name": "AMDAHL_SEED", "value": "1"}])
"""A variable that is the loop's."""


def test_a_spec_that_becomes_unusable_ends_its_trial_and_can_still_be_suspended(passes: Callable[..., None]) -> None:
    """No pod of a trial outlives it, its place is others', and the switch that stops the job works."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.scene.play_pods("pydocs-r0")
        await job.settle()
        await start_block(job)
        job.operator.recollection.in_flight[job.key] = "pydocs-e0-p0"
        await change(job, template=CLASHING)
        seen = await job.settle()
        assert said(seen, "Stalled")[:2] == ("True", "InvalidSpec")
        assert set(await job.scene.objects(Kind.JOB)) == {"pydocs-r0"}
        assert job.key not in job.operator.recollection.in_flight
        assert "Stalled" in job.operator.recollection.told[job.key].holds
        await change(job, suspend=True)
        seen = await job.settle()
        assert (await job.scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is True
        assert said(seen, "Suspended")[0] == "True"

    passes(scenario)


def test_a_ledger_that_cannot_be_read_stops_trials_and_not_the_job(passes: Callable[..., None]) -> None:
    """The job runs on with its proven values, and stops where its owner says so; the trouble is named."""

    async def scenario(job: Passes) -> None:
        await overlay(job)
        plan = await job.plan("pydocs-e1", "dataloaderWorkers", TWO, Knobs(dataloader_workers=4))
        await (await job.ledger()).add_plan(plan)
        index = job.operator.recollection.index
        whole, later = index.parse, {"apiVersion": "amdahl-loop.io/v1alpha1", "spec": {"plan": "of a later version"}}

        def misread(document: Any) -> Any:
            is_newer = document["metadata"]["name"] == "pydocs-e1"
            return whole({**document, **later} if is_newer else document)

        index.parse = misread  # type: ignore[method-assign]  # what another version wrote, the server would refuse
        seen = await job.settle()
        assert said(seen, "Stalled")[:2] == ("True", "RefusedByServer")
        assert "pydocs-e1 cannot be read" in said(seen, "Stalled")[2]
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "2"
        await change(job, suspend=True)
        await job.settle()
        assert (await job.scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is True
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "2"

    passes(scenario, tuning={"mode": "Overlay"})

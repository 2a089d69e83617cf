"""Are two ends of a scene the same? What is left in a namespace, without what must differ from run to run.

Names, seeds and orders follow from the job's UID, which the server draws: they are held to the pure functions that make them, and
left out of the comparison. Moments are left out. Everything else counts.
"""

import json
import re
from collections import Counter
from typing import Any

from amdahl_loop.adapters.kube.closing import unfold
from amdahl_loop.adapters.kube.rows import compact
from amdahl_loop.domain import judge
from amdahl_loop.domain.api.records import StoredExperiment, read_experiment
from amdahl_loop.domain.api.training_job import read_observation, read_training_job
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.children import EXPERIMENT_LABEL, PROBE_LABEL, read_run
from amdahl_loop.domain.ledger import JobMemory, Observation
from amdahl_loop.domain.plan import Propose, Snapshot, next_action
from amdahl_loop.passing import identify
from reliability.scenes import JOB, Scene, conditions_of
from reliability.wire import Object

State = dict[str, Any]

_COUNT = re.compile(r"\d+ times")
"""How often a program had crashed hangs on when somebody looked."""


async def read_state(scene: Scene, job: str = JOB) -> State:
    """Everything that a scene has come to."""
    document = await scene.job(job)
    own = await _own(scene, job)
    experiments = [_read(found) for found in own]
    labels = {e["metadata"]["name"]: e["metadata"]["labels"] for e in own}
    maps = await scene.wire.items(scene.path("configmaps"))
    pods = await scene.wire.items(scene.path("pods"))
    mounted = json.dumps(await scene.jobs())
    return {
        "job": _read_job(document),
        "experiments": [
            _read_experiment(e) | {"closed": labels[e.experiment.name]["amdahl-loop.io/closed"]} for e in experiments
        ],
        "started": dict(Counter(_block_of(run) for run in scene.village.started)),
        "jobs": await scene.names("jobs"),
        "services": await scene.names("services"),
        "values": {
            m["metadata"]["name"]: m["data"] for m in maps if PROBE_LABEL not in m["metadata"].get("labels", {})
        },
        "spareProbes": [
            m for m in maps if PROBE_LABEL in m["metadata"].get("labels", {}) and m["metadata"]["name"] not in mounted
        ],
        "blockPods": [pod["metadata"]["name"] for pod in pods if EXPERIMENT_LABEL in pod["metadata"]["labels"]],
        "runningPods": sum(pod["status"].get("phase") == "Running" for pod in pods),
    }


async def _own(scene: Scene, job: str) -> list[Object]:
    """The job's Experiments."""
    return [found for found in await scene.experiments() if found["spec"]["job"] == job]


def _read(document: Object) -> StoredExperiment:
    stored = read_experiment(document)
    assert isinstance(stored, StoredExperiment), stored
    return stored


def _block_of(run: str) -> str:
    block = read_run(run)
    assert block is not None, run
    return run.removeprefix(f"{block.experiment}-")


def _read_job(document: Object) -> State:
    status = document.get("status") or {}
    bank = status.get("bank") or {}
    is_measured = conditions_of(document).get("Observed", ("", ""))[0] == "True"  # else it is that of values of before
    return {
        "knobs": document["spec"]["knobs"],
        "conditions": conditions_of(document),
        "effective": {k["name"]: (k["value"], k["source"]) for k in status.get("effectiveKnobs") or ()},
        "diagnosis": (status.get("diagnosis") or {}).get("sentence") if is_measured else "",
        "active": status.get("activeExperiment"),
        "verdicts": [(v["word"], v["change"], v["sentence"]) for v in status.get("lastVerdicts") or ()],
        "spent": bank.get("spentDeviceHours"),
        "owners": sorted({e["manager"] for e in document["metadata"]["managedFields"] if "subresource" not in e}),
    }


def _read_experiment(stored: StoredExperiment) -> State:
    experiment, plan = stored.experiment, stored.experiment.plan
    drawn = {"name", "job_uid", "seed", "blocks"}
    return {
        "plan": plan.model_dump(mode="json", exclude=drawn),
        "planned": [(spec.name, spec.stage.value) for spec in plan.blocks],
        "blocks": [(block.spec.name, block.node, block.held_device_s, block.failure) for block in experiment.blocks],
        "losses": [(_block_of(loss.run), loss.held_device_s) for loss in experiment.losses],
        "verdict": experiment.verdict.model_dump(mode="json") if experiment.verdict else None,
        "applications": [
            (a.kind.value, a.declared.declared(), a.knobs.declared(), _COUNT.sub("often", a.failing))
            for a in stored.applications
        ],
        "reserved": stored.status.reserved,
    }


async def check_marks(scene: Scene, job: str = JOB) -> None:
    """The metadata of every closed Experiment tell what it says itself."""
    for found in await _own(scene, job):
        if "verdict" not in found["status"]:
            continue
        form, name = unfold({"metadata": found["metadata"]}), found["metadata"]["name"]
        assert form is not None, f"{name} is not marked as closed"
        told, whole = _read(compact(form)), _read(compact(found))
        assert told.experiment.model_copy(update={"losses": ()}) == whole.experiment.model_copy(update={"losses": ()})
        assert told.closed_at_s == whole.closed_at_s
        held_s = told.experiment.held_device_s, whole.experiment.held_device_s
        assert whole.experiment.is_won or held_s[0] == held_s[1], f"{name} has held {held_s[1]} s and tells {held_s[0]}"


async def check_names(scene: Scene, job: str = JOB) -> None:
    """Plan (name, seed, orders, offsets, hash) and verdict are what the pure functions say of the evidence that is recorded.

    A plan can be designed anew where the observation that is recorded is of the values that it started from.
    """
    stored_job = read_training_job(await scene.job(job))
    identity = identify(stored_job.job)
    reported = stored_job.status.observation
    observation = None if reported is None else read_observation(reported, stored_job.job)
    for found in await _own(scene, job):
        experiment = _read(found).experiment
        plan, verdict = experiment.plan, experiment.verdict
        assert (found["spec"]["planHash"], found["metadata"]["name"]) == (plan.hash, plan.name)
        if isinstance(observation, Observation) and observation.knobs == plan.baseline:
            snapshot = Snapshot(
                job=stored_job.job.with_knobs(plan.baseline),
                job_uid=identity.job_uid,
                fingerprint=identity.fingerprint,
                family=identity.family,
                memory=JobMemory(observations=(observation,)),
                now_s=0.0,
            )
            action = next_action(snapshot)
            assert isinstance(action, Propose), action
            assert plan == action.plan, "the plan is not what the pure function designs"
        if verdict is not None and verdict.reason != "Cancelled":
            before = tuple(block for block in experiment.blocks if block.spec.stage is not Stage.HOLDOUT)
            judged = judge.assess(experiment.model_copy(update={"verdict": None, "blocks": before}))
            assert isinstance(judged, judge.Closed)
            assert judged.verdict == verdict

"""Which objects does the fleet of the scale benchmark consist of? Jobs, their closed experiments, their pods.

An experiment is played once against the production judge, then written down for each job under its own names: what the
server and the operator have to hold is as large as in life.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
from noise import LIVE
from world import Setting, Variant, World, make_plan

from amdahl_loop.adapters.kube.experiments import render, say_closed
from amdahl_loop.domain import judge
from amdahl_loop.domain.api import records
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.passing import identify

Object = dict[str, Any]

JOBS_PER_NAMESPACE = 500
JOBS_PER_FAMILY = 10
FIRST = "fleet-0"
"""The first namespace."""
CLOSED_AT_S = 1_780_000_000.0
NAME, UID, PRINT, FAMILY = "experiment-name", "00000000-0000-0000-0000-000000000000", "0" * 16, "f" * 16
"""What stands in the experiment that is played, where each job has its own."""


class Role(StrEnum):
    """What a job of the fleet does."""

    RUNNING = "running"
    FINISHED = "finished"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Member:
    """One job of the fleet."""

    number: int
    role: Role

    @property
    def namespace(self) -> str:
        """So many jobs share a namespace, and thereby their experience."""
        return f"fleet-{self.number // JOBS_PER_NAMESPACE}"

    @property
    def name(self) -> str:
        """The job's name."""
        return f"job-{self.number}"


def enrol(jobs: int) -> list[Member]:
    """A fifth of the jobs run, three fifths have run to their end, a fifth is suspended."""
    roles = (Role.RUNNING, Role.FINISHED, Role.FINISHED, Role.SUSPENDED, Role.FINISHED)
    return [Member(number, roles[number % len(roles)]) for number in range(jobs)]


def make_job(member: Member) -> Object:
    """The TrainingJob; ten of them share one program, and so a family."""
    family = member.number // JOBS_PER_FAMILY
    container = {
        "name": "trainer",
        "image": f"example/trainer:{family}",
        "command": ["python", "train.py", f"--model=model-{family}", f"--seed={member.number}"],
        "env": [{"name": f"SETTING_{index}", "value": f"value-{index}"} for index in range(8)],
        "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "32Gi"}},
        "volumeMounts": [{"name": "checkpoints", "mountPath": "/checkpoints"}],
    }
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"namespace": member.namespace, "name": member.name},
        "spec": {
            "suspend": member.role is Role.SUSPENDED,
            "knobs": {"dataloaderWorkers": 4},
            "template": {
                "spec": {"containers": [container], "volumes": [{"name": "checkpoints", "emptyDir": {}}]},
            },
            "tuning": {
                "profile": "quick",
                "expectedDeviceHours": "100",
                "budget": {"deviceHours": "2"},
                "trial": {"scratchPaths": ["/checkpoints"]},
            },
        },
    }


def make_experiment() -> tuple[Object, Object]:
    """The experiment that all others are copies of: what is created in the first namespace, and then its status."""
    body, status = json.loads(_experiment())
    status["closedAt"] = to_timestamp(CLOSED_AT_S)
    return body, {"status": status}


def copy_experiments(stored: str, job: Object, count: int) -> Iterator[tuple[str, str]]:
    """Closed experiments of a job as the store keeps them, by their keys; `stored` is what it keeps of the first."""
    metadata, uid = job["metadata"], json.loads(stored)["metadata"]["uid"]
    identity = identify(parse_training_job({key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}))
    for number in range(count):
        name, text = f"{metadata['name']}-{number}", stored
        for word, own in (
            (NAME, name),
            (uid, str(uuid.uuid4())),
            (UID, metadata["uid"]),
            (PRINT, identity.fingerprint),
            (FAMILY, identity.family),
            ('"after":"2"', f'"after":"{5 + number}"'),
            (r"\"after\":\"2\"", rf"\"after\":\"{5 + number}\""),
            (f'"{FIRST}"', f'"{metadata["namespace"]}"'),
            (to_timestamp(CLOSED_AT_S), to_timestamp(CLOSED_AT_S + number)),
        ):
            text = text.replace(word, own)
        yield store_key(metadata["namespace"], name), text


def store_key(namespace: str, name: str) -> str:
    """Where the store keeps an Experiment."""
    return f"/registry/amdahl-loop.io/experiments/{namespace}/{name}"


@cache
def _experiment() -> str:
    """An experiment that found nothing, with all its blocks, as JSON of object and status."""
    plan = make_plan(PROFILES[ProfileName.QUICK], live=True, seed=0)
    plan = plan.model_copy(update={"name": NAME, "job_uid": UID, "fingerprint": PRINT, "family": FAMILY})
    world = World(np.random.default_rng(0), Setting(LIVE, plan.constants, live=True), Variant(0.0), plan)
    experiment, status = Experiment(plan=plan), ExperimentStatus()
    while not isinstance(said := judge.assess(experiment), judge.Closed):
        record = world.run(experiment, said.specs[0])
        experiment, status = experiment.with_block(record), records.add_block(status, record)
    closed = say_closed(records.close(status, said.verdict, CLOSED_AT_S))
    assert plan.hypothesis.changes[0].knob is KnobName.DATALOADER_WORKERS
    return json.dumps([render(plan, FIRST), to_wire(closed)])


def make_pod(job: Object, node: str) -> Object:
    """The pod that the Job controller would create for a Job of one replica, on a node."""
    template, metadata = job["spec"]["template"], job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}-0-x7x7x",
            "labels": {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": metadata["name"]},
            "annotations": {
                **(template["metadata"].get("annotations") or {}),
                "batch.kubernetes.io/job-completion-index": "0",
            },
            "ownerReferences": [owner | {"controller": True}],
        },
        "spec": {key: value for key, value in template["spec"].items() if key != "affinity"} | {"nodeName": node},
    }


def running_status(now: str) -> Object:
    """What the Job controller says of a Job whose pod is ready."""
    return {"status": {"startTime": now, "active": 1, "ready": 1, "terminating": 0}}


def finished_status(now: str) -> Object:
    """What the Job controller says of a Job that has run to its end."""
    met = [
        {
            "type": kind,
            "status": "True",
            "lastProbeTime": now,
            "lastTransitionTime": now,
            "reason": "CompletionsReached",
        }
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    counts = {"active": 0, "ready": 0, "terminating": 0, "succeeded": 1, "completedIndexes": "0"}
    return {"status": {"startTime": now, "completionTime": now, "conditions": met, **counts}}

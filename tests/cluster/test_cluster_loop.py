"""The whole loop on a real control plane: the operator as its own process, from kubectl apply to a patched spec."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import Truth, compute_bound, loader_bound
from hollow import HollowNodes
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

TIMEOUT_S = 240.0
"""A bound on hanging; the loop takes about half a minute."""

Object = dict[str, Any]


def training_job(name: str, knobs: Mapping[str, Any], tuning: Mapping[str, Any] | None = None) -> Object:
    """A TrainingJob as a user applies it."""
    container = {"name": "trainer", "image": "example/train:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "knobs": dict(knobs),
            "template": {"spec": {"containers": [container]}},
            "tuning": {"profile": "quick", "budget": {"deviceHours": "100"}, **(tuning or {})},
        },
    }


@contextmanager
def operator(kubeconfig: Path, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's own process, until the context ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
    environment |= {"AMDAHL_LOOP_KUBECONFIG": str(kubeconfig), "AMDAHL_LOOP_LOG_FORMAT": "plain"}
    environment |= {"AMDAHL_LOOP_METRICS_PORT": "0", "AMDAHL_LOOP_HEALTH_PORT": "0"}
    environment |= {f"AMDAHL_LOOP_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "amdahl_loop.handlers"]
    with log.open("ab") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def read(cluster: Cluster, namespace: str, kind: str, name: str = "") -> Object:
    """Objects as the server holds them."""
    words = ["get", kind, *([name] if name else []), "--namespace", namespace, "-o", "json"]
    found: Object = json.loads(cluster.admin.kubectl(*words))
    return found


def condition(job: Object, type_name: str) -> Object:
    """One condition of a job; empty where it has none."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == type_name), {})


def wait_for_condition(cluster: Cluster, namespace: str, name: str, type_name: str, status: str, log: Path) -> Object:
    """The job once a condition has this status; the operator's log where it never gets there."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        job = read(cluster, namespace, "trainingjob", name)
        if condition(job, type_name).get("status") == status:
            return job
        time.sleep(0.5)
    raise AssertionError(
        f"{type_name} is not {status}: {json.dumps(job.get('status'), indent=1)}\n{log.read_text()[-8000:]}"
    )


def test_an_input_bound_job_is_tuned_and_its_spec_is_patched_by_our_manager(plane: Cluster, tmp_path: Path) -> None:
    """Observe, propose, try, refute, apply: the spec holds the proven value under our field manager, and the job runs with it."""
    namespace, log = plane.create_namespace("loop"), tmp_path / "operator.log"
    plane.admin.kubectl(
        "apply", "--namespace", namespace, "-f", "-", stdin=training_job("waits", {"dataloaderWorkers": 0})
    )
    with (
        HollowNodes(plane.admin, Truth(phases_s=loader_bound)) as nodes,
        operator(plane.admin.kubeconfig, log, NAMESPACES=namespace),
    ):
        wait_for_condition(plane, namespace, "waits", "Tuned", "True", log)
        wait_for(
            lambda: read(plane, namespace, "trainingjob", "waits")["spec"]["knobs"]["dataloaderWorkers"] == 3,
            TIMEOUT_S,
            "the spec is patched",
        )
        job = read(plane, namespace, "trainingjob", "waits")
        (experiment,) = read(plane, namespace, "experiments")["items"]
        assert experiment["status"]["verdict"]["word"] == "Won"
        assert len(experiment["status"]["verdict"]["votes"]) == 3
        assert len(nodes.ended_blocks) == len(set(nodes.ended_blocks)) == len(experiment["status"]["blocks"])
        owners = [
            entry["manager"]
            for entry in json.loads(
                plane.admin.kubectl(
                    "get", "trainingjob", "waits", "--namespace", namespace, "-o", "json", "--show-managed-fields"
                )
            )["metadata"]["managedFields"]
            if "f:dataloaderWorkers" in json.dumps(entry["fieldsV1"]) and "subresource" not in entry
        ]
        assert owners == ["amdahl-loop"]
        assert condition(job, "Tuned")["reason"] == "ProvenValues"
        values = read(plane, namespace, "configmap", "waits-knobs")["data"]
        assert values["AMDAHL_DATALOADER_WORKERS"] == "3"
    left = read(plane, namespace, "jobs")["items"]
    assert [job["metadata"]["name"] for job in left] == ["waits-r0"]
    plane.delete_namespace(namespace)


def test_a_compute_bound_job_costs_no_trial(plane: Cluster, tmp_path: Path) -> None:
    """Nothing to win, nothing spent [P]: no Experiment, no block, and the status says why."""
    namespace, log = plane.create_namespace("loop"), tmp_path / "operator.log"
    plane.admin.kubectl(
        "apply", "--namespace", namespace, "-f", "-", stdin=training_job("computes", {"dataloaderWorkers": 0})
    )
    with (
        HollowNodes(plane.admin, Truth(phases_s=compute_bound), prefix="calm") as nodes,
        operator(plane.admin.kubeconfig, log, NAMESPACES=namespace),
    ):
        job = wait_for_condition(plane, namespace, "computes", "Observed", "True", log)
        assert condition(job, "Experimenting")["status"] == "False"
        assert "computes" in job["status"]["message"]
        assert read(plane, namespace, "experiments")["items"] == []
        assert nodes.ended_blocks == []
    plane.delete_namespace(namespace)

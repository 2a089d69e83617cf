"""The whole loop on a real control plane: the operator as its own process, from kubectl apply to a patched spec."""

import json
from pathlib import Path

import pytest

from cluster_operator import TIMEOUT_S, condition, operator, read, training_job, wait_for_condition
from fakes import Truth, compute_bound, loader_bound
from hollow import HollowNodes
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow


def test_an_input_bound_job_is_tuned_and_its_spec_is_patched_by_our_manager(plane: Cluster, tmp_path: Path) -> None:
    """Observe, propose, try, refute, apply: the spec holds the proven value under our field manager, and the job runs with it."""
    namespace, log = plane.create_namespace("loop"), tmp_path / "operator.log"
    plane.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=training_job("waits"))
    with (
        HollowNodes(plane.admin, Truth(phases_s=loader_bound)) as nodes,
        operator(plane.admin.kubeconfig, log, NAMESPACES=namespace),
    ):
        wait_for_condition(plane, namespace, "waits", "Tuned", "True", log)
        wait_for(
            lambda: read(plane, namespace, "trainingjobs", "waits")["spec"]["knobs"]["dataloaderWorkers"] == 3,
            TIMEOUT_S,
            "the spec is patched",
        )
        job = read(plane, namespace, "trainingjobs", "waits")
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
        values = read(plane, namespace, "configmaps", "waits-knobs")["data"]
        assert values["AMDAHL_DATALOADER_WORKERS"] == "3"
    left = read(plane, namespace, "jobs")["items"]
    assert [job["metadata"]["name"] for job in left] == ["waits-r0"]
    assert_deletion_needs_no_operator(plane, namespace, "waits")
    plane.delete_namespace(namespace)


def assert_deletion_needs_no_operator(cluster: Cluster, namespace: str, name: str) -> None:
    """[P] With the operator gone, nothing holds a job's deletion up: no finalizer, no annotation of kopf's; its Job goes, its ledger stays."""
    for kind in ("trainingjobs", "experiments", "jobs", "configmaps", "services"):
        for found in read(cluster, namespace, kind)["items"]:
            marks = json.dumps(found["metadata"])
            assert "kopf" not in marks, found["metadata"]
            assert "amdahl" not in json.dumps(found["metadata"].get("finalizers", [])), found["metadata"]
    cluster.admin.kubectl("delete", "trainingjob", name, "--namespace", namespace, "--timeout=60s")
    wait_for(lambda: read(cluster, namespace, "jobs")["items"] == [], TIMEOUT_S, "the job's Job is collected")
    assert len(read(cluster, namespace, "experiments")["items"]) == 1


def test_a_compute_bound_job_costs_no_trial(plane: Cluster, tmp_path: Path) -> None:
    """Nothing to win, nothing spent [P]: no Experiment, no block, and the status says why."""
    namespace, log = plane.create_namespace("loop"), tmp_path / "operator.log"
    plane.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=training_job("computes"))
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

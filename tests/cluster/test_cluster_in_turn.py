"""A full cluster: job and trials take turns on the same devices, and an operator that is killed in between changes nothing."""

from pathlib import Path

import pytest

from cluster_operator import Object, condition, operator, read, wait_for_condition
from fakes import Truth, loader_bound
from hollow import HollowNodes
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

TIMEOUT_S = 900.0
"""A bound on hanging: about twenty turns, of some seconds each."""
GPUS = 64


def job_on_all_devices(name: str) -> Object:
    """A job that holds every device of the only node, and saves its work every second."""
    container = {
        "name": "trainer",
        "image": "example/train:1",
        "command": ["python", "train.py"],
        "resources": {"limits": {"nvidia.com/gpu": str(GPUS)}},
    }
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "knobs": {"dataloaderWorkers": 0, "checkpointEverySteps": 5},
            "template": {"spec": {"containers": [container], "terminationGracePeriodSeconds": 5}},
            "tuning": {
                "profile": "quick",
                "pin": ["checkpointEverySteps"],
                "expectedDeviceHours": "200000",
                "budget": {"deviceHours": "100000"},
                "trial": {"placement": "InTurn"},
            },
        },
    }


def test_on_a_full_cluster_job_and_trials_take_turns(plane: Cluster, tmp_path: Path) -> None:
    """The job makes way for each block with its work saved, is back after it, and ends with the proven value."""
    namespace, log = plane.create_namespace("turns"), tmp_path / "operator.log"
    plane.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=job_on_all_devices("full"))
    with HollowNodes(plane.admin, Truth(phases_s=loader_bound), count=1, prefix="only") as nodes:
        with operator(plane.admin.kubeconfig, log, NAMESPACES=namespace) as first:
            making_way = wait_for_condition(plane, namespace, "full", "Suspended", "True", log, TIMEOUT_S)
            assert condition(making_way, "Ready")["reason"] == "MakingWay"
            first.kill()
            first.wait()
        with operator(plane.admin.kubeconfig, log, NAMESPACES=namespace):
            wait_for_condition(plane, namespace, "full", "Tuned", "True", log, TIMEOUT_S)
            job = wait_for_condition(plane, namespace, "full", "Ready", "True", log, TIMEOUT_S)
            assert job["spec"]["knobs"]["dataloaderWorkers"] == 3
            wait_for(lambda: len(read(plane, namespace, "jobs")["items"]) == 1, TIMEOUT_S, "the job runs alone")
        (experiment,) = read(plane, namespace, "experiments")["items"]
        blocks = experiment["status"]["blocks"]
        assert experiment["status"]["verdict"]["word"] == "Won"
        assert len(nodes.ended_blocks) == len(set(nodes.ended_blocks)) == len(blocks)
        assert nodes.beside == []
        # A hollow block holds its devices for no time at all: what it is charged is what the job stood still.
        held_s = [float(block["heldDeviceSeconds"]) for block in blocks]
        assert sum(held_s) >= GPUS  # these nodes end a block at once, and the server dates in whole seconds
    plane.delete_namespace(namespace)

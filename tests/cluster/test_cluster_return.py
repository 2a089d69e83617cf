"""What does an operator that starts ask about jobs that a real Job controller has brought to rest?"""

import re
import urllib.request
from pathlib import Path

import pytest

from cluster_operator import TIMEOUT_S, Object, condition, operator, read, training_job, wait_for_condition
from fakes import Truth, compute_bound
from hollow import HollowNodes
from testbed.cluster import Cluster, wait_for
from testbed.servers import free_port

pytestmark = pytest.mark.slow

ENDED = {
    "phase": "Succeeded",
    "containerStatuses": [
        {
            "name": "trainer",
            "image": "example/train:1",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        }
    ],
}
"""A pod whose program has ended well."""


def read_metric(port: int, name: str) -> float:
    """What the operator tells of itself, all labels together; 0 while it tells nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def says_complete(job: Object) -> bool:
    """Whether the Job's controller has written to it for the last time."""
    return any(said["type"] == "Complete" for said in job["status"].get("conditions") or ())


def has_no_pods(job: Object) -> bool:
    """Whether the Job's controller has counted its last pod away."""
    return not (job["status"].get("active") or job["status"].get("terminating"))


def test_jobs_at_rest_cost_a_restart_nothing(plane: Cluster, tmp_path: Path) -> None:
    """The controller writes to a Job after we have said how it stands; the next operator knows, and makes no pass."""
    namespace, log = plane.create_namespace("return"), tmp_path / "operator.log"

    def wait_for_rest(name: str, reason: str) -> None:
        wait_for(
            lambda: condition(read(plane, namespace, "trainingjobs", name), "Ready")["reason"] == reason,
            TIMEOUT_S,
            f"{name} is {reason}",
        )

    for name in ("ends", "pauses"):
        job = training_job(name)
        plane.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=job)
    with operator(plane.admin.kubeconfig, log, NAMESPACES=namespace):
        with HollowNodes(plane.admin, Truth(phases_s=compute_bound), prefix="return"):
            for name in ("ends", "pauses"):
                wait_for_condition(plane, namespace, name, "Observed", "True", log)
            pause = '{"spec": {"suspend": true}}'
            plane.admin.kubectl("patch", "trainingjob", "pauses", "-n", namespace, "--type=merge", "-p", pause)
            wait_for_rest("pauses", "Suspended")
            wait_for(lambda: has_no_pods(read(plane, namespace, "jobs", "pauses-r0")), TIMEOUT_S, "its pods are gone")
        (pod,) = (pod for pod in read(plane, namespace, "pods")["items"] if pod["metadata"]["name"].startswith("ends"))
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/status"
        plane.admin.request("PATCH", path, {"status": ENDED}, "application/merge-patch+json")
        wait_for_rest("ends", "Finished")
        wait_for(lambda: says_complete(read(plane, namespace, "jobs", "ends-r0")), TIMEOUT_S, "the last word is said")
    port = free_port()
    with operator(plane.admin.kubeconfig, log, NAMESPACES=namespace, METRICS_PORT=str(port)):
        wait_for(lambda: read_metric(port, "amdahl_loop_jobs_described") == 2, TIMEOUT_S, "both jobs are known")
        assert read_metric(port, "amdahl_loop_ticks_total") == 0
    plane.delete_namespace(namespace)

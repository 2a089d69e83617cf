"""The operator as its own process, and what tests ask of a cluster that it works on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.cluster import Cluster
from testbed.processes import spawn

TIMEOUT_S = 1200.0
"""A bound on hanging; the loop takes about half a minute on nodes that only report."""

OURS = "/apis/amdahl-loop.io/v1alpha1"
ROOTS = {"trainingjobs": OURS, "experiments": OURS, "tuningpolicies": OURS, "jobs": "/apis/batch/v1"}
"""Where the kinds live that are not of the core."""
DEFINITIONS = Path(__file__).parents[1] / "crds"
PRIORITY = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "amdahl-loop-trial"},
    "value": -1000,
    "preemptionPolicy": "Never",
}

CONFINED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""A container's security context, as the restricted standard asks for it."""

Object = dict[str, Any]


def training_job(name: str = "waits", knobs: Mapping[str, Any] | None = None, **tuning: Any) -> Object:
    """A TrainingJob as a user applies it: loads its data itself, judged in a hurry."""
    container = {"name": "trainer", "image": "example/train:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "knobs": dict(knobs or {"dataloaderWorkers": 0}),
            "template": {"spec": {"containers": [container]}},
            "tuning": {"profile": "quick", "budget": {"deviceHours": "100"}, **tuning},
        },
    }


def define(cluster: Cluster) -> Cluster:
    """The cluster with our definitions and the trials' priority class."""
    cluster.admin.kubectl("apply", "--server-side", "-f", str(DEFINITIONS))
    cluster.admin.kubectl("wait", "--for=condition=Established", "--timeout=600s", "-f", str(DEFINITIONS))
    cluster.admin.kubectl("apply", "-f", "-", stdin=PRIORITY)
    return cluster


@contextmanager
def operator(kubeconfig: Path, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's own process, until the context ends, or whoever started it does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
    environment |= {"AMDAHL_LOOP_KUBECONFIG": str(kubeconfig), "AMDAHL_LOOP_LOG_FORMAT": "plain"}
    environment |= {"AMDAHL_LOOP_METRICS_PORT": "0", "AMDAHL_LOOP_HEALTH_PORT": "0"}
    environment |= {f"AMDAHL_LOOP_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "amdahl_loop.handlers"]
    with spawn(command, log, environment=environment) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def read(cluster: Cluster, namespace: str, plural: str, name: str = "") -> Object:
    """Objects as the server holds them: all of a kind, or the one of that name. No kubectl: tests ask five times a second."""
    path = f"{ROOTS.get(plural, '/api/v1')}/namespaces/{namespace}/{plural}"
    while (reply := cluster.admin.get(f"{path}/{name}" if name else path)).status == 429:
        time.sleep(0.2)  # the storage of a new definition is made ready
    assert reply.status == 200, reply.message
    return reply.body


def condition(job: Object, type_name: str) -> Object:
    """One condition of a job; empty where it has none."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == type_name), {})


def wait_for_condition(
    cluster: Cluster, namespace: str, name: str, type_name: str, status: str, log: Path, timeout_s: float = TIMEOUT_S
) -> Object:
    """The job once a condition has this status; the operator's log where it never gets there."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        job = read(cluster, namespace, "trainingjobs", name)
        if condition(job, type_name).get("status") == status:
            return job
        time.sleep(0.5)
    raise AssertionError(
        f"{type_name} is not {status}: {json.dumps(job.get('status'), indent=1)}\n{log.read_text()[-8000:]}"
    )

"""How do thousands of nodes fit on one machine? kwok plays their kubelets: pods there run at once and for ever, and hold nothing but an object."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from testbed import processes
from testbed.binaries import binary
from testbed.cluster import Cluster, wait_for

LABEL = "testbed.amdahl-loop.io/simulated"
READY_TIMEOUT_S = 120.0
LEASE_S = 40


@contextlib.contextmanager
def simulated_nodes(
    cluster: Cluster, count: int, gpus: int, log: Path, pod_address: str | None = None
) -> Iterator[list[str]]:
    """Add nodes that only exist in the API server, each with `gpus` GPUs; yields their names when all are ready, and removes them at the end.

    Every pod gets `pod_address`, where something can answer for all of them; None: one of its own, where nothing answers. They are labelled and tainted with `LABEL`, so that real pods stay on real nodes: simulated ones need the toleration. Call it from a main thread.
    """
    names = [f"simulated-{index}" for index in range(count)]
    stages = log.with_suffix(".stages.yaml")
    stages.write_text(yaml.safe_dump_all(_stages(pod_address)))
    command: list[str | Path] = [binary("kwok"), f"--kubeconfig={cluster.admin.kubeconfig}", f"--config={stages}"]
    command += [f"--manage-nodes-with-label-selector={LABEL}", f"--node-lease-duration-seconds={LEASE_S}"]
    # Without a folder of its own it would read and write ~/.kwok.
    environment = os.environ | {"KWOK_WORKDIR": str(log.parent / "kwok")}
    cluster.admin.kubectl("create", "-f", "-", stdin=[_node(name, gpus) for name in names])
    kwok = processes.spawn(command, log, environment=environment)
    try:
        wait_for(
            lambda: _ready(cluster) >= count,
            READY_TIMEOUT_S,
            f"{count} simulated nodes are ready; kwok's log ends with:\n{processes.tail(log)}",
        )
        yield names
    finally:
        cluster.admin.kubectl("delete", "nodes", f"--selector={LABEL}", "--wait=false")
        kwok.terminate()
        kwok.wait()


def _ready(cluster: Cluster) -> int:
    nodes = cluster.admin.get(f"/api/v1/nodes?labelSelector={LABEL}").body["items"]
    conditions = (condition for node in nodes for condition in node["status"].get("conditions", []))
    return sum(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _node(name: str, gpus: int) -> dict[str, Any]:
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {LABEL: "true", "kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": LABEL, "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }


def _stage(name: str, kind: str, expressions: list[dict[str, Any]], then: dict[str, Any]) -> dict[str, Any]:
    spec = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": expressions},
        "next": then,
    }
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


_IS_DELETED = ".metadata.deletionTimestamp"
_IS_READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
_NODE_STATUS = """
conditions:
- {type: Ready, status: "True", reason: Simulated, message: kwok, lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
"""
_POD_STATUS = """
phase: Running
startTime: {{ Now | Quote }}
podIP: POD_ADDRESS
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ Now | Quote }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ Now | Quote }}}
- {type: Ready, status: "True", lastTransitionTime: {{ Now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, started: true, restartCount: 0, state: {running: {startedAt: {{ Now | Quote }}}}}
{{ end }}
"""
_OWN_ADDRESS = "{{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}"


def _stages(pod_address: str | None) -> list[dict[str, Any]]:
    """What kwok writes: nodes become ready, pods run at once, deleted ones go."""
    status = _POD_STATUS.replace("POD_ADDRESS", pod_address or _OWN_ADDRESS)
    return [
        _stage(
            "node-ready",
            "Node",
            [{"key": _IS_READY, "operator": "NotIn", "values": ["True"]}],
            {"statusTemplate": _NODE_STATUS},
        ),
        _stage(
            "pod-running",
            "Pod",
            [
                {"key": _IS_DELETED, "operator": "DoesNotExist"},
                {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
            ],
            {"statusTemplate": status},
        ),
        _stage(
            "pod-gone",
            "Pod",
            [{"key": _IS_DELETED, "operator": "Exists"}],
            {"finalizers": {"empty": True}, "delete": True},
        ),
    ]

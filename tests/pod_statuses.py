"""What a Kubernetes 1.34 server says of block Jobs and their pods, in the shapes that kubelets and controllers write."""

from typing import Any

JOB_UID = "99999999-8888-7777-6666-555555555555"
CREATED = "2026-11-21T11:00:00Z"
CREATED_S = 1795258800.0
Status = dict[str, Any]


def at(seconds: float) -> str:
    """A moment so long after the Job was made."""
    minutes, rest = divmod(int(seconds), 60)
    return f"2026-11-21T11:{minutes:02}:{rest:02}Z"


def make_job(status: Status | None = None, replicas: int = 1, suspend: bool = False, **metadata: Any) -> dict[str, Any]:
    """A Job as the server gives it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "b", "namespace": "team", "uid": JOB_UID, "creationTimestamp": CREATED, **metadata},
        "spec": {"completions": replicas, "parallelism": replicas, "suspend": suspend},
        "status": status or {"active": replicas},
    }


def job_condition(type_name: str, reason: str, message: str, seconds: float = 60) -> Status:
    """A condition of a Job."""
    return {
        "type": type_name,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastProbeTime": at(seconds),
        "lastTransitionTime": at(seconds),
    }


def make_pod(
    phase: str,
    trainer: Status | None = None,
    conditions: list[Status] | None = None,
    init: list[Status] | None = None,
    index: int = 0,
    node: str | None = "node-a",
    deleted: bool = False,
    **status: Any,
) -> dict[str, Any]:
    """A pod of the Job; `trainer` is the state of its container."""
    placed = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(2)}] if node else []
    containers = [{"name": "trainer", "state": trainer, "restartCount": 0, "ready": False}] if trainer else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"b-{index}-x7x7x",
            "uid": f"pod-{index}",
            "creationTimestamp": at(1),
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [{"kind": "Job", "name": "b", "uid": JOB_UID, "controller": True}],
            **({"deletionTimestamp": at(50)} if deleted else {}),
        },
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "startTime": at(3),
            "conditions": [*placed, *(conditions or [])],
            **({"containerStatuses": containers} if containers else {}),
            **({"initContainerStatuses": init} if init else {}),
            **status,
        },
    }


def ended(exit_code: int, reason: str = "", message: str = "", started: float = 5, finished: float = 65) -> Status:
    """A container that has ended."""
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": at(started),
            "finishedAt": at(finished),
            "containerID": "containerd://0123",
        }
    }


def never_started(message: str) -> Status:
    """A container whose program containerd could not start."""
    return {
        "terminated": {
            "exitCode": 128,
            "reason": "StartError",
            "message": message,
            "startedAt": "1970-01-01T00:00:00Z",
            "finishedAt": at(9),
        }
    }


def waiting(reason: str, message: str = "") -> Status:
    """A container that waits."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(since: float = 5) -> Status:
    """A container that runs."""
    return {"running": {"startedAt": at(since)}}


def disrupted(reason: str, message: str = "", seconds: float = 40) -> Status:
    """The condition of a pod that is taken away."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": at(seconds),
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available.",
    "lastTransitionTime": at(1),
}
GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastTransitionTime": at(1)}
EXEC_NOT_FOUND = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    'unable to start container process: exec: "python3": executable file not found in $PATH: unknown'
)
BAD_FOLDER = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: mkdir /nowhere: read-only file system: unknown"
)

"""Is other work of the owner's seen that waits for what trials hold, on a real API server's own selectors?"""

from collections.abc import Iterator
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.pressure import QUOTA_MEMORY_S, Waiting, find_waiting
from amdahl_loop.domain.fleet import Pressure
from cluster_builders import Scene, play, stamp
from testbed.cluster import Cluster

pytestmark = pytest.mark.cluster

TRIAL = {"amdahl-loop.io/experiment": "e0"}
QUEUE = "kueue.x-k8s.io/queue-name"
SHORT = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: not helpful."
WORKLOADS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture
def place(api_server: Cluster, api_namespace: str) -> tuple[Cluster, str]:
    """A server and a namespace of the test's own."""
    return api_server, api_namespace


def look_for(place: tuple[Cluster, str], *steps: Any, has_queues: bool = False, later_s: float = 0.0) -> Waiting:
    """What is seen waiting after these steps."""

    async def go(scene: Scene) -> Waiting:
        for step in steps:
            await step(scene)
        return await find_waiting(scene.client, scene.namespace, scene.now_s + later_s, has_queues)

    cluster, namespace = place
    return play(cluster, namespace, go)


def pod(
    name: str = "eval-0", message: str = SHORT, phase: str = "Pending", labels: dict[str, str] | None = None
) -> Any:
    """A pod and what the scheduler says of it."""

    async def step(scene: Scene) -> None:
        container = {"name": "main", "image": "example/eval:1"}
        body = {"metadata": {"name": name, "labels": labels or {}}, "spec": {"containers": [container]}}
        await scene.client.create(Kind.POD, scene.namespace, body)
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        status = {"phase": phase, "conditions": [unscheduled | {"lastTransitionTime": stamp(scene.now_s)}]}
        done = await scene.client.patch_status(Kind.POD, scene.namespace, name, {"status": status})
        assert isinstance(done, dict), done

    return step


def job(name: str = "report", labels: dict[str, str] | None = None) -> Any:
    """A Job of the owner's, or a trial's."""

    async def step(scene: Scene) -> None:
        container = {"name": "main", "image": "example/report:1"}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        body = {"metadata": {"name": name, "labels": labels or {}}, "spec": {"template": template}}
        made = await scene.client.create(Kind.JOB, scene.namespace, body)
        assert isinstance(made, dict), made

    return step


def event(about: str = "report", note: str = "", kind: str = "Job", reason: str = "FailedCreate") -> Any:
    """What the Job controller tells of a pod that it could not create."""
    note = (
        note or 'Error creating: pods "report-x" is forbidden: exceeded quota: gpus, requested: cpu=4, limited: cpu=4'
    )

    async def step(scene: Scene) -> None:
        body = {
            "metadata": {"name": f"{about}.{kind}.{reason}".lower()},
            "regarding": {"kind": kind, "namespace": scene.namespace, "name": about, "apiVersion": "batch/v1"},
            "reason": reason,
            "note": note,
            "type": "Warning",
            "action": "Create",
            "eventTime": stamp(scene.now_s).replace("Z", ".000000Z"),
            "reportingController": "job-controller",
            "reportingInstance": "a",
        }
        made = await scene.client.create(Kind.EVENT, scene.namespace, body)
        assert isinstance(made, dict), made

    return step


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        pytest.param([], "", id="nothing"),
        pytest.param([pod()], "eval-0", id="a pod without room"),
        pytest.param(
            [pod(message="0/2 nodes are available: 2 Insufficient cpu.")], "eval-0", id="processors are held too"
        ),
        pytest.param([pod(labels=TRIAL)], "", id="a trial's own pod"),
        pytest.param([pod(phase="Running")], "", id="it runs by now"),
        pytest.param(
            [pod(message="0/2 nodes are available: 2 node(s) had untolerated taint.")], "", id="room would not help"
        ),
    ],
)
def test_a_pod_that_waits_for_room_is_seen(place: tuple[Cluster, str], steps: list[Any], seen: str) -> None:
    """Any pod of the namespace that would run if a trial did not; no other."""
    assert look_for(place, *steps).pod == seen


@pytest.mark.parametrize(
    ("steps", "later_s", "is_seen"),
    [
        pytest.param([job(), event()], 1.0, True, id="a Job over its quota"),
        pytest.param([job(labels=TRIAL), event()], 1.0, False, id="a trial over its quota"),
        pytest.param([event()], 1.0, False, id="the Job is gone"),
        pytest.param([job(), event()], QUOTA_MEMORY_S + 1, False, id="long ago"),
        pytest.param(
            [job(), event(note="Error creating: admission webhook says no")], 1.0, False, id="another refusal"
        ),
        pytest.param([job(), event(reason="BackoffLimitExceeded")], 1.0, False, id="another event"),
    ],
)
def test_a_job_that_the_quota_refuses_is_seen(
    place: tuple[Cluster, str], steps: list[Any], later_s: float, is_seen: bool
) -> None:
    """Only what the quota says, of the owner's own Jobs, of late."""
    quota = look_for(place, *steps, later_s=later_s).quota
    assert quota == ("Job report exceeded quota: gpus, requested: cpu=4, limited: cpu=4" if is_seen else "")


@pytest.fixture
def kueue(api_server: Cluster) -> Iterator[None]:
    """The kind that Kueue would bring."""
    api_server.admin.kubectl("apply", "--server-side", "-f", "-", stdin=WORKLOADS)
    api_server.admin.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/workloads.kueue.x-k8s.io")
    yield
    api_server.admin.kubectl("delete", "crd", "workloads.kueue.x-k8s.io", "--timeout=120s")


def workload(name: str, queue: str, owner: str = "report", active: bool = True, condition: str = "") -> Any:
    """A workload as Kueue makes it for a Job."""

    async def step(scene: Scene) -> None:
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner, "uid": f"uid-{owner}"}
        conditions = [{"type": condition, "status": "True"}] if condition else []
        body = {
            "metadata": {"name": name, "ownerReferences": [reference]},
            "spec": {"queueName": queue, "active": active},
            "status": {"conditions": conditions},
        }
        made = await scene.client.create(Kind.WORKLOAD, scene.namespace, body)
        assert isinstance(made, dict), made

    return step


def test_workloads_that_wait_name_their_queues(kueue: None, place: tuple[Cluster, str]) -> None:
    """Neither those that are admitted, over or switched off, nor those of trials."""
    seen = look_for(
        place,
        job("e0-d0", labels=TRIAL),
        workload("waits", "research"),
        workload("runs", "prod", condition="QuotaReserved"),
        workload("over", "old", condition="Finished"),
        workload("off", "parked", active=False),
        workload("trial", "trials", owner="e0-d0"),
        has_queues=True,
    )
    assert seen.queues == {"research"}
    assert seen.press_on({QUEUE: "research"}) == Pressure(queue="research")
    assert seen.press_on({QUEUE: "prod"}) == seen.press_on({}) == Pressure()


def test_a_cluster_without_kueue_has_no_queues(place: tuple[Cluster, str]) -> None:
    """The kind is unknown there: nothing waits in it."""
    assert look_for(place, has_queues=True).queues == frozenset()

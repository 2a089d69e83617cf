"""Does other work of the owner's wait for what trials hold?

Three signs in a namespace, none of them a trial's own: a pod that the scheduler finds no room for, a Job whose pods the
quota refuses, a workload that waits in a queue. Whoever shares the namespace is the owner; trials make way for all.
"""

import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import read_pod, read_time_s
from amdahl_loop.domain.children import EXPERIMENT_LABEL
from amdahl_loop.domain.fleet import Pressure

QUOTA_MEMORY_S = 300.0
"""So long a refusal by the quota is believed: the Job controller tries again at least so often while it is refused."""
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_SHORT_OF = re.compile(r"\bInsufficient [\w./-]+")
"""The scheduler's words for a node that would do but for what others hold; affinity and taints are other words."""
_OVER_QUOTA = re.compile(r"exceeded quota: .*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a namespace: a pod and a refusal by name, and the queues in which a workload waits."""

    pod: str = ""
    quota: str = ""
    queues: frozenset[str] = frozenset()

    def press_on(self, labels: Mapping[str, str]) -> Pressure:
        """The pressure on a job with these queue labels."""
        queue = labels.get(KUEUE_QUEUE_LABEL, "")
        return Pressure(pod=self.pod, quota=self.quota, queue=queue if queue in self.queues else "")


async def find_waiting(client: KubeClient, namespace: str, now_s: float, has_queues: bool) -> Waiting:
    """What waits in a namespace now; `has_queues`: also in Kueue's queues, where Kueue is there."""
    labels = f"!{EXPERIMENT_LABEL}"
    pods = client.list(Kind.POD, namespace, labels, fields="status.phase=Pending")
    return Waiting(
        pod=await _find_unscheduled(pods),
        quota=await _find_refused(client, namespace, now_s),
        queues=await _find_queues(client, namespace) if has_queues else frozenset(),
    )


async def _find_unscheduled(pods: AsyncIterator[Object]) -> str:
    """The first pod that would run but for want of something that others hold."""
    async for raw in pods:
        pod = read_pod(raw)
        if not pod.is_deleting and _SHORT_OF.search(pod.unschedulable):
            return pod.name
    return ""


async def _find_refused(client: KubeClient, namespace: str, now_s: float) -> str:
    """The quota's latest word on a Job that is not a trial; empty where it has refused none of late."""
    events = [raw async for raw in client.list(Kind.EVENT, namespace, fields="reason=FailedCreate,regarding.kind=Job")]
    for raw in sorted(events, key=_told_s, reverse=True):
        said = _OVER_QUOTA.search(str(raw.get("note") or ""))
        if said is None or now_s - _told_s(raw) > QUOTA_MEMORY_S:
            continue
        name = str((raw.get("regarding") or {}).get("name", ""))
        job = await client.get(Kind.JOB, namespace, name) if name else None
        if job is not None and EXPERIMENT_LABEL not in (job["metadata"].get("labels") or {}):
            return f"Job {name} {said[0]}"[:300]
    return ""


def _told_s(event: Object) -> float:
    """When an event was last told."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return max((told for time in times if (told := read_time_s(time)) is not None), default=0.0)


async def _find_queues(client: KubeClient, namespace: str) -> frozenset[str]:
    """Queues in which a workload waits for its quota, trials' own left out; none where Kueue is not there."""
    trials = {raw["metadata"]["name"] async for raw in client.list(Kind.JOB, namespace, EXPERIMENT_LABEL)}
    try:
        workloads = [raw async for raw in client.list(Kind.WORKLOAD, namespace)]
    except ApiUnavailable as error:
        if error.refused is not None and error.refused.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
            return frozenset()
        raise
    return frozenset(str(raw["spec"].get("queueName", "")) for raw in workloads if _waits(raw, trials))


def _waits(workload: Object, trials: Collection[str]) -> bool:
    """Whether a workload is neither admitted nor over nor switched off, and nobody's trial."""
    owners = {str(owner.get("name", "")) for owner in workload["metadata"].get("ownerReferences") or ()}
    conditions: list[Mapping[str, Any]] = (workload.get("status") or {}).get("conditions") or []
    settled = any(c.get("type") in ("QuotaReserved", "Finished") and c.get("status") == "True" for c in conditions)
    return not settled and workload["spec"].get("active") is not False and not owners & set(trials)

"""How did a block end, or why will it not begin?

Each trouble of a cluster has its own word. A variant that runs out of memory or crashes has lost, so those keep their
summary; a block that the cluster took away says nothing about either arm, so its summary is dropped. A block that no
node takes has not run at all, and is tried again (`domain/room.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from amdahl_loop.adapters.kube.merge import merge_summaries
from amdahl_loop.adapters.kube.objects import ContainerFacts, Ended, JobFacts, PodFacts
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.runs import Finished, Running, Unplaced

PENDING_LIMIT_S = 600.0
"""A block without a node for so long is given up, at no cost, and tried again later."""
PULL_LIMIT_S = 180.0
"""Registries fail for a moment now and then; longer than this they have to be asked about."""
CONFIG_LIMIT_S = 60.0
"""A ConfigMap that was just made takes some seconds to reach a kubelet."""
START_LIMIT_S = 780.0
"""From a node to a running container; below what the pod's own deadline allows for it."""


class Trouble(StrEnum):
    """Why a block has no summary, worst first: where pods differ, the first one speaks."""

    REJECTED = "rejected"
    SQUATTED = "squatted"
    NODE_LOST = "node_lost"
    PREEMPTED = "preempted"
    EVICTED = "evicted"
    UNSCHEDULABLE = "unschedulable"
    IMAGE_PULL = "image_pull"
    CONFIG_ERROR = "config_error"
    NO_PYTHON = "no_python"
    DEADLINE = "deadline"
    OOM = "oom"
    NO_SUMMARY = "no_summary"


TAKEN = frozenset(
    {
        Trouble.REJECTED,
        Trouble.SQUATTED,
        Trouble.NODE_LOST,
        Trouble.PREEMPTED,
        Trouble.EVICTED,
        Trouble.IMAGE_PULL,
        Trouble.CONFIG_ERROR,
    }
)
"""Troubles of the cluster's, which say nothing about the program."""


@dataclass(frozen=True, slots=True)
class Found:
    """A trouble and its details."""

    word: Trouble
    why: str

    def __str__(self) -> str:
        """`word: details`, as a block's record keeps it."""
        return f"{self.word}: {self.why}"[:200] if self.why else str(self.word)


def judge_block(
    run: str,
    job: JobFacts,
    pods: Sequence[PodFacts],
    devices: int,
    now_s: float,
    pending_limit_s: float = PENDING_LIMIT_S,
) -> Running | Unplaced | Finished:
    """The state of a block from its Job and pods. `devices` are what each pod holds."""
    found = [trouble for pod in pods if (trouble := _find_trouble(pod, now_s, pending_limit_s))]
    if len(pods) < job.replicas and not found:
        found = [trouble] if (trouble := _find_absence(job, len(pods), now_s, pending_limit_s)) else []
    if found:
        worst = min(found, key=lambda trouble: list(Trouble).index(trouble.word))
        if worst.word is Trouble.UNSCHEDULABLE:
            return Unplaced(why=str(worst))
        summary = next((_summary(pod) for pod in pods if _ran_out_of_memory(pod)), "")
        ended = _finish(job, pods, devices, now_s, summary if worst.word is Trouble.OOM else "", str(worst))
        return ended.model_copy(update={"is_taken": worst.word in TAKEN})
    if job.failure_reason == "DeadlineExceeded":
        return _finish(job, pods, devices, now_s, "", str(Found(Trouble.DEADLINE, job.failure_message)))
    if len(pods) < job.replicas or not all(pod.is_over for pod in pods):
        return Running()
    summaries = [_summary(pod) for pod in sorted(pods, key=lambda pod: pod.index)]
    merged = merge_summaries(summaries, run)
    return _finish(job, pods, devices, now_s, merged.text, merged.failure)


def refused(word: Trouble, why: str, now_s: float) -> Finished:
    """The end of a block that never began; it has held nothing."""
    return Finished(failure=str(Found(word, why)), started_at_s=now_s, held_device_s=0.0, is_taken=word in TAKEN)


def lost(run: str, job: JobFacts, pods: Sequence[PodFacts], devices: int, now_s: float) -> Loss:
    """What a block has held up to now."""
    held_device_s = sum(devices * held_s(pod, now_s) for pod in pods)
    return Loss(run=run, started_at_s=_started_at_s(job, pods), held_device_s=held_device_s)


def _finish(
    job: JobFacts, pods: Sequence[PodFacts], devices: int, now_s: float, summary: str, failure: str
) -> Finished:
    return Finished(
        summary=summary,
        failure=failure,
        node=",".join(sorted({pod.node for pod in pods if pod.node}))[:1000],
        started_at_s=_started_at_s(job, pods),
        held_device_s=sum(devices * held_s(pod, now_s) for pod in pods),
    )


def _started_at_s(job: JobFacts, pods: Sequence[PodFacts]) -> float:
    """When the first trainer started, else when the first pod had a node, else when the Job was made."""
    ended = [pod.trainer.ended.started_at_s for pod in pods if pod.trainer.ended]
    started = [at_s for at_s in (*ended, *(pod.trainer.running_since_s for pod in pods)) if at_s]
    placed = [pod.scheduled_at_s for pod in pods if pod.scheduled_at_s]
    return min(started or placed or [job.created_at_s])


def held_s(pod: PodFacts, now_s: float) -> float:
    """Seconds that a pod has held its devices: from the moment it had a node to the end of its trainer."""
    begin_s = pod.scheduled_at_s or pod.started_at_s
    if begin_s is None or not pod.node:
        return 0.0
    end_s = (pod.trainer.ended.finished_at_s if pod.trainer.ended else None) or pod.disrupted_at_s or now_s
    return max(0.0, end_s - begin_s)


def _summary(pod: PodFacts) -> str:
    """What the supervisor left as the container's termination message."""
    return pod.trainer.ended.message if pod.trainer.ended else ""


def _ran_out_of_memory(pod: PodFacts) -> bool:
    ended = pod.trainer.ended
    return ended is not None and ended.reason == "OOMKilled" and ended.exit_code != 0


_DISRUPTIONS = {
    "PreemptionByScheduler": Trouble.PREEMPTED,
    "DeletionByTaintManager": Trouble.NODE_LOST,
    "DeletionByPodGC": Trouble.NODE_LOST,
    "EvictionByEvictionAPI": Trouble.EVICTED,
    "TerminationByKubelet": Trouble.EVICTED,
}
"""Reasons of the DisruptionTarget condition."""

_POD_REASONS = {
    "Evicted": Trouble.EVICTED,
    "NodeShutdown": Trouble.EVICTED,
    "Terminated": Trouble.EVICTED,
    "Preempting": Trouble.PREEMPTED,
    "NodeLost": Trouble.NODE_LOST,
    "DeadlineExceeded": Trouble.DEADLINE,
    "UnexpectedAdmissionError": Trouble.UNSCHEDULABLE,
    "NodeAffinity": Trouble.UNSCHEDULABLE,
}
"""Reasons that kubelets write into a pod's status."""


def _find_trouble(pod: PodFacts, now_s: float, pending_limit_s: float) -> Found | None:
    """What went wrong with one pod; a trainer that ended in good order has none, whatever came after."""
    if pod.trainer.ended is not None and pod.trainer.ended.exit_code == 0:
        return None
    taken = _DISRUPTIONS.get(pod.disruption) or _POD_REASONS.get(pod.reason)
    if taken is None and pod.reason.startswith("OutOf"):
        taken = Trouble.UNSCHEDULABLE
    if taken is not None:
        return Found(taken, pod.message or pod.reason or pod.disruption)
    if pod.trainer.ended is not None:
        return _read_end(pod, pod.trainer.ended)
    if pod.is_deleting:
        return Found(Trouble.EVICTED, "its pod was deleted")
    if pod.phase == "Unknown":
        return Found(Trouble.NODE_LOST, pod.message)
    if pod.phase == "Failed":
        return _read_failed_start(pod)
    if not pod.node:
        return _find_no_node(pod, now_s, pending_limit_s)
    return _find_no_start(pod, now_s) if pod.trainer.running_since_s is None else None


def _read_end(pod: PodFacts, ended: Ended) -> Found | None:
    """A trainer that ended badly: out of memory, never started, or not; what else its summary says for itself."""
    if _ran_out_of_memory(pod):
        return Found(Trouble.OOM, f"the container was killed at exit code {ended.exit_code}")
    if ended.reason in ("StartError", "ContainerCannotRun") or (ended.started_at_s is None and ended.exit_code):
        return _read_start_error(ended.message)
    return None


def _read_start_error(message: str) -> Found:
    """What the container runtime says of a program that it could not start."""
    is_program = "exec:" in message or "executable file not found" in message
    return Found(Trouble.NO_PYTHON if is_program else Trouble.CONFIG_ERROR, message.split("process: ")[-1])


def _read_failed_start(pod: PodFacts) -> Found:
    """A pod that failed although its trainer never ran: an init container, or the kubelet's own word."""
    failed = next((c for c in pod.init if c.ended is not None and c.ended.exit_code), None)
    if failed is not None and failed.ended is not None:
        return Found(Trouble.CONFIG_ERROR, f"init container {failed.name} ended with {failed.ended.exit_code}")
    return Found(Trouble.CONFIG_ERROR, pod.message or pod.reason or "the pod failed before it began")


def _find_no_node(pod: PodFacts, now_s: float, pending_limit_s: float) -> Found | None:
    if now_s - pod.created_at_s < pending_limit_s:
        return None
    return Found(Trouble.UNSCHEDULABLE, pod.unschedulable or "no scheduler has looked at it")


_PULL = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"}
)
_NEVER_PULLED = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"})


def _find_no_start(pod: PodFacts, now_s: float) -> Found | None:
    """A pod that has a node and does not start."""
    waited_s = now_s - (pod.scheduled_at_s or pod.started_at_s or pod.created_at_s)
    for container in (*pod.init, pod.trainer):
        found = _find_stuck(container, waited_s)
        if found is not None:
            return found
    if waited_s >= START_LIMIT_S and all(c.running_since_s is None for c in pod.init):
        return Found(Trouble.CONFIG_ERROR, f"its containers have not started for {waited_s:.0f} s: image or volumes")
    return None


def _find_stuck(container: ContainerFacts, waited_s: float) -> Found | None:
    said = f"{container.name}: {container.waiting_message or container.waiting}"
    if container.waiting in _NEVER_PULLED or (container.waiting in _PULL and waited_s >= PULL_LIMIT_S):
        return Found(Trouble.IMAGE_PULL, said)
    if container.waiting in _CONFIG and waited_s >= CONFIG_LIMIT_S:
        if "executable file not found" in container.waiting_message:
            return Found(Trouble.NO_PYTHON, said)
        return Found(Trouble.CONFIG_ERROR, said)
    return None


def _find_absence(job: JobFacts, present: int, now_s: float, pending_limit_s: float) -> Found | None:
    """A Job that lacks pods: they were taken away, or never came."""
    if job.failure_reason == "DeadlineExceeded" and present == 0:
        return Found(Trouble.DEADLINE, job.failure_message)
    if job.is_over:
        return Found(Trouble.NODE_LOST, "its pod is gone")
    if now_s - job.created_at_s < pending_limit_s:
        return None
    held_by = "its queue has not admitted it" if job.is_suspended else "no pod could be made; see the Job's events"
    return Found(Trouble.UNSCHEDULABLE, held_by)

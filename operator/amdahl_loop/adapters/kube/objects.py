"""What does the API server say about Jobs and pods, as values?

Raw objects are read here, once, into the few facts that decisions need. The server is believed; what a container wrote
(its termination message) is text of any content, and is cut, never parsed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.domain.api.timestamps import to_epoch_s
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES
from amdahl_loop.domain.template import TRAINER_CONTAINER

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
QUEUE_LABEL_SUFFIXES = ("/queue-name",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended. `message` is its termination message, cut one byte above what a summary may have."""

    exit_code: int
    reason: str = ""
    message: str = ""
    started_at_s: float | None = None
    finished_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """One container of a pod: it waits (and why), runs (since when) or has ended. `last_ended`: how it ended before."""

    name: str
    waiting: str = ""
    waiting_message: str = ""
    running_since_s: float | None = None
    ended: Ended | None = None
    last_ended: Ended | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One pod of a Job. `disruption` is the reason of its DisruptionTarget condition: who took it away."""

    name: str
    uid: str = ""
    index: int = 0
    node: str = ""
    ip: str = ""
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    created_at_s: float = 0.0
    started_at_s: float | None = None
    scheduled_at_s: float | None = None
    unschedulable: str = ""
    disruption: str = ""
    disrupted_at_s: float | None = None
    is_ready: bool = False
    is_deleting: bool = False
    trainer: ContainerFacts = field(default_factory=lambda: ContainerFacts(name=TRAINER_CONTAINER))
    init: tuple[ContainerFacts, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing of the pod's trainer runs or will run."""
        return self.trainer.ended is not None or self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """One Job."""

    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    owner_uid: str = ""
    resource_version: str = ""
    created_at_s: float = 0.0
    volumes: frozenset[str] = frozenset()
    """Names of its pods' volumes."""
    is_deleting: bool = False
    is_suspended: bool = False
    replicas: int = 1
    active: int = 0
    ready: int = 0
    failed: int = 0
    terminating: int = 0
    is_complete: bool = False
    failure_reason: str = ""
    failure_message: str = ""
    failed_at_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the Job has ended, well or not."""
        return self.is_complete or bool(self.failure_reason)

    @property
    def is_at_rest(self) -> bool:
        """Whether the Job is suspended with nothing of it running, and has not failed before."""
        return self.is_suspended and not (self.active or self.terminating or self.failed or self.failure_reason)

    @property
    def is_queued(self) -> bool:
        """Whether a queue manages the Job: then nobody else writes its `suspend`."""
        return any(name.endswith(QUEUE_LABEL_SUFFIXES) for name in self.labels)


def read_job(raw: Object) -> JobFacts:
    """The facts of a Job."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = _conditions(status)
    failed = conditions.get("Failed") or conditions.get("FailureTarget") or {}
    return JobFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        owner_uid=controller_uid(raw),
        resource_version=metadata.get("resourceVersion", ""),
        created_at_s=read_time_s(metadata.get("creationTimestamp")) or 0.0,
        volumes=_volumes(spec),
        is_deleting="deletionTimestamp" in metadata,
        is_suspended=bool(spec.get("suspend")),
        replicas=spec.get("completions") or 1,
        active=status.get("active") or 0,
        ready=status.get("ready") or 0,
        failed=status.get("failed") or 0,
        terminating=status.get("terminating") or 0,
        is_complete="Complete" in conditions or "SuccessCriteriaMet" in conditions,
        failure_reason=(failed.get("reason") or "Failed") if failed else "",
        failure_message=failed.get("message") or "",
        failed_at_s=read_time_s(failed.get("lastTransitionTime")),
    )


def read_pod(raw: Object) -> PodFacts:
    """The facts of a pod."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions, missing = _conditions(status), _conditions(status, "False")
    scheduled, disrupted = conditions.get("PodScheduled"), conditions.get("DisruptionTarget") or {}
    containers = {entry["name"]: _read_container(entry) for entry in status.get("containerStatuses") or ()}
    return PodFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        index=_index(metadata),
        node=spec.get("nodeName") or "",
        ip=status.get("podIP") or "",
        phase=status.get("phase") or "Pending",
        reason=status.get("reason") or "",
        message=(status.get("message") or "")[:500],
        created_at_s=read_time_s(metadata.get("creationTimestamp")) or 0.0,
        started_at_s=read_time_s(status.get("startTime")),
        scheduled_at_s=read_time_s(scheduled.get("lastTransitionTime")) if scheduled else None,
        unschedulable=_unschedulable(missing.get("PodScheduled")),
        disruption=disrupted.get("reason") or "",
        disrupted_at_s=read_time_s(disrupted.get("lastTransitionTime")),
        is_ready="Ready" in conditions,
        is_deleting="deletionTimestamp" in metadata,
        trainer=containers.get(TRAINER_CONTAINER, ContainerFacts(name=TRAINER_CONTAINER)),
        init=tuple(_read_container(entry) for entry in status.get("initContainerStatuses") or ()),
    )


def controller_uid(raw: Object) -> str:
    """UID of the object that controls this one; empty where none does."""
    references = raw["metadata"].get("ownerReferences") or ()
    return next((str(reference.get("uid", "")) for reference in references if reference.get("controller")), "")


def _read_container(raw: Object) -> ContainerFacts:
    state = raw.get("state") or {}
    waiting, running, ended = state.get("waiting") or {}, state.get("running"), state.get("terminated")
    before = (raw.get("lastState") or {}).get("terminated")
    return ContainerFacts(
        name=raw["name"],
        waiting=waiting.get("reason") or "",
        waiting_message=(waiting.get("message") or "")[:500],
        running_since_s=read_time_s(running.get("startedAt")) if running else None,
        ended=_read_ended(ended) if ended else None,
        last_ended=_read_ended(before) if before else None,
        restarts=raw.get("restartCount") or 0,
    )


def _read_ended(raw: Object) -> Ended:
    return Ended(
        exit_code=raw.get("exitCode") or 0,
        reason=raw.get("reason") or "",
        message=(raw.get("message") or "")[: MAX_SUMMARY_BYTES + 1],
        started_at_s=read_time_s(raw.get("startedAt")),
        finished_at_s=read_time_s(raw.get("finishedAt")),
    )


def _volumes(spec: Mapping[str, Any]) -> frozenset[str]:
    pod = (spec.get("template") or {}).get("spec") or {}
    return frozenset(volume["name"] for volume in pod.get("volumes") or ())


def _unschedulable(condition: Mapping[str, Any] | None) -> str:
    """Why a pod has no node; empty while the scheduler has said nothing."""
    if condition is None:
        return ""
    return str(condition.get("message") or condition.get("reason") or "no node")[:500]


def _conditions(status: Mapping[str, Any], wanted: str = "True") -> dict[str, Mapping[str, Any]]:
    """Conditions of one status, by type."""
    return {c["type"]: c for c in status.get("conditions") or () if c.get("status") == wanted}


def _index(metadata: Mapping[str, Any]) -> int:
    """Completion index of a pod of an Indexed Job."""
    text = str((metadata.get("annotations") or {}).get(INDEX_ANNOTATION, "0"))
    return int(text) if text.isdecimal() else 0


def read_time_s(text: object) -> float | None:
    """Seconds since the epoch; None where there is no time: Go writes year 1, kubelets 1970, for what never was."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        return to_epoch_s(text) or None
    except ValueError:
        return None

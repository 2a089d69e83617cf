"""How does a running job make way for a block, when may it, and what does that cost?

A block in turn is a Job like any other; its annotations say what stands still for it. While such a Job is there and has
not ended, `RunningJob` keeps the job away; nobody remembers anything else, so that whatever ends the block, or deletes
it, lets the job go on from its checkpoint. The block's pods and the job's never share a node: the scheduler sees to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.objects import JobFacts, PodFacts, read_pod
from amdahl_loop.adapters.kube.outcomes import PENDING_LIMIT_S, held_s
from amdahl_loop.adapters.kube.render import count_devices
from amdahl_loop.adapters.kube.render_running import METRICS_PORT
from amdahl_loop.adapters.kube.saves import SaveCounts, needed
from amdahl_loop.adapters.kube.scrape import Counters, Fetch, parse_metrics
from amdahl_loop.domain.children import (
    EXPERIMENT_LABEL,
    IN_TURN_ANNOTATION,
    JOB_LABEL,
    RESTART_ANNOTATION,
    REVISION_LABEL,
)
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.room import NO_CHECKPOINT
from amdahl_loop.domain.runs import Unplaced
from amdahl_loop.domain.telemetry import Malformed
from amdahl_loop.ports import Clock

FRESH_S = 120.0
"""A job makes way for a block that is younger; for an older one its checkpoint may be old too, so it works on."""
START_S = 120.0
"""Once the job's pods are gone their devices are free: a block without a node so long after that has lost them."""
DEFAULT_GRACE_S = 30
"""What Kubernetes gives a pod to end, where its template does not say."""
FORGOTTEN_S = 60.0
"""A checkpoint that nobody has asked about for so long is asked for anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A job that may make way now: its nodes, the devices that will stand still, and what it takes to start again."""

    nodes: tuple[str, ...]
    devices: int
    restart_s: float

    @property
    def annotations(self) -> dict[str, str]:
        """What the block's Job says of it."""
        return {IN_TURN_ANNOTATION: str(self.devices), RESTART_ANNOTATION: f"{self.restart_s:.1f}"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Since when a checkpoint is waited for, and when it was last asked about."""

    since_s: float
    last_s: float


class Handover:
    """Waits for a durable checkpoint of one job, `job` with the values in force. The memory outlives a pass."""

    def __init__(
        self, client: KubeClient, asked: dict[tuple[str, str], Asked], saves: SaveCounts, clock: Clock, fetch: Fetch
    ) -> None:
        self._client, self._asked, self._saves = client, asked, saves
        self._clock, self._fetch = clock, fetch

    async def ask(self, job: TrainingJob, run: str) -> Turn | Unplaced | None:
        """A turn as soon as the job has saved its work; None while that is waited for, and in the end no turn at all.

        The longest wait is the work that its owner can bear to lose: a job that saves less often never makes way.
        """
        key, now_s = (job.metadata.uid, run), self._clock()
        asked = self._asked.get(key)
        if asked is None or now_s - asked.last_s > FORGOTTEN_S:
            asked = Asked(now_s, now_s)
            self._saves.forget(job.metadata.uid)  # what was saved before this is too old by the time that it is used
        self._asked[key] = replace(asked, last_s=now_s)
        pods = await self._pods(job)
        counters = await self._count(job, pods)
        is_async = bool(job.spec.knobs.async_checkpoint)
        if isinstance(counters, Counters):
            mark = f"{run}/{pods[0].uid}"
            if self._saves.has_grown(job.metadata.uid, mark, counters.saves, is_async):
                del self._asked[key]
                devices = job.spec.replicas * count_devices(job, job.spec.knobs.gpus_per_replica)
                nodes = tuple(sorted({pod.node for pod in pods}))
                return Turn(nodes=nodes, devices=devices, restart_s=counters.startup_s)
        limit_s = needed(is_async) * job.spec.tuning.checkpoint.max_lost_work_s
        if now_s - asked.since_s < limit_s:
            return None
        del self._asked[key]
        detail = counters.reason if isinstance(counters, Malformed) else "save more often, or use placement Spare"
        return Unplaced(why=f"{NO_CHECKPOINT}: the job wrote none in {limit_s / 60:.0f} min; {detail}"[:120])

    async def _pods(self, job: TrainingJob) -> tuple[PodFacts, ...]:
        """The running pods of the job, in the order of their ranks."""
        labels = f"{JOB_LABEL}={job.metadata.name},{REVISION_LABEL}"
        found = [read_pod(raw) async for raw in self._client.list(Kind.POD, job.metadata.namespace, labels)]
        running = [pod for pod in found if pod.trainer.running_since_s and not (pod.is_over or pod.is_deleting)]
        return tuple(sorted(running, key=lambda pod: pod.index))

    async def _count(self, job: TrainingJob, pods: Sequence[PodFacts]) -> Counters | Malformed:
        if len(pods) < job.spec.replicas or not pods[0].ip:
            return Malformed(reason=f"{len(pods)} of {job.spec.replicas} pods run")
        text = await self._fetch(pods[0].ip, METRICS_PORT)
        return text if isinstance(text, Malformed) else parse_metrics(text)


def is_guest(facts: JobFacts) -> bool:
    """Whether a Job is a block for which its job makes way."""
    return EXPERIMENT_LABEL in facts.labels and IN_TURN_ANNOTATION in facts.annotations


def find_guest(jobs: Iterable[JobFacts], has_stopped: bool, now_s: float) -> str:
    """Name of the block for which a job makes way; empty where there is none.

    `has_stopped`: the job has no Job now. One that still works makes way for a fresh block alone.
    """
    guests = [facts for facts in jobs if is_guest(facts) and not (facts.is_over or facts.is_deleting)]
    welcome = [facts.name for facts in guests if has_stopped or abs(now_s - facts.created_at_s) <= FRESH_S]
    return min(welcome, default="")


def pending_limit_s(facts: JobFacts, job: TrainingJob) -> float:
    """How long a block may be without a node: the job stands still meanwhile, where it has made way for it."""
    if not is_guest(facts):
        return PENDING_LIMIT_S
    grace_s = (job.spec.template.spec.model_extra or {}).get("terminationGracePeriodSeconds")
    return START_S + (grace_s if isinstance(grace_s, int) else DEFAULT_GRACE_S)


def idle_device_s(facts: JobFacts, pods: Sequence[PodFacts], now_s: float) -> float:
    """Device-seconds that a job stands still for a block, beyond what the block's own pods hold.

    From the checkpoint, which is as old as the block's Job, to the moment at which the job trains again.
    """
    devices, restart_s = facts.annotations.get(IN_TURN_ANNOTATION, ""), facts.annotations.get(RESTART_ANNOTATION, "")
    if not devices.isdecimal():
        return 0.0
    away_s = max(0.0, now_s - facts.created_at_s) + (float(restart_s) if _is_number(restart_s) else 0.0)
    return int(devices) * max(0.0, away_s - max((held_s(pod, now_s) for pod in pods), default=0.0))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal() and len(text) < 12

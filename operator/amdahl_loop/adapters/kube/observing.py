"""How is a running job measured without touching it? By reading the counters of its first pod, again and again.

Only pods that run with the values in force are measured: of the present template, and started since the values were set
unless the program takes them up while it runs.
"""

from collections.abc import Collection
from dataclasses import dataclass

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import PodFacts, read_pod
from amdahl_loop.adapters.kube.render import KNOBS_KEY
from amdahl_loop.adapters.kube.render_running import (
    CHANGED_ANNOTATION,
    METRICS_PORT,
    REPLICA_ANNOTATION,
    VALUES_ANNOTATION,
    devices_text,
    digest_declared,
    knob_data,
)
from amdahl_loop.adapters.kube.revisions import SURE_S
from amdahl_loop.adapters.kube.scrape import Counters, Fetch, parse_metrics
from amdahl_loop.adapters.kube.watching import (
    Reading,
    Unwatchable,
    Watch,
    note_reading,
    note_silence,
    render_report,
)
from amdahl_loop.domain.children import DECLARED_ANNOTATION, JOB_LABEL, REVISION_LABEL, knobs_name
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState
from amdahl_loop.domain.telemetry import Malformed
from amdahl_loop.ports import Clock

ASSUMED_CPUS = 8
"""CPUs of a replica that names none: what a node offers is not ours to read; a trial's own report corrects it."""

LIVE_SETTLE_S = 60.0
"""A changed ConfigMap reaches a running container within about a minute (the kubelet's sync period)."""


@dataclass
class Watched:
    """An observation under way, and the job with the values that it is to measure."""

    job: TrainingJob
    watch: Watch


Watches = dict[tuple[str, str], Watched]
"""By UID of the job and name of the run."""


class Observer:
    """Observations of one job."""

    def __init__(self, client: KubeClient, job: TrainingJob, watches: Watches, clock: Clock, fetch: Fetch) -> None:
        self._client = client
        self._namespace, self._name, self._uid = job.metadata.namespace, job.metadata.name, job.metadata.uid
        self._watches = watches
        self._clock = clock
        self._fetch = fetch

    def begin(self, job: TrainingJob, request: RunRequest) -> None:
        """Begin to look; what is being looked at already goes on."""
        watch = Watch(request=request, since_s=self._clock())
        self._watches.setdefault((self._uid, request.run), Watched(job, watch))

    async def find(self, run: str) -> RunState:
        """Look once more. Absent where nobody has begun, after a restart too."""
        watched = self._watches.get((self._uid, run))
        if watched is None:
            return Absent()
        watch = watched.watch
        if not watch.address:
            pod = await self._find_pod(watched.job)
            if pod is None:
                return Running()
            began_s = pod.trainer.running_since_s or self._clock()
            watch = watch.aim(pod.uid, pod.ip, pod.node, began_s)
        seen = self._note(watch, await self._read(watch), watched.job)
        if isinstance(seen, Finished):
            return seen
        watched.watch = seen
        return Running()

    def stop(self, run: str) -> Loss | None:
        """Look no more. Looking holds no device of its own."""
        watched = self._watches.pop((self._uid, run), None)
        return None if watched is None else Loss(run=run, started_at_s=watched.watch.since_s, held_device_s=0.0)

    def sweep(self, keep: Collection[str]) -> list[Loss]:
        """Stop what is not kept."""
        runs = [run for uid, run in self._watches if uid == self._uid and run not in keep]
        return [loss for run in runs if (loss := self.stop(run))]

    async def _read(self, watch: Watch) -> Counters | Malformed:
        text = await self._fetch(watch.address, METRICS_PORT)
        return text if isinstance(text, Malformed) else parse_metrics(text)

    def _note(self, watch: Watch, counters: Counters | Malformed, job: TrainingJob) -> Watch | Finished:
        """One more look, or the end of looking. After silence the pod is looked up anew: it may be another one."""
        now_s = self._clock()
        if isinstance(counters, Malformed):
            seen: Watch | Unwatchable = note_silence(watch, counters.reason, now_s)
            if isinstance(seen, Watch):
                return seen.lose_address()
        else:
            noted = note_reading(watch, Reading(now_s, counters), count_cpus(job))
            if isinstance(noted, Watch):
                return noted
            if not isinstance(noted, Unwatchable):
                return Finished(
                    summary=render_report(noted), node=watch.node, started_at_s=watch.since_s, held_device_s=0.0
                )
            seen = noted
        return Finished(failure=seen.why[:200], node=watch.node, started_at_s=watch.since_s, held_device_s=0.0)

    async def _find_pod(self, job: TrainingJob) -> PodFacts | None:
        """The first rank's pod, if it runs with the values in force."""
        values = await self._client.get(Kind.CONFIG_MAP, self._namespace, knobs_name(self._name))
        if values is None or not _holds(values, job):
            return None
        labels = f"{JOB_LABEL}={self._name},{REVISION_LABEL}"
        async for raw in self._client.list(Kind.POD, self._namespace, labels):
            annotations = raw["metadata"].get("annotations") or {}
            pod = read_pod(raw)
            if pod.index or not pod.ip or pod.is_over or pod.is_deleting or pod.trainer.running_since_s is None:
                continue
            is_present = annotations.get(DECLARED_ANNOTATION) == digest_declared(job)
            has_devices = annotations.get(REPLICA_ANNOTATION) == devices_text(job)
            if is_present and has_devices and self._is_current(pod, annotations.get(VALUES_ANNOTATION), values):
                return pod
        return None

    def _is_current(self, pod: PodFacts, number: str | None, values: Object) -> bool:
        """Whether a pod has taken up the values in force: it was made after them, or had time to read them live."""
        annotations = values["metadata"].get("annotations") or {}
        if number is not None and number == annotations.get(VALUES_ANNOTATION, "0"):
            return True
        changed = annotations.get(CHANGED_ANNOTATION, "0")
        changed_s = float(changed) if changed.replace(".", "", 1).isdecimal() else 0.0
        started_s = pod.trainer.running_since_s or 0.0
        is_live = KNOBS_KEY in (values.get("data") or {})
        return started_s >= changed_s + SURE_S or (is_live and self._clock() >= changed_s + LIVE_SETTLE_S)


def _holds(values: Object, job: TrainingJob) -> bool:
    """Whether the ConfigMap holds the values of this job."""
    data = {key: value for key, value in (values.get("data") or {}).items() if key != KNOBS_KEY}
    return data == knob_data(job.spec.knobs)


def count_cpus(job: TrainingJob) -> int:
    """CPUs that a replica may use: its limit, else its request."""
    cpus = job.spec.template.trainer.resources.quantity("cpu")
    return ASSUMED_CPUS if cpus is None else max(1, round(cpus))

"""How does the running job come to be as its spec and the values in force ask? One effect a pass.

Names are derived and every effect is preceded by a read, so that a pass that was cut anywhere is simply repeated. Only
what is the job's own is touched: an object of the right name that somebody else owns is named, never changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.entering import count_early_ends, names_path
from amdahl_loop.adapters.kube.in_turn import find_guest
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import JobFacts, PodFacts, controller_uid, read_job, read_pod
from amdahl_loop.adapters.kube.present import (
    have_failed_before,
    is_older,
    is_well,
    others_since_s,
    read_revision,
    whole,
)
from amdahl_loop.adapters.kube.probe import Probe, place_probe, sweep_probes
from amdahl_loop.adapters.kube.ranks import ensure_service
from amdahl_loop.adapters.kube.render import find_clashes
from amdahl_loop.adapters.kube.render_running import (
    METRICS_PORT,
    REVISION_ANNOTATION,
    UNPROBED_ANNOTATION,
    VALUES_ANNOTATION,
    devices_text,
    digest_declared,
    render_job,
)
from amdahl_loop.adapters.kube.revisions import (
    Advance,
    Create,
    Decision,
    Present,
    Remove,
    Revision,
    SetSuspend,
    Wanted,
    decide,
    find_rest,
)
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.kube.scrape import Fetch, fetch_metrics, parse_metrics
from amdahl_loop.adapters.kube.values import KeptValues
from amdahl_loop.domain.children import (
    EXPERIMENT_LABEL,
    JOB_LABEL,
    REVISION_LABEL,
    knobs_name,
    revision_name,
    service_name,
)
from amdahl_loop.domain.conditions import Note
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Malformed
from amdahl_loop.domain.tuning import ApplyWhen
from amdahl_loop.ports import Clock

PROBE_TRUST_S = 10.0
"""So long it is believed that the probe lies in a namespace. A job whose pod does not find it runs without it."""
VALUES_SET = Note(reason=Reason.STARTING, sentence="The values in force are set.")
CRASHES = 3
"""So many ends of the same program, with none of it running: it cannot run with the values in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningState:
    """How the running job stands after a pass. `acted`: something was written, so the next pass follows at once.

    `failing` says why the job cannot run with the values in force; empty where it can. `is_unprobed`: the probe stays
    out of this template, since the program ended at its start with it, and nothing else has measured it.
    """

    note: Note
    acted: bool = False
    failing: str = ""
    revision: int | None = None
    is_new: bool = False
    """Its objects have just been made, and nothing that was read before is other than it was: the pass may go on."""
    has_blocks: bool = True
    """Whether Jobs of trials were listed, or may be there."""
    is_unprobed: bool = False


class RunningJob:
    """The running job of one TrainingJob; `job` has the values in force, and its namespace and UID."""

    def __init__(
        self,
        client: KubeClient,
        job: TrainingJob,
        probe: Probe,
        saves: SaveCounts,
        *,
        clock: Clock,
        live: bool = False,
        measured: bool = False,
        is_untold: bool = False,
        is_bare: bool = False,
        has_ended: bool = False,
        fetch: Fetch = fetch_metrics,
    ) -> None:
        """`live`: the program is known to switch values while it runs; `measured`: to run well with the probe.

        `is_untold`: no status has ever been written for the job, so that most likely nothing of it is there yet;
        `is_bare`: it is known that no pod of a job of this name is; `has_ended`: it was seen to run to its end.
        """
        self._client = client
        self._job = job
        self._name, self._namespace, self._uid = job.metadata.name, job.metadata.namespace, job.metadata.uid
        self._probe = probe
        self._saves = saves
        self._clock = clock
        self._is_measured = measured
        self._is_untold, self._is_bare, self._has_ended = is_untold, is_bare, has_ended
        self._is_live = live and job.spec.tuning.apply.when is ApplyWhen.LIVE
        self._values = KeptValues(client, job, self._is_live, clock)
        self._fetch = fetch
        self._seen: list[tuple[int, PodFacts]] | None = None
        self._has_blocks = True

    @cached_property
    def _declared(self) -> str:
        """Only asked for where something runs or is to run."""
        return digest_declared(self._job)

    def rest_with(self, known: Sequence[JobFacts]) -> RunningState | None:
        """How the job stands with these Jobs, none of which runs or is a block; None where more has to be asked."""
        if find_clashes(self._job):
            return None
        rest = self._find_rest([read_revision(facts) for facts in known])
        return None if rest is None else replace(rest, has_blocks=False)

    async def ensure(self) -> RunningState:
        """One step towards what is wanted."""
        clashes = find_clashes(self._job)
        if clashes and not self._job.spec.suspend:
            return RunningState(note=Note(reason=Reason.INVALID_SPEC, sentence="\n".join(clashes)))
        if self._is_untold and not self._job.spec.suspend and (begun := await self._begin()) is not None:
            return begun
        jobs = await self._jobs()
        revisions = tuple(read_revision(facts) for facts in jobs if REVISION_LABEL in facts.labels)
        rest = self._find_rest(revisions)
        if rest is not None and (revisions or self._has_ended or not await self._has_pods()):
            return rest
        values = await self._client.get(Kind.CONFIG_MAP, self._namespace, knobs_name(self._name))
        if values is None:
            made = await self._values.make(max((r.number for r in revisions), default=0))
            if isinstance(made, Refused):
                return _starting() if made.is_taken else _refused(made)
            values = made
        if not self._owns(values):
            return _squatted("ConfigMap", knobs_name(self._name))
        if not self._values.are_held(values):
            return _written(await self._values.update(values), VALUES_SET)
        present = await self._look(values, revisions)
        guest = find_guest(jobs, has_stopped=not revisions, now_s=self._clock())
        decision = decide(self._wanted(guest), present)
        failing = await self._find_failing(present.newest)
        if present.newest is None and present.pods_left and (stray := await self._find_stray(present.target)):
            return stray
        state = await self._perform(decision, values)
        return RunningState(
            note=state.note,
            acted=state.acted,
            failing=failing,
            revision=present.target,
            is_new=state.is_new,
            has_blocks=self._has_blocks,
            is_unprobed=self._is_unprobed(values) and not self._is_measured,
        )

    async def _begin(self) -> RunningState | None:
        """The first objects of a job that nobody has described yet: making them tells that they were not there.

        None where something is there, of a pass that was cut or of a job that bore this name before: then all is read.
        """
        if not self._is_bare and await self._has_pods():
            return None
        values = await self._values.make(0)
        if isinstance(values, Refused):
            return None
        self._has_blocks = False
        state = await self._perform(decide(self._wanted(), Present(target=0)), values)
        return replace(state, revision=0, has_blocks=False)

    def _find_rest(self, revisions: Sequence[Revision]) -> RunningState | None:
        """Whether nothing of the job runs or is to run. Nothing else is asked then."""
        note = find_rest(revisions, self._job.spec.suspend, bool(self._job.queue_labels), self._has_ended)
        number = revisions[0].number if revisions else None
        return None if note is None else RunningState(note=note, revision=number, has_blocks=self._has_blocks)

    async def _find_stray(self, revision: int) -> RunningState | None:
        """A Job that is there and was not listed: somebody else's, or ours, and its labels were stripped."""
        name = revision_name(self._name, revision)
        raw = await self._client.get(Kind.JOB, self._namespace, name)
        if raw is None:
            return None
        if not self._owns(raw):
            return _squatted("Job", name)
        labels = {JOB_LABEL: self._name, REVISION_LABEL: str(revision)}
        if labels.items() <= (raw["metadata"].get("labels") or {}).items():
            return None
        body = {"metadata": {"resourceVersion": raw["metadata"]["resourceVersion"], "labels": labels}}
        done = await self._client.patch(Kind.JOB, self._namespace, name, body)
        return _written(done, Note(reason=Reason.STARTING, sentence=f"Job {name} has its labels back."))

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _jobs(self) -> tuple[JobFacts, ...]:
        """The Jobs of this very TrainingJob: its running ones, oldest first, and its blocks."""
        listed = self._client.list(Kind.JOB, self._namespace, f"{JOB_LABEL}={self._name}")
        found = [raw async for raw in listed]
        self._has_blocks = any(EXPERIMENT_LABEL in raw["metadata"]["labels"] for raw in found)
        jobs = [read_job(raw) for raw in found if self._owns(raw)]
        return tuple(sorted(jobs, key=lambda facts: whole(facts.labels.get(REVISION_LABEL), 0)))

    def _owns(self, raw: Object) -> bool:
        return controller_uid(raw) == self._uid

    def _wanted(self, guest: str = "") -> Wanted:
        spec = self._job.spec
        return Wanted(
            declared=self._declared,
            devices=devices_text(self._job),
            is_suspended=spec.suspend,
            is_queued=bool(self._job.queue_labels),
            when=spec.tuning.apply.when,
            is_live=self._is_live,
            guest=guest,
            may_hide=not (self._is_measured or names_path(self._job)),
        )

    async def _look(self, values: Object, revisions: tuple[Revision, ...]) -> Present:
        """Jobs, and pods only where they matter: while revisions change, after values did, or where some do not run."""
        annotations = values["metadata"].get("annotations") or {}
        target = whole(annotations.get(REVISION_ANNOTATION), max((r.number for r in revisions), default=0))
        newest = next((revision for revision in revisions if revision.number == target), None)
        since_s = None if newest is None else others_since_s(newest, annotations)
        wanted = self._wanted()
        is_settled = newest is not None and len(revisions) == 1 and since_s is None
        is_suspect = newest is not None and wanted.may_hide and newest.has_probe and not is_well(newest.facts)
        if newest is not None and is_settled and newest.devices == wanted.devices and not is_suspect:
            return Present(target=target, revisions=revisions)
        pods = await self._pods()
        present = [pod for number, pod in pods if number == target]
        own = [pod for pod in present if not pod.is_over]
        is_outdated = since_s is not None and (
            any(is_older(pod, since_s) for pod in own) if own else have_failed_before(present, since_s)
        )
        must_wait = newest is not None and (is_outdated or newest.devices != wanted.devices)
        key = f"{target}/{wanted.devices}/{since_s}"
        return Present(
            target=target,
            revisions=revisions,
            pods_left=sum((number != target or newest is None) and not pod.is_over for number, pod in pods),
            is_outdated=is_outdated,
            has_saved=must_wait and await self._has_saved(own, key),
            values_since_s=since_s,
            early_ends=count_early_ends(present),
        )

    async def _has_pods(self) -> bool:
        """Whether there is a pod of any job that bears this name: of one before it, or of a Job without its labels."""
        return await self._client.has_any(Kind.POD, self._namespace, f"{JOB_LABEL}={self._name}")

    async def _pods(self) -> list[tuple[int, PodFacts]]:
        """Pods of the running job with the number of their revision; listed once a pass."""
        if self._seen is None:
            labels = f"{JOB_LABEL}={self._name},{REVISION_LABEL}"
            found = [raw async for raw in self._client.list(Kind.POD, self._namespace, labels)]
            self._seen = [(whole(raw["metadata"]["labels"].get(REVISION_LABEL), 0), read_pod(raw)) for raw in found]
        return self._seen

    async def _has_saved(self, pods: list[PodFacts], key: str) -> bool:
        """Whether the program has written a durable checkpoint since it was first asked under this key."""
        first = next((pod for pod in pods if pod.index == 0 and pod.ip), None)
        text = await self._fetch(first.ip, METRICS_PORT) if first else Malformed(reason="no pod")
        counters = text if isinstance(text, Malformed) else parse_metrics(text)
        if isinstance(counters, Malformed):
            return False
        is_async = bool(self._job.spec.knobs.async_checkpoint)
        return self._saves.has_grown(self._uid, key, counters.saves, is_async)

    async def _find_failing(self, newest: Revision | None) -> str:
        """Why the program cannot run: it has failed for good, or again and again with nothing of it left running."""
        if newest is None or newest.facts.is_complete:
            return ""
        facts = newest.facts
        if facts.failure_reason:
            return f"Job {facts.name} failed: {facts.failure_message or facts.failure_reason}"
        if facts.ready:
            return ""
        if facts.failed >= CRASHES:
            return f"the pods of Job {facts.name} failed {facts.failed} times"
        pods = [pod for number, pod in await self._pods() if number == newest.number] if facts.active else []
        restarts = max((pod.trainer.restarts for pod in pods), default=0)
        return f"the trainer of Job {facts.name} ended {restarts} times" if restarts >= CRASHES else ""

    # --- effects ------------------------------------------------------------------------------------------------------

    async def _perform(self, decision: Decision, values: Object) -> RunningState:
        step, note = decision.step, decision.note
        match step:
            case None:
                return RunningState(note=note)
            case Create(revision):
                return await self._create(revision, values, note)
            case Advance(revision, without_probe):
                done: object = await self._values.advance(values, revision, self._declared if without_probe else None)
            case Remove(facts):
                done = await self._client.delete(Kind.JOB, self._namespace, facts.name, facts.uid)
            case SetSuspend(facts, suspend):
                change = {"metadata": {"resourceVersion": facts.resource_version}, "spec": {"suspend": suspend}}
                done = await self._client.patch(Kind.JOB, self._namespace, facts.name, change)
        return _written(done, note)

    def _is_unprobed(self, values: Object) -> bool:
        """Whether it is on record that this very template could not run with the probe."""
        annotations = values["metadata"].get("annotations") or {}
        return annotations.get(UNPROBED_ANNOTATION) == self._declared

    async def _create(self, revision: int, values: Object, note: Note) -> RunningState:
        """The Job of a revision, after what its pods need: names for its ranks, and the probe where it can be had."""
        taken = await ensure_service(self._client, self._job)
        if isinstance(taken, Refused):
            name = service_name(self._name)
            return _squatted("Service", name) if taken.reason == "Squatted" else _refused(taken)
        is_out = self._is_unprobed(values)
        placed = None if is_out else await place_probe(self._client, self._namespace, self._probe, PROBE_TRUST_S)
        probe = None if is_out or isinstance(placed, Refused) else self._probe.name
        if revision > 0:  # the Job before is gone: with it may go the last use of an older probe
            await sweep_probes(self._client, self._namespace, self._probe)
        number = whole((values["metadata"].get("annotations") or {}).get(VALUES_ANNOTATION), 0)
        body = render_job(self._job, revision, probe, number)
        made = await self._client.create(Kind.JOB, self._namespace, body)
        if not isinstance(made, Refused):
            started = Note(reason=note.reason, sentence=f"0 of {self._job.spec.replicas} pods are ready.")
            return RunningState(note=started, acted=True, is_new=True)
        if not made.is_taken:
            return _refused(made)
        return await self._find_stray(revision) or RunningState(note=note, acted=True)


def _starting() -> RunningState:
    return RunningState(note=Note(reason=Reason.STARTING, sentence="The job's objects are being made."), acted=True)


def _written(done: object, note: Note) -> RunningState:
    """After a change: what others changed or deleted meanwhile is looked at again at once."""
    if isinstance(done, Refused) and not (done.is_outdated or done.is_gone):
        return _refused(done)
    return RunningState(note=note, acted=True)


def _squatted(kind: str, name: str) -> RunningState:
    sentence = f"{kind} {name} is there and belongs to somebody else; rename or delete it, or rename this job."
    return RunningState(note=Note(reason=Reason.SQUATTED, sentence=sentence))


def _refused(refusal: Refused) -> RunningState:
    """What the server says of the job. Where its namespace goes there is nothing left to say: ApiUnavailable."""
    if refusal.is_leaving:
        raise ApiUnavailable(f"nothing can be made any more: {refusal.message}", refusal)
    sentence = f"The API server refused ({refusal.status}): {refusal.message}"
    return RunningState(note=Note(reason=Reason.REFUSED_BY_SERVER, sentence=sentence))

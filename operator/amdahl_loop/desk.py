"""What do events touch? The queue, the jobs that are known, the policies in force and the memory of experiments.

An event only says that a job may have to be looked at. One that tells what the operator itself has just written says
nothing new: whoever wrote it has decided on what comes next.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.closed import check
from amdahl_loop.adapters.kube.index import Key, key_of
from amdahl_loop.adapters.kube.jobs import ShownJob
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.policies import list_policies, read_policy
from amdahl_loop.adapters.kube.transport import Request, UnreachableError
from amdahl_loop.domain.api.kinds import GROUP
from amdahl_loop.domain.children import JOB_LABEL
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.returning import find_left
from amdahl_loop.workqueue import Pass, WorkQueue

ECHOES = 4096
"""Writes whose events may still be on their way; an older one that comes after all costs one more look."""
POLICIES_S = 300.0
"""Between two looks at all policies."""
_ECHOING = (Kind.TRAINING_JOB.value.kind, Kind.JOB.value.kind)


class Said(NamedTuple):
    """What the owner of a job has said: whatever else of it changes is the work of machines."""

    uid: str
    generation: int
    marks: frozenset[tuple[str, str]]
    """Annotations of ours, such as the one that pauses its experiments."""

    @classmethod
    def of(cls, document: Object) -> Self:
        """What a TrainingJob, or an event of it, tells."""
        metadata = document["metadata"]
        annotations = (metadata.get("annotations") or {}).items()
        ours = frozenset((name, text) for name, text in annotations if name.startswith(f"{GROUP}/"))
        return cls(str(metadata.get("uid", "")), int(metadata.get("generation") or 0), ours)


class Roster:
    """The TrainingJobs that were seen and not yet deleted: whom a change of a policy concerns."""

    def __init__(self) -> None:
        self._said: dict[JobKey, Said] = {}

    def __contains__(self, key: JobKey) -> bool:
        """Whether a job was seen before."""
        return key in self._said

    def of(self, namespace: str) -> list[JobKey]:
        """The jobs of a namespace, by name."""
        return sorted(key for key in self._said if key.namespace == namespace)

    def see(self, key: JobKey, document: Object, is_gone: bool) -> bool:
        """Note a job as an event tells of it; whether its owner has said something new."""
        if is_gone:
            return self._said.pop(key, None) is not None
        before, self._said[key] = self._said.get(key), Said.of(document)
        return before != self._said[key]


@dataclass
class Pulse:
    """When the operator last did something; the kubelet restarts one that only seems to live."""

    clock: Callable[[], float] = time.monotonic
    at_s: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Something was done."""
        self.at_s = self.clock()

    @property
    def age_s(self) -> float:
        """Seconds since something was done."""
        return self.clock() - self.at_s


class Version(NamedTuple):
    """One object as it was at one moment; without a UID where it is gone."""

    uid: str
    resource_version: str

    @classmethod
    def of(cls, document: Object, is_gone: bool = False) -> Self:
        """The version that an object or an event tells of."""
        metadata = document["metadata"]
        return cls("" if is_gone else str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")))


class Echoes:
    """TrainingJobs and Jobs that the operator has written, and whose events have not come yet."""

    def __init__(self) -> None:
        self._written: OrderedDict[Version, None] = OrderedDict()

    def note(self, request: Request, answer: Object) -> None:
        """The operator was answered by an object. A patch that changed nothing left somebody else's version."""
        metadata = answer.get("metadata") or {}
        before = ((request.body or {}).get("metadata") or {}).get("resourceVersion")
        is_new = request.method == "POST" or before not in (None, metadata.get("resourceVersion"))
        if is_new and answer.get("kind") in _ECHOING:
            self._written[Version.of(answer)] = None
            if len(self._written) > ECHOES:
                self._written.popitem(last=False)

    def take(self, version: Version) -> bool:
        """Whether an event only tells of such a write; it is expected once."""
        return self._written.pop(version, version) is None


class Desk:
    """What events touch. Those of a job whose pass runs are weighed after it, once its own writes are known."""

    def __init__(
        self, client: KubeClient, recollection: Recollection, echoes: Echoes, advance: Pass[JobKey], workers: int
    ) -> None:
        self.recollection, self.pulse, self.roster = recollection, Pulse(), Roster()
        self.queue = WorkQueue(self._attend, workers)
        self._client, self.echoes, self._advance = client, echoes, advance
        self.works: tuple[asyncio.Task[None], ...] = ()
        """What goes on beside: the queue and the watches. None of it ends before the operator does."""
        self._meanwhile: dict[JobKey, list[tuple[Version, bool | None]]] = {}
        self._policies_heard = 0

    async def _attend(self, key: JobKey) -> float | None:
        """One pass over a job; what came in meanwhile asks for another, unless it was the pass's own doing."""
        self.pulse.beat()
        seen = self._meanwhile[key] = []
        try:
            return await self._advance(key)
        finally:
            del self._meanwhile[key]
            for version, is_changed in seen:
                self._wake(key, version, is_changed)

    def see_job(self, document: Object, is_gone: bool) -> None:
        """A TrainingJob was made, changed or deleted."""
        key = JobKey(*key_of(document))
        is_first = key not in self.roster and not is_gone
        is_changed = self.roster.see(key, document, is_gone)
        if not (is_first and self._leave(key, document)):
            self._wake(key, Version.of(document, is_gone), is_changed=is_changed)

    def _leave(self, key: JobKey, document: Object) -> bool:
        """Let a job rest as an operator before this one has left it; False where it has to be looked at."""
        known = self.recollection
        if self.queue.due_in_s(key) is not None or key in self._meanwhile:
            return False
        left = find_left(ShownJob(document=document), known, self._client.now_s())
        if left is None:
            return False
        known.told[key] = left.told
        known.rests.keep(key, left.rest)
        self.queue.add(key, left.look_in_s)
        return True

    async def see_run(self, document: Object, is_gone: bool) -> None:
        """A Job was made, changed or deleted."""
        self.recollection.finished.hear(document, is_gone)
        await self.see_child(document, is_gone)

    async def see_runs(self, namespace: str | None, documents: Sequence[Object]) -> None:
        """All Jobs that there are, after a time of which nothing was heard."""
        self.recollection.finished.compare(documents, namespace)
        await self.see_children(documents)

    async def see_pod(self, document: Object, is_gone: bool) -> None:
        """A pod was made, changed or deleted."""
        self.recollection.finished.hear_pod(document)
        await self.see_child(document, is_gone)

    async def see_pods(self, documents: Sequence[Object]) -> None:
        """All pods that there are, after a time of which nothing was heard."""
        for document in documents:
            self.recollection.finished.hear_pod(document)
        await self.see_children(documents)

    async def see_children(self, documents: Iterable[Object]) -> None:
        """All that jobs have, after a time of which nothing was heard."""
        self.recollection.rests.lose_track()
        for document in documents:
            await self.see_child(document, is_gone=False)

    async def see_child(self, document: Object, is_gone: bool) -> None:
        """Something of a job changed."""
        metadata = document["metadata"]
        job = (metadata.get("labels") or {}).get(JOB_LABEL)
        if job:
            self._wake(JobKey(metadata["namespace"], job), Version.of(document, is_gone))

    async def see_experiment(self, document: Object, is_gone: bool) -> None:
        """An open Experiment was made or changed, or is gone: closed or deleted, which only a read can say."""
        key, index = key_of(document), self.recollection.index
        if not is_gone and index.hear(document):
            self.see_ledger(key, index.job_of(key))
        elif is_gone:
            try:
                await check(self._client, index, key, self.see_ledger)
            except ApiUnavailable:
                index.doubt(key)  # whoever wants to know reads it
                self.see_ledger(key, index.job_of(key))

    def see_ledger(self, key: Key, job: str) -> None:
        """What a job may decide by has changed."""
        if job:
            self._ask(JobKey(key.namespace, job))

    def see_policy(self, document: Object, is_gone: bool) -> None:
        """A TuningPolicy was made, changed or deleted: every job of its namespace is looked at."""
        namespace, name = key_of(document)
        self._policies_heard += 1
        known = self.recollection.policies.setdefault(namespace, {})
        if is_gone:
            known.pop(name, None)
        else:
            known[name] = read_policy(namespace, name, document.get("spec") or {})
        for key in self.roster.of(namespace):
            self._ask(key)

    async def read_policies(self, namespace: str | None) -> None:
        """Take the policies of a namespace, or (None) of all, as they are now."""
        before, known = self._policies_heard, self.recollection.policies
        found = await list_policies(self._client, namespace)
        if self._policies_heard != before:
            return  # what an event has told meanwhile may be younger
        for name in {*found, *known} if namespace is None else {namespace}:
            if found.get(name, {}) != known.get(name, {}):
                known[name] = found.get(name, {})
                for key in self.roster.of(name):
                    self._ask(key)

    async def keep_reading_policies(self, namespace: str | None, pause_s: float = POLICIES_S) -> None:
        """Again and again: kopf tells of no deletion that happened while its watch was broken."""
        while True:
            await asyncio.sleep(pause_s)
            with contextlib.suppress(ApiUnavailable, UnreachableError):  # the next time will do
                await self.read_policies(namespace)

    def _wake(self, key: JobKey, version: Version, is_changed: bool | None = None) -> None:
        """Something was told of a job itself (`is_changed`: whether by its owner), or (None) of what belongs to it."""
        if key in self._meanwhile:
            self._meanwhile[key].append((version, is_changed))
        elif self.echoes.take(version):
            return
        elif is_changed is None:
            self._ask(key)
        else:  # what it says now is read by every pass
            self.queue.add(key, is_changed=is_changed)

    def _ask(self, key: JobKey) -> None:
        """Something that a job is decided by has changed, and not in the job itself: it is looked at as a whole."""
        self.recollection.rests.hear(key)
        self.queue.add(key)

"""Which jobs had nothing that runs when the operator started? So that each need not be asked for on its own.

One list at the start, of which little is kept, and the watch that goes on from it: whatever it tells of a Job, that job
is read live from then on. So it is once a pass has listed its Jobs, since the watch tells of the operator's own writes
later than their answers do. What has ended changes no more, so most of what lies in a large cluster is never asked for.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import JobFacts, read_job
from amdahl_loop.adapters.kube.rows import Key
from amdahl_loop.adapters.kube.transport import BARE_LIST
from amdahl_loop.domain.children import JOB_LABEL, REVISION_LABEL

PAGE = 250
"""Jobs a page of the list: a few MiB with their templates."""


MOST = 100_000
"""Names that are kept of those to ask for, or they would grow with every job that ever was."""


class Place(NamedTuple):
    """One Job at one moment."""

    namespace: str
    name: str
    resource_version: str

    @classmethod
    def of(cls, raw: Object) -> "Place":
        """Where and when a Job is shown."""
        metadata = raw["metadata"]
        return cls(metadata["namespace"], metadata["name"], str(metadata.get("resourceVersion", "")))


class FinishedJobs:
    """The only Job of each TrainingJob that had ended or was suspended, without a block; and which jobs had nothing."""

    def __init__(self) -> None:
        self._known: dict[Key, JobFacts] = {}
        self._others: set[Key] = set()
        """What these have has to be asked for."""
        self._listed: set[str | None] = set()
        self._bearers: dict[Key, Key] = {}
        """Whose each Job was at the start: its labels may be changed."""

    async def load(self, client: KubeClient, namespace: str | None) -> str:
        """List the Jobs of a namespace, or (None) of all; the version from which on changes are to be heard."""
        version, seen = "", defaultdict[Key, list[JobFacts | None]](list)
        async for page in client.pages(Kind.JOB, namespace, JOB_LABEL, PAGE):
            version = version or page.resource_version
            for raw in page.items:
                facts = read_job(raw)
                is_settled = (facts.is_complete or facts.is_at_rest) and not facts.is_deleting
                seen[_job_of(raw)].append(facts if is_settled and REVISION_LABEL in facts.labels else None)
        for key, found in seen.items():
            if len(found) == 1 and found[0] is not None:
                self._known[key] = found[0]
                self._bearers[Key(key.namespace, found[0].name)] = key
            else:
                self._others.add(key)
        return version

    async def load_pods(self, client: KubeClient, namespace: str | None) -> str:
        """List the pods beside those Jobs, by metadata; the version from which on changes are to be heard."""
        version = ""
        async for page in client.pages(Kind.POD, namespace, JOB_LABEL, PAGE, accept=BARE_LIST):
            version = version or page.resource_version
            for raw in page.items:
                self.hear_pod(raw)
        self._listed.add(namespace)
        return version

    def hear_pod(self, raw: Object) -> None:
        """There is, or was, a pod: unless its Job is known, its job is to be read live from now on."""
        key = _job_of(raw)
        if key not in self._known:
            self.ask(key)

    def hear(self, raw: Object, is_gone: bool) -> None:
        """Something was told of a Job: unless it is known already, its job is to be read live from now on."""
        place, now = Place.of(raw), _job_of(raw)
        for key in {now, self._bearers.get(Key(place.namespace, place.name), now)}:
            facts = self._known.get(key)
            if facts is None or is_gone or place != _place(key, facts):
                self.ask(key)

    def compare(self, there: Iterable[Object], namespace: str | None) -> None:
        """All Jobs that are there, after a time of which nothing was heard: who is not as he was is read live."""
        found = defaultdict[Key, set[Place]](set)
        for raw in there:
            found[_job_of(raw)].add(Place.of(raw))
        for key in {*self._known, *found}:
            facts = self._known.get(key)
            is_same = facts is not None and found.get(key) == {_place(key, facts)}
            if namespace in (None, key.namespace) and not is_same:
                self.ask(key)

    def ask(self, key: Key) -> None:
        """The Jobs of a TrainingJob are to be asked for from now on."""
        self._known.pop(key, None)
        self._others.add(key)
        if len(self._others) > MOST:  # the start is long past: from now on everybody is asked
            self._listed.clear()
            self._others.clear()

    def forget(self, key: Key) -> None:
        """A TrainingJob is gone; whoever bears its name after it is younger than the list."""
        self._known.pop(key, None)
        self._others.discard(key)

    def find(self, namespace: str, job: str, uid: str) -> tuple[JobFacts, ...] | None:
        """What a TrainingJob has that is older than the lists: nothing, or one Job that does not run; None: ask.

        Nothing is neither Jobs nor pods, so that nobody who bore the name before is still there either.
        """
        key = Key(namespace, job)
        if key in self._others or self._listed.isdisjoint((None, namespace)):
            return None
        facts = self._known.get(key)
        if facts is None:
            return ()
        return (facts,) if facts.owner_uid == uid else None


def _place(key: Key, facts: JobFacts) -> Place:
    return Place(key.namespace, facts.name, facts.resource_version)


def _job_of(raw: Object) -> Key:
    """The TrainingJob that a Job says it is of."""
    metadata = raw["metadata"]
    return Key(metadata["namespace"], (metadata.get("labels") or {}).get(JOB_LABEL, ""))

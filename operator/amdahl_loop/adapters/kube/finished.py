"""Which jobs had run to their end when the operator started? So that each need not be asked for on its own.

One list at the start, of which little is kept, and the watch that goes on from it: whatever it tells of a Job, that job
is read live from then on. What has ended changes no more, so most of what lies in a large cluster is never asked for.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import JobFacts, read_job
from amdahl_loop.adapters.kube.rows import Key
from amdahl_loop.domain.children import JOB_LABEL, REVISION_LABEL

PAGE = 250
"""Jobs a page of the list: a few MiB with their templates."""


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
    """The only Job of each TrainingJob that had ended; no block of a trial was there beside it."""

    def __init__(self) -> None:
        self._known: dict[Key, JobFacts] = {}
        self._bearers: dict[Key, Key] = {}
        """Whose each Job was at the start: its labels may be changed."""

    async def load(self, client: KubeClient, namespace: str | None) -> str:
        """List the Jobs of a namespace, or (None) of all; the version from which on changes are to be heard."""
        version, seen = "", defaultdict[Key, list[JobFacts | None]](list)
        async for page in client.pages(Kind.JOB, namespace, JOB_LABEL, PAGE):
            version = version or page.resource_version
            for raw in page.items:
                facts = read_job(raw)
                has_ended = REVISION_LABEL in facts.labels and facts.is_complete and not facts.is_deleting
                seen[_job_of(raw)].append(facts if has_ended else None)
        for key, found in seen.items():
            if len(found) == 1 and found[0] is not None:
                self._known[key] = found[0]
                self._bearers[Key(key.namespace, found[0].name)] = key
        return version

    def hear(self, raw: Object, is_gone: bool) -> None:
        """Something was told of a Job: unless it is known already, its job is to be read live from now on."""
        place, now = Place.of(raw), _job_of(raw)
        for key in {now, self._bearers.get(Key(place.namespace, place.name), now)}:
            facts = self._known.get(key)
            if facts is not None and (is_gone or place != _place(key, facts)):
                del self._known[key]

    def compare(self, there: Iterable[Object], namespace: str | None) -> None:
        """All Jobs that are there, after a time of which nothing was heard: who is not as he was is read live."""
        found = defaultdict[Key, set[Place]](set)
        for raw in there:
            found[_job_of(raw)].add(Place.of(raw))
        for key, facts in list(self._known.items()):
            is_same = found.get(key) == {_place(key, facts)}
            if namespace in (None, key.namespace) and not is_same:
                del self._known[key]

    def find(self, namespace: str, job: str, uid: str) -> tuple[JobFacts, ...]:
        """The one Job of a TrainingJob, where it has ended; nothing where it has to be asked for."""
        facts = self._known.get(Key(namespace, job))
        return () if facts is None or facts.owner_uid != uid else (facts,)


def _place(key: Key, facts: JobFacts) -> Place:
    return Place(key.namespace, facts.name, facts.resource_version)


def _job_of(raw: Object) -> Key:
    """The TrainingJob that a Job says it is of."""
    metadata = raw["metadata"]
    return Key(metadata["namespace"], (metadata.get("labels") or {}).get(JOB_LABEL, ""))

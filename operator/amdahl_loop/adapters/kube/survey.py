"""What do the jobs and the experiments of a cluster say? Read for people; nothing here ever writes.

Needs get and list of our three kinds, which the chart adds to the cluster's own role `view`. Who may also watch
them, as there, spares the server the pages.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.experiments import PAGE
from amdahl_loop.adapters.kube.index import ExperimentIndex, key_of
from amdahl_loop.adapters.kube.jobs import SeenJob, look_up, see
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import fill_index
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable, read_experiment
from amdahl_loop.domain.believing import sift_applications
from amdahl_loop.domain.ledger import JobMemory
from amdahl_loop.ports import Clock

PARALLEL_READS = 8
"""Open experiments, and those in force, are read live; so many at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One Experiment as it was read; `stored` says why where it cannot be."""

    namespace: str
    stored: StoredExperiment | Unreadable


class Kept(NamedTuple):
    """Every Experiment that was asked for: those that can be read, oldest first and open ones last, and the others."""

    readable: tuple[tuple[str, StoredExperiment], ...]
    """Each with its namespace."""
    unreadable: tuple[tuple[str, Unreadable], ...]


async def list_experiments(client: KubeClient, namespace: str | None) -> Kept:
    """All Experiments of a namespace, or (None) of all, with their whole evidence."""
    documents = [_read(document) async for document in client.list(Kind.EXPERIMENT, namespace, limit=PAGE)]
    return sort_out(documents)


def sort_out(found: Iterable[Found]) -> Kept:
    """The readable ones in the order in which they ended."""
    everything = tuple(found)
    readable = [(one.namespace, one.stored) for one in everything if isinstance(one.stored, StoredExperiment)]
    readable.sort(key=lambda item: (_closing_s(item[1]), item[0], item[1].experiment.name))
    return Kept(
        readable=tuple(readable),
        unreadable=tuple((one.namespace, one.stored) for one in everything if isinstance(one.stored, Unreadable)),
    )


async def find_experiment(client: KubeClient, namespace: str, name: str) -> Found | None:
    """The Experiment of that name; None where there is none."""
    document = await client.get(Kind.EXPERIMENT, namespace, name)
    return None if document is None else _read(document)


async def list_jobs(client: KubeClient, namespace: str | None) -> tuple[SeenJob, ...]:
    """All TrainingJobs of a namespace, or (None) of all, by namespace and name."""
    found = [see(document) async for document in client.list(Kind.TRAINING_JOB, namespace)]
    return tuple(sorted(found, key=lambda seen: (seen.namespace, seen.name)))


async def find_job(client: KubeClient, namespace: str, name: str) -> SeenJob | None:
    """The TrainingJob of that name; None where there is none."""
    return await look_up(client, namespace, name)


class Records:
    """What the operator would recall of a job, from one list of all Experiments."""

    def __init__(self, client: KubeClient, index: ExperimentIndex, clock: Clock) -> None:
        self._client, self._index, self._clock = client, index, clock
        self._turns = asyncio.Semaphore(PARALLEL_READS)

    @classmethod
    async def read(cls, client: KubeClient, namespace: str | None, clock: Clock) -> "Records":
        """List them; what nobody could have written is passed over, as the operator does."""
        index = ExperimentIndex()
        await fill_index(client, index, namespace, is_writer=False)
        return cls(client, index, clock)

    async def recall(self, seen: SeenJob, fingerprint: str, family: str) -> JobMemory:
        """The very memory that a pass of the operator decides by. LedgerUnreadableError as there."""
        async with self._turns:
            ledger = KubeLedger(self._client, self._index, seen, self._clock)
            return sift_applications(await ledger.recall(seen.uid, fingerprint, family), seen.uid)


def _read(document: Object) -> Found:
    return Found(namespace=key_of(document).namespace, stored=read_experiment(document))


def _closing_s(stored: StoredExperiment) -> float:
    return inf if stored.closed_at_s is None else stored.closed_at_s

"""What does a pass recall of a job: live where that may matter, else from memory?

Experiments that are open, in force or being written are read anew; what has closed comes from the index that all jobs
share. What is older than what the server has shown already is not believed.
"""

from collections.abc import Sequence
from math import inf

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.experiments import PAGE
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable, read_experiment
from amdahl_loop.domain.api.training_job import read_observation
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.ledger import JobMemory, Observation
from amdahl_loop.domain.telemetry import Malformed
from amdahl_loop.ports import Clock

STALE_S = 60.0
"""So long an Experiment is not believed that is shown as it was before; then the server's store was put back."""


class LedgerUnreadableError(Exception):
    """An Experiment of the job's cannot be read by this version; the message names it, and the fix."""


class LedgerReader:
    """Reads for one pass over one job. The index is shared by all jobs, `seen` is this job's."""

    def __init__(self, client: KubeClient, index: ExperimentIndex, seen: SeenJob, clock: Clock) -> None:
        self._client = client
        self._index = index
        self._clock = clock
        self._recalled: dict[str, StoredExperiment] = {}
        self._own: tuple[str, Sequence[StoredExperiment]] | None = None
        self.seen = seen
        """The job as it stands after this pass's own writes."""
        self.has_kin = True
        """Whether other jobs' experiments are recalled too."""

    async def recall(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        """All that is known of a job, of its fingerprint and of its family, in the job's namespace.

        What is open or in force is read live, the rest comes from the index. Closed experiments are compact: without
        blocks and votes. Of other jobs' experiments the newest answer to each question and the latest few are recalled.
        """
        own = await self._read_own(job_uid)
        asked = (self.seen.namespace, job_uid, fingerprint, family)
        kin = [self._index.recall(key) for key in self._index.of_kin(*asked)] if self.has_kin else ()
        known = [*own, *(stored for stored in kin if isinstance(stored, StoredExperiment))]
        known.sort(key=_closing_s)
        applications = [application for stored in own for application in stored.applications]
        return JobMemory(
            observations=self._observations(job_uid),
            experiments=tuple(
                stored.experiment
                for stored in known
                if stored.experiment.plan.job_uid == job_uid or stored.experiment.plan.fingerprint == fingerprint
            ),
            closed_at_s={s.experiment.name: s.closed_at_s for s in known if s.closed_at_s is not None},
            applications=tuple(sorted(applications, key=lambda application: application.at_s)),
            family=tuple(
                stored.experiment
                for stored in known
                if stored.experiment.verdict is not None
                and stored.experiment.plan.family == family
                and stored.experiment.plan.fingerprint != fingerprint
            ),
        )

    async def recall_own(self, job_uid: str) -> JobMemory:
        """The part of it that the job's own experiments make; read once a pass, and again after a write."""
        own = await self._read_own(job_uid)
        applications = [application for stored in own for application in stored.applications]
        return JobMemory(
            observations=self._observations(job_uid),
            experiments=tuple(stored.experiment for stored in sorted(own, key=_closing_s)),
            applications=tuple(sorted(applications, key=lambda application: application.at_s)),
        )

    async def experiments(self) -> tuple[Experiment, ...]:
        """Every experiment of the job's namespace with all its evidence, oldest first; read live."""
        listed = self._client.list(Kind.EXPERIMENT, self.seen.namespace, limit=PAGE)
        found = [believe(read_experiment(document)) async for document in listed]
        return tuple(stored.experiment for stored in sorted(found, key=_closing_s))

    def _observations(self, job_uid: str) -> tuple[Observation, ...]:
        """The newest observation, which the job's status keeps."""
        reported = self.seen.status.observation
        if reported is None or self.seen.job is None or job_uid != self.seen.uid:
            return ()
        observation = read_observation(reported, self.seen.job)
        return () if isinstance(observation, Malformed) else (observation,)

    async def _read_own(self, job_uid: str) -> Sequence[StoredExperiment]:
        """A job's own experiments, oldest first, as they stand after this pass's own writes."""
        if self._own is None or self._own[0] != job_uid:
            keys = self._index.of_job(self.seen.namespace, job_uid)
            self._own = job_uid, [found for key in keys if (found := await self._read(key)) is not None]
            self._recalled = {stored.experiment.name: stored for stored in self._own[1]}
        return self._own[1]

    async def _read(self, key: Key) -> StoredExperiment | None:
        """An own experiment: live where that may matter, else compact; None where it is gone."""
        if not self._index.is_unsettled(key):
            compact = self._index.recall(key)
            return None if compact is None else believe(compact)
        document = await self._get(key)
        return None if document is None else believe(self._index.parse(document))

    async def _get(self, key: Key) -> Object | None:
        """An Experiment as the server shows it now; ApiUnavailable where that is older than what it has shown."""
        document = await self._client.get(Kind.EXPERIMENT, *key)
        if document is None:
            self._index.forget(key)
        elif self._index.is_older(document, self._clock(), STALE_S):
            raise ApiUnavailable(f"Experiment {key.namespace}/{key.name} is shown as it was before")
        else:
            self._index.learn(document)
        return document


def believe(stored: StoredExperiment | Unreadable) -> StoredExperiment:
    """The experiment; LedgerUnreadableError where it cannot be used."""
    if isinstance(stored, Unreadable):
        raise LedgerUnreadableError(
            f"Experiment {stored.name} cannot be read: {stored.reason}; use the version that wrote it, or delete it"
        )
    return stored


def _closing_s(stored: StoredExperiment) -> float:
    """When an experiment closed; an open one comes after all others."""
    return inf if stored.closed_at_s is None else stored.closed_at_s

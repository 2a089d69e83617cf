"""What do the entries of a ledger add up to?

Entries never change, so each is parsed and folded in once: a pass of the loop costs what was recorded since the last
one, however long the ledger is.
"""

from collections import defaultdict

from amdahl_loop.adapters.sqlite.entries import Body, Closed, Lost, Measured, Observed
from amdahl_loop.domain.experiments import Experiment, Plan
from amdahl_loop.domain.ledger import Application, JobMemory, Observation


class Fold:
    """Everything up to entry `seq`, as values; when each closed experiment was closed, in seconds since the epoch."""

    def __init__(self) -> None:
        self.seq = 0
        self._experiments: dict[str, Experiment] = {}
        self.closed_at_s: dict[str, float] = {}
        self._observations: defaultdict[str, list[Observation]] = defaultdict(list)
        self._applications: defaultdict[str, list[Application]] = defaultdict(list)
        self._recalled: tuple[tuple[str, str, str], JobMemory] | None = None

    def add(self, seq: int, body: Body) -> None:
        """Fold the next entry in."""
        experiments = self._experiments
        match body:
            case Plan():
                experiments[body.name] = Experiment(plan=body)
            case Measured():
                experiments[body.experiment] = experiments[body.experiment].with_block(body.record)
            case Lost():
                experiments[body.experiment] = experiments[body.experiment].with_loss(body.loss)
            case Closed():
                experiments[body.experiment] = experiments[body.experiment].with_verdict(body.verdict)
                self.closed_at_s[body.experiment] = body.at_s
            case Observed():
                self._observations[body.job_uid].append(body.observation)
            case Application():
                self._applications[body.job_uid].append(body)
        self.seq = seq
        self._recalled = None

    def experiments(self) -> tuple[Experiment, ...]:
        """Every experiment, in the order of their plans."""
        return tuple(self._experiments.values())

    def recall(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        """What the port's `recall` says; while nothing is added, the very same value: thought over once."""
        asked = (job_uid, fingerprint, family)
        if self._recalled is None or self._recalled[0] != asked:
            self._recalled = asked, self._remember(*asked)
        return self._recalled[1]

    def _remember(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        every = self.experiments()
        return JobMemory(
            observations=tuple(self._observations.get(job_uid, ())),
            experiments=tuple(e for e in every if e.plan.job_uid == job_uid or e.plan.fingerprint == fingerprint),
            closed_at_s=self.closed_at_s,
            applications=tuple(self._applications.get(job_uid, ())),
            family=tuple(
                e
                for e in every
                if e.plan.family == family and e.plan.fingerprint != fingerprint and e.verdict is not None
            ),
        )

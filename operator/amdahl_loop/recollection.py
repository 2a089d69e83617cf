"""What does the operator remember between passes? Nothing that a restart would miss, but the time things take."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from amdahl_loop.adapters.kube.claims import AccessModes
from amdahl_loop.adapters.kube.finished import FinishedJobs
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.pressure import Waiting
from amdahl_loop.adapters.kube.runner import Memory
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.metrics import Told
from amdahl_loop.domain.actions import Admission
from amdahl_loop.domain.fleet import Limits, Member, admit
from amdahl_loop.domain.isolation import Obstacle
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.policy import TuningPolicySpec

REST_S = 1800.0
"""So long the watches are believed that nothing belonging to a job at rest has changed; then all is read again."""
NOTHING_SEEN = (float("-inf"), Waiting())
"""Of a namespace that nobody has looked around in."""


class JobKey(NamedTuple):
    """Which TrainingJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Fleet:
    """Every job that asks for a trial, as its last pass saw it: whom a trial has to be shared with."""

    def __init__(self) -> None:
        self._members: dict[JobKey, Member] = {}
        self._granted: tuple[Limits, Mapping[str, Admission]] | None = None

    def __contains__(self, key: JobKey) -> bool:
        """Whether a job asked for a trial at its last pass."""
        return key in self._members

    def join(self, key: JobKey, member: Member) -> None:
        """A job asks for a trial, or has one."""
        if self._members.get(key) != member:
            self._members[key], self._granted = member, None

    def leave(self, key: JobKey) -> None:
        """A job asks for nothing, or is gone."""
        if self._members.pop(key, None) is not None:
            self._granted = None

    def admit(self, key: JobKey, limits: Limits) -> Admission:
        """Whether a job that asks may have its trial now. The fleet's order is found anew when something changed."""
        if self._granted is None or self._granted[0] != limits:
            self._granted = limits, admit(self._members.values(), limits)
        return self._granted[1].get(self._members[key].key, Admission())


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What was found out of a job's spec: who it is, what keeps trials from starting, how its storage may be shared."""

    uid: str
    generation: int
    fingerprint: str
    family: str
    access_modes: AccessModes | None = None
    obstacles: tuple[Obstacle, ...] = ()
    """Once the access modes are known."""


class Heard(NamedTuple):
    """How much had been told of what a job is decided by, beside the job itself: its children, the ledger, policies."""

    of_all: int
    of_job: int
    of_namespace: int


@dataclass(frozen=True, slots=True)
class Rest:
    """A job for which nothing is to be done until something changes: as it was when a whole pass found that."""

    digest: int
    """What that pass left in the TrainingJob (`ShownJob.digest`)."""
    heard: Heard
    at_s: float
    breakdown: Breakdown | None
    """Where its time goes while it runs."""


class Rests:
    """Which jobs are at rest, and what has been told of each since.

    The TrainingJob itself is read at every look; all else is watched. Whatever is told of it counts, whether it is
    news or not, so that an event which comes late costs one whole pass, and never the other way round.
    """

    def __init__(self, index: ExperimentIndex) -> None:
        self._index = index
        self._rests: dict[JobKey, Rest] = {}
        self._told: Counter[JobKey] = Counter()
        self._silences = 0

    def hear(self, key: JobKey) -> None:
        """Something was told of what a job is decided by."""
        self._told[key] += 1

    def lose_track(self) -> None:
        """Nothing was heard for a while: what went meanwhile is not told of."""
        self._silences += 1

    def heard(self, key: JobKey) -> Heard:
        """All that was told until now: to be asked for before a pass begins to read."""
        return Heard(self._silences, self._told[key], self._index.news[key.namespace])

    def keep(self, key: JobKey, rest: Rest) -> None:
        """A whole pass has found that a job is at rest."""
        self._rests[key] = rest

    def find(self, key: JobKey, digest: int, now_s: float) -> Rest | None:
        """The rest that a job is at, while it is as it was left, and nothing was told of the others."""
        rest = self._rests.get(key)
        if rest is None:
            return None
        if (rest.digest, rest.heard) == (digest, self.heard(key)) and 0 <= now_s - rest.at_s < REST_S:
            return rest
        del self._rests[key]
        return None

    def forget(self, key: JobKey) -> None:
        """A job is gone."""
        self._rests.pop(key, None)
        self._told.pop(key, None)


@dataclass
class Recollection:
    """One for all jobs; begun anew by a restart."""

    since_s: float
    index: ExperimentIndex
    rests: Rests = field(init=False)
    policies: dict[str, dict[str, TuningPolicySpec]] = field(default_factory=dict)
    """TuningPolicies by namespace and name, kept by their events."""
    finished: FinishedJobs = field(default_factory=FinishedJobs)
    runs: Memory = field(default_factory=Memory)
    saves: SaveCounts = field(default_factory=SaveCounts)
    fleet: Fleet = field(default_factory=Fleet)
    told: dict[JobKey, Told] = field(default_factory=dict)
    """What each job reports: what the operator's own metrics add up."""
    told_s: dict[JobKey, float] = field(default_factory=dict)
    """When a job was last described."""
    in_flight: dict[JobKey, str] = field(default_factory=dict)
    """The block that runs for a job, as its last pass saw it."""
    waiting: dict[tuple[str, bool], tuple[float, Waiting]] = field(default_factory=dict)
    """What waited in a namespace, its queues too or not, and when that was seen."""
    derived: dict[JobKey, Derived] = field(default_factory=dict)
    """What follows from a job's spec alone: its spec is large, and seldom changes."""
    swept: dict[JobKey, str] = field(default_factory=dict)
    """UIDs of jobs that have no block but the present one."""

    def __post_init__(self) -> None:
        self.rests = Rests(self.index)

    def give_way(self, key: JobKey) -> bool:
        """A job can have no trial: others get its place. Whether a block of its may be there."""
        self.fleet.leave(key)
        return self.in_flight.pop(key, None) is not None or key not in self.swept

    def forget(self, key: JobKey) -> None:
        """A job is gone: nothing of it stays, or an operator would grow with every job that it has ever seen."""
        uid = self.swept.pop(key, "")
        self.runs.forget(uid)
        self.saves.forget(uid)
        self.fleet.leave(key)
        self.rests.forget(key)
        self.finished.forget(Key(*key))
        for known in (self.told, self.told_s, self.in_flight, self.derived):
            known.pop(key, None)

"""What does the operator remember between passes? Nothing that a restart would miss, but the time things take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from amdahl_loop.adapters.kube.claims import AccessModes
from amdahl_loop.adapters.kube.finished import FinishedJobs
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.pressure import Waiting
from amdahl_loop.adapters.kube.runner import Memory
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.metrics import Told
from amdahl_loop.domain.actions import Admission
from amdahl_loop.domain.fleet import Limits, Member, admit
from amdahl_loop.domain.isolation import Obstacle
from amdahl_loop.domain.policy import TuningPolicySpec

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


@dataclass
class Recollection:
    """One for all jobs; begun anew by a restart."""

    since_s: float
    index: ExperimentIndex
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

    def forget(self, key: JobKey) -> None:
        """A job is gone: nothing of it stays, or an operator would grow with every job that it has ever seen."""
        uid = self.swept.pop(key, "")
        self.runs.forget(uid)
        self.saves.forget(uid)
        self.fleet.leave(key)
        for known in (self.told, self.told_s, self.in_flight, self.derived):
            known.pop(key, None)

"""What does the operator remember between passes? Nothing that a restart would miss, but the time things take."""

from dataclasses import dataclass, field
from typing import NamedTuple

from amdahl_loop.adapters.kube.claims import AccessModes
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.pressure import Waiting
from amdahl_loop.adapters.kube.runner import Memory
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.fleet import Member
from amdahl_loop.domain.policy import TuningPolicySpec

NOTHING_SEEN = (float("-inf"), Waiting())
"""Of a namespace that nobody has looked around in."""


class JobKey(NamedTuple):
    """Which TrainingJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass
class Recollection:
    """One for all jobs; begun anew by a restart."""

    since_s: float
    index: ExperimentIndex
    policies: dict[str, dict[str, TuningPolicySpec]] = field(default_factory=dict)
    """TuningPolicies by namespace and name, kept by their events."""
    runs: Memory = field(default_factory=Memory)
    saves: SaveCounts = field(default_factory=SaveCounts)
    fleet: dict[JobKey, Member] = field(default_factory=dict)
    """Every job as its last pass saw it: whom a trial has to be shared with."""
    statuses: dict[JobKey, TrainingJobStatus] = field(default_factory=dict)
    """What each job reports: what the operator's own metrics add up."""
    told_s: dict[JobKey, float] = field(default_factory=dict)
    """When a job was last described."""
    in_flight: dict[JobKey, str] = field(default_factory=dict)
    """The block that runs for a job, as its last pass saw it."""
    waiting: dict[tuple[str, bool], tuple[float, Waiting]] = field(default_factory=dict)
    """What waited in a namespace, its queues too or not, and when that was seen."""
    access_modes: dict[JobKey, tuple[int, AccessModes]] = field(default_factory=dict)
    """How the storage of a job may be shared, and the generation of the spec that this was asked for."""
    swept: dict[JobKey, str] = field(default_factory=dict)
    """UIDs of jobs that have no block but the present one."""

    def forget(self, key: JobKey) -> None:
        """A job is gone: nothing of it stays, or an operator would grow with every job that it has ever seen."""
        uid = self.swept.pop(key, "")
        self.runs.forget(uid)
        self.saves.forget(uid)
        for known in (self.fleet, self.statuses, self.told_s, self.in_flight, self.access_modes):
            known.pop(key, None)

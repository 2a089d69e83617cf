"""When may a block that found no place be tried again?

A cluster may have no device free for a trial, refuse it or take it away before anything is known, and a job that takes
turns with its trials may not have saved its work. Such a block says nothing about either arm: it uses up none of the
plan's blocks. Every try is on record (`Loss.why`); the next one waits, twice as long each time, and after a day without
a place the experiment ends undecided. Where the job has stood still for a try, the waits are longer.
"""

from typing import NamedTuple

from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.tuning import Placement
from amdahl_loop.domain.values import Frozen


class Pace(NamedTuple):
    """The waits between tries, seconds: the first one, and the longest."""

    first_s: float
    longest_s: float


BESIDE = Pace(first_s=120.0, longest_s=7200.0)
"""Two hours: devices that come free in the night are found in the same night, and few tries fill an Experiment."""
STOPPING = Pace(first_s=1800.0, longest_s=86400.0)
"""The job has made way for nothing, and begun anew: six times on the first day; for a win in force, once a day then."""
JITTER = 0.2
"""A wait is longer or shorter by up to this share, so that trials of many jobs do not come back together."""
PATIENCE_H = 24.0
"""A block that found no place for so long will find none: the cluster is full, or the template asks for too much."""

CLOCK_S = 3600.0
"""By so much a clock may be set back, and a try that it says is to come still counts as just made."""

NO_CHECKPOINT = "no_checkpoint"
"""First word of `Loss.why` where the job could not make way, since it had saved nothing."""
NO_NODE = "unschedulable"
"""First word of `Loss.why` where no node or quota had room."""


class Waiting(Frozen):
    """A block that has found no place so far: since when, why the last time, and how long that waits for another."""

    tries: int
    since_s: float
    tried_at_s: float
    wait_s: float
    why: str

    @property
    def until_s(self) -> float:
        """When it is tried again."""
        return self.tried_at_s + self.wait_s

    @property
    def reason(self) -> Reason:
        """The same in one word."""
        return _REASONS.get(self.why.partition(":")[0], Reason.NOT_LET_RUN)

    def is_over(self, now_s: float) -> bool:
        """Whether it has been tried for long enough."""
        return now_s - self.since_s >= 3600 * PATIENCE_H

    def holds(self, now_s: float) -> bool:
        """Whether the next try has to wait; a clock that was set back is not waited for."""
        return self.tried_at_s <= now_s + CLOCK_S and now_s < self.until_s

    @property
    def sentence(self) -> str:
        """How it stands, in words."""
        times = "once" if self.tries == 1 else f"{self.tries} times"
        return (
            f"{_SAY[self.reason]}, tried {times}: {self.why}; tried again later, given up {PATIENCE_H:g} h after the "
            "first time"
        )

    @property
    def conclusion(self) -> str:
        """Why it was given up, in words."""
        return f"{_SAY[self.reason]} in {PATIENCE_H:g} h and {self.tries} tries: {self.why}"


_REASONS = {NO_CHECKPOINT: Reason.NOT_SAVED, NO_NODE: Reason.NO_SPARE_DEVICES}
_SAY = {
    Reason.NOT_LET_RUN: "the cluster did not let a trial run",
    Reason.NO_SPARE_DEVICES: "no spare devices for a trial",
    Reason.NOT_SAVED: "the job has not saved its work, so it cannot make way for a trial",
}


def find_waiting(experiment: Experiment, run: str, placement: Placement) -> Waiting | None:
    """How a block's run stands that found no place; None where it was not tried yet."""
    tried = [loss for loss in experiment.losses if loss.run == run and loss.why]
    if not tried:
        return None
    last, tries = tried[-1], len(tried)
    has_stopped = placement is Placement.IN_TURN and last.why.partition(":")[0] != NO_CHECKPOINT
    return Waiting(
        tries=tries,
        since_s=min(loss.started_at_s for loss in tried),
        tried_at_s=last.started_at_s,
        wait_s=wait_s(run, tries, STOPPING if has_stopped else BESIDE),
        why=last.why,
    )


def wait_s(run: str, tries: int, pace: Pace) -> float:
    """Seconds before the next try after so many: doubled each time up to a bound, and spread by the run's own name."""
    spread = int(hash_text(run, str(tries))[:8], 16) / 0xFFFFFFFF
    return min(pace.longest_s, pace.first_s * 2.0 ** min(tries - 1, 20)) * (1 + JITTER * (2 * spread - 1))

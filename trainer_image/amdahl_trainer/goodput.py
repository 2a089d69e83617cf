"""What did a run's device time buy? `held = useful + badput`, to the nanosecond, over every restart.

All numbers are device-nanoseconds: the laps of every rank's ledger, added up. Laps of one ledger follow each other
without a gap, so what is held is the time from the start of the processes to the last agreement of the ranks. Useful is
the `compute` of steps that the run still has. Everything else is badput, by phase, and so is the compute of steps that
a restart threw away: those after the step that it resumed from, `lost`. Steps that no checkpoint holds yet count as
useful until a restart says otherwise.

Of what is useful a GPU may have idled a part between kernels, waiting for Python. Only a bound is known: `launch_ns`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from amdahl_probe.spans import PHASES

#: What time that a restart threw away is called among the phases.
LOST = "lost"

USEFUL = "compute"

#: What badput is split into.
CAUSES = (*(phase for phase in PHASES if phase != USEFUL), LOST)


class Began(NamedTuple):
    """An attempt began, with the state after `step`."""

    step: int


class Spent(NamedTuple):
    """Laps ended, the last of them with `step`; nanoseconds of all ranks by phase, and of compute the launch-bound."""

    step: int
    phases: Mapping[str, int]
    launch_ns: int = 0


class Settled(NamedTuple):
    """What all before it comes to, the last lap being that of `step`; device-nanoseconds."""

    step: int
    attempts: int
    useful_ns: int
    badput_ns: Mapping[str, int]
    launch_ns: int = 0


@dataclass(frozen=True)
class Account:
    """Device-nanoseconds of a run. At most `launch_ns` of what is useful were idle."""

    attempts: int
    useful_ns: int
    badput_ns: Mapping[str, int]
    launch_ns: int = 0

    @property
    def held_ns(self) -> int:
        """All of it."""
        return self.useful_ns + sum(self.badput_ns.values())

    @property
    def share(self) -> float:
        """Goodput: useful over held."""
        return self.useful_ns / self.held_ns if self.held_ns else 0.0

    @property
    def launch_share(self) -> float:
        """By how much goodput may be less."""
        return self.launch_ns / self.held_ns if self.held_ns else 0.0


class Book:
    """The account of a run as it goes on. It keeps 24 bytes a step: a restart may throw away any of them."""

    def __init__(self, events: Iterable[Began | Spent | Settled] = ()) -> None:
        """With what has happened so far."""
        self.attempts = 0
        self._badput = dict.fromkeys(CAUSES, 0)
        self._steps, self._useful = array("q"), array("q")  # in order: a restart begins where it takes up the run
        self._launch = array("q")
        self._useful_ns = self._launch_ns = 0
        for event in events:
            self.add(event)

    def add(self, event: Began | Spent | Settled) -> None:
        """Count an event."""
        if isinstance(event, Began):
            self.attempts += 1
            self._throw_away(event.step)
            return
        if isinstance(event, Settled):
            self.attempts += event.attempts
            badput_ns, useful_ns = event.badput_ns, event.useful_ns
        else:
            badput_ns, useful_ns = event.phases, event.phases.get(USEFUL, 0)
        for cause, ns in badput_ns.items():
            if cause != USEFUL:
                self._badput[cause] += ns
        self._steps.append(event.step)
        self._useful.append(useful_ns)
        self._launch.append(event.launch_ns)
        self._useful_ns += useful_ns
        self._launch_ns += event.launch_ns

    def _throw_away(self, step: int) -> None:
        """What was computed after a step is lost: the run begins there again."""
        kept = bisect_right(self._steps, step)
        lost_ns = sum(self._useful[kept:])
        self._launch_ns -= sum(self._launch[kept:])
        del self._steps[kept:], self._useful[kept:], self._launch[kept:]
        self._useful_ns -= lost_ns
        self._badput[LOST] += lost_ns

    def account(self) -> Account:
        """What it comes to."""
        badput = {cause: ns for cause, ns in self._badput.items() if ns}
        return Account(self.attempts, self._useful_ns, badput, self._launch_ns)

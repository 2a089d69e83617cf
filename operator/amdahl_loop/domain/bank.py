"""What has the loop saved, after paying for itself?

Credit comes from refute means alone: the discovery run chose the win and flatters it. Where the blocks that test it on
show that less is left, they count instead. What has accrued over hours really run and what is projected over the hours
ahead are never added up. Every experiment's whole cost is debited, losses too, with the blocks that test its win on and
the runs that were stopped; a win that fades is clawed back (research 1.7).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from amdahl_loop.domain import keep
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.standing_still import Standstill, is_standing, still_s
from amdahl_loop.domain.values import Frozen

HEADLINE_ERRORS = 1.64
"""Standard errors that the headline "at least" subtracts: a one-sided 95 % bound."""


class Saving(Frozen):
    """Device-hours saved: expected, and at least."""

    expected_h: float = 0.0
    at_least_h: float = 0.0

    def __add__(self, other: "Saving") -> "Saving":
        """Both savings together."""
        return Saving(expected_h=self.expected_h + other.expected_h, at_least_h=self.at_least_h + other.at_least_h)


class Balance(Frozen):
    """The bank in device-hours. `accrued` is over hours run, `projected` over hours ahead: two answers, not a sum."""

    accrued: Saving
    clawed_back: Saving
    projected: Saving
    spent_h: float

    @property
    def net_h(self) -> float:
        """What has been saved so far, after every cost; negative until the first win has run long enough."""
        return self.accrued.expected_h - self.clawed_back.expected_h - self.spent_h

    @property
    def projected_net_h(self) -> float:
        """What the wins in force are expected to save over the hours ahead, after every cost."""
        return self.projected.expected_h - self.spent_h

    @property
    def headline_h(self) -> float:
        """The cautious net figure for the hours ahead: refute mean less 1.64 standard errors."""
        return self.projected.at_least_h - self.spent_h


def balance(
    experiments: Sequence[Experiment],
    applications: Iterable[Application],
    ahead_h: float,
    run_h: Mapping[str, float] | None = None,
) -> Balance:
    """The bank of one job.

    `ahead_h` are device-hours that the job would still need with its original settings. `run_h` are device-hours that
    it has run, by the name of the experiment whose value was in force. Wins that were rolled back, because they had
    faded, project nothing and are clawed back whole: nobody knows since when. A win that its owner put back in the spec
    runs on as an overlay, and counts as any other.
    """
    faded = {a.experiment for a in applications if a.kind is ApplicationKind.ROLLED_BACK}
    wins = [experiment for experiment in experiments if experiment.is_won]
    hours = run_h or {}
    return Balance(
        accrued=_sum(saved_by_running(win, hours.get(win.name, 0.0)) for win in wins),
        clawed_back=_sum(saved_by_running(win, hours.get(win.name, 0.0)) for win in wins if win.name in faded),
        projected=_project([win for win in wins if win.name not in faded], ahead_h),
        spent_h=sum(experiment.held_device_s for experiment in experiments) / 3600,
    )


def hours_in_force(
    applications: Sequence[Application],
    knobs: Knobs,
    now_s: float,
    devices: int,
    standstills: Sequence[Standstill] = (),
) -> Mapping[str, float]:
    """Device-hours that ran with each applied win, by the name of its experiment: what `balance` takes as `run_h`.

    From its application until it was rolled back, until its owner chose other values, or until now, less the time in
    which the job did not run with it. `knobs` are the values in force, `devices` what the job holds while it runs. A
    value that was put back in the spec and is an overlay since is in force; one that is not, because the mode wants it
    in the spec, ended then.
    """
    hours: dict[str, float] = {}
    is_known_until_now = is_standing(standstills)
    for position, application in enumerate(applications):
        if application.kind is ApplicationKind.APPLIED:
            since = applications[position:]
            until_s = _find_end(application, since, is_known_until_now or since[-1].knobs == knobs, now_s)
            run_s = max(0.0, until_s - application.at_s) - still_s(standstills, application.at_s, until_s)
            held_h = devices * run_s / 3600
            hours[application.experiment] = hours.get(application.experiment, 0.0) + held_h
    return hours


def _find_end(application: Application, since: Sequence[Application], is_sure: bool, now_s: float) -> float:
    """When an applied win ceased to be in force; the newest record is the last sure moment where nothing says so."""
    for before, later in pairwise(since):
        if later.kind is ApplicationKind.REVERTED:
            continue
        is_rolled_back = later.experiment == application.experiment and later.kind is ApplicationKind.ROLLED_BACK
        if is_rolled_back or later.declared not in (before.declared, before.knobs):
            return later.at_s
    return now_s if is_sure else since[-1].at_s


def saved_by_running(win: Experiment, device_hours: float) -> Saving:
    """What a win has saved over device-hours that ran with it: its work would have cost exp(effect) times as much."""
    expected, at_least = _effects(win)
    return Saving(expected_h=device_hours * math.expm1(expected), at_least_h=device_hours * math.expm1(at_least))


def _project(wins: Sequence[Experiment], ahead_h: float) -> Saving:
    """Savings over the hours ahead. Effects of successive wins add up in log cost, so their shares never pass 100 %."""
    expected = math.fsum(_effects(win)[0] for win in wins)
    at_least = math.fsum(_effects(win)[1] for win in wins)
    return Saving(expected_h=ahead_h * -math.expm1(-expected), at_least_h=ahead_h * -math.expm1(-at_least))


def _effects(win: Experiment) -> tuple[float, float]:
    """What a win is credited with, and that less 1.64 standard errors but not below zero; nothing without an error."""
    found = keep.find_effect(win)
    if found is None:
        return 0.0, 0.0
    return found.mean, max(0.0, found.mean - HEADLINE_ERRORS * found.se)


def _sum(savings: Iterable[Saving]) -> Saving:
    return sum(savings, start=Saving())

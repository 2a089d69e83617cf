"""Which proposals may be tried at all?

One screen for proposals from anywhere (rules, past wins, Claude): typed, bounded, declared by the job, not pinned, and
not what the program has said it cannot take. What is refused is kept with its reason.
"""

import sys
from collections.abc import Collection, Iterable, Mapping

from amdahl_loop.domain.hypotheses import Change, Hypothesis
from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.knobs import CATALOGUE, legal_range
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.values import Frozen


class Rejected(Frozen):
    """A proposal that may not be tried, and why."""

    hypothesis: Hypothesis
    reason: str


class Screened(Frozen):
    """Proposals that may be tried, and those that may not."""

    kept: tuple[Hypothesis, ...]
    rejected: tuple[Rejected, ...]


def screen(proposals: Iterable[Hypothesis], job: TrainingJob, cpus: int, ignored: Collection[str] = ()) -> Screened:
    """Typed, bounded, the owner's to allow: the same screen for rules, past wins and Claude.

    `ignored`: what the observed program said it cannot take.
    """
    kept: list[Hypothesis] = []
    rejected: list[Rejected] = []
    for hypothesis in proposals:
        reasons = (_refuse(change, job, cpus) or _not_taken(change.knob, ignored) for change in hypothesis.changes)
        reason = next(filter(None, reasons), None)
        if reason is None and any(other.key == hypothesis.key for other in kept):
            reason = "proposed already"
        if reason is None:
            kept.append(hypothesis)
        else:
            rejected.append(Rejected(hypothesis=hypothesis, reason=reason))
    return Screened(kept=tuple(kept), rejected=tuple(rejected))


def find_breach(values: Mapping[KnobName, KnobValue], job: TrainingJob) -> str | None:
    """Which limit of the owner's or an administrator's some values break that were fine once; None where none does.

    What the machine bears was asked when they were proposed.
    """
    pinned = (f"{knob} is pinned by its owner" for knob in values if knob in job.spec.tuning.pin)
    outside = (_refuse_value(knob, value, job, sys.maxsize) for knob, value in values.items())
    return next(filter(None, (*pinned, *outside)), None)


def _refuse(change: Change, job: TrainingJob, cpus: int) -> str | None:
    """Why one change may not be tried, None when it may."""
    knob = change.knob
    if knob not in CATALOGUE:
        return f"{knob} is never offered"
    if knob in job.spec.tuning.pin:
        return f"{knob} is pinned by its owner"
    present = job.spec.knobs.get(knob)
    if present is None:
        return f"{knob} is not declared under spec.knobs"
    if change.before != present:
        return f"{knob} is {present} now, not {change.before}"
    if change.after == present:
        return f"{knob} is {present} already"
    return _refuse_value(knob, change.after, job, cpus)


def _not_taken(knob: KnobName, ignored: Collection[str]) -> str | None:
    """Loader knobs that need workers are ignored where there are none yet, which a proposal may change."""
    if knob not in ignored or CATALOGUE[knob].needs_workers:
        return None
    return f"the program does not take {knob}; its `knob` record says why"


def _refuse_value(knob: KnobName, value: KnobValue, job: TrainingJob, cpus: int) -> str | None:
    spec = CATALOGUE[knob]
    if not spec.takes(value):
        return f"{knob} takes {spec.said}, not {value!r}"
    least, most = legal_range(job, knob, cpus)
    if spec.is_number and not least <= int(value) <= most:
        return f"{knob} {value} is outside [{least}, {most}]"
    return None

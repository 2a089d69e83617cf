"""When did a tuned job not run with its proven values?

Only hours that run save anything. A job that is suspended, queued, failed or over holds no devices, and one whose owner
has other values in force saves nothing by ours: such times are kept as intervals, and the bank leaves them out.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from amdahl_loop.domain.values import Frozen

MAX_STANDSTILLS = 24
"""Beyond these the two that lie closest become one, with the time between: savings are told too low, never too high."""


class Standstill(Frozen):
    """A time without savings; `to_s` is None while it lasts."""

    from_s: float
    to_s: float | None = None


def follow(known: Sequence[Standstill], runs: bool, now_s: float) -> tuple[Standstill, ...]:
    """The intervals after a look at the job: the last one is opened or closed where that has changed."""
    last = known[-1] if known else None
    stands = last is not None and last.to_s is None
    if stands is not runs:
        return tuple(known)
    if last is not None and stands:
        return (*known[:-1], last.model_copy(update={"to_s": max(now_s, last.from_s)}))
    return _make_room((*known, Standstill(from_s=now_s)))


def _make_room(known: tuple[Standstill, ...]) -> tuple[Standstill, ...]:
    if len(known) <= MAX_STANDSTILLS:
        return known
    gaps_s = [later.from_s - (before.to_s or before.from_s) for before, later in pairwise(known)]
    at = gaps_s.index(min(gaps_s))
    joined = known[at].model_copy(update={"to_s": known[at + 1].to_s})
    return (*known[:at], joined, *known[at + 2 :])


def is_standing(known: Sequence[Standstill]) -> bool:
    """Whether the last interval still lasts."""
    return bool(known) and known[-1].to_s is None


def still_s(known: Iterable[Standstill], from_s: float, to_s: float) -> float:
    """Seconds of a span of time that lie within the intervals."""
    spans = ((max(one.from_s, from_s), min(to_s if one.to_s is None else one.to_s, to_s)) for one in known)
    return sum(max(0.0, end_s - begin_s) for begin_s, end_s in spans)

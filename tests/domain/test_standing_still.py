"""When a tuned job did not run with its values: intervals that open, close, and never grow beyond their bound."""

import pytest

from amdahl_loop.domain.standing_still import MAX_STANDSTILLS, Standstill, follow, is_standing, still_s

Span = tuple[float, float | None]


def make_standstills(*spans: Span) -> tuple[Standstill, ...]:
    """Intervals of seconds."""
    return tuple(Standstill(from_s=begin, to_s=end) for begin, end in spans)


@pytest.mark.parametrize(
    ("known", "runs", "expected"),
    [
        pytest.param([], True, [], id="it has always run"),
        pytest.param([], False, [(9, None)], id="it stops"),
        pytest.param([(5, None)], False, [(5, None)], id="it stands still"),
        pytest.param([(5, None)], True, [(5, 9)], id="it goes on"),
        pytest.param([(5, 7)], True, [(5, 7)], id="it runs"),
        pytest.param([(5, 7)], False, [(5, 7), (9, None)], id="it stops again"),
        pytest.param([(12, None)], True, [(12, 12)], id="a clock that was set back"),
    ],
)
def test_an_interval_is_opened_and_closed_by_what_is_seen(known: list[Span], runs: bool, expected: list[Span]) -> None:
    """At nine seconds."""
    assert follow(make_standstills(*known), runs, 9.0) == make_standstills(*expected)


def test_beyond_the_bound_the_closest_two_become_one() -> None:
    """With the time between them: never less than what there was."""
    spans: list[Span] = [(100.0 * n, 100.0 * n + 10) for n in range(MAX_STANDSTILLS)]
    spans[3] = (311.0, 395.0)
    after = follow(make_standstills(*spans), runs=False, now_s=9999.0)
    assert len(after) == MAX_STANDSTILLS
    assert after[3] == Standstill(from_s=311.0, to_s=410.0)
    assert is_standing(after)
    assert still_s(after, 0.0, 9999.0) == still_s(make_standstills(*spans), 0.0, 9999.0) + 5.0


def test_seconds_are_those_within_both() -> None:
    """One interval cut on the left, one whole, one that lasts; nothing before the first."""
    known = make_standstills((0, 20), (30, 40), (50, None))
    assert still_s(known, 10.0, 60.0) == 10 + 10 + 10
    assert still_s(known, 41.0, 49.0) == 0
    assert not is_standing(known[:2])

"""The account of a run: held is useful and badput, to the nanosecond, whatever happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe.spans import PHASES
from amdahl_trainer.goodput import CAUSES, LOST, Began, Book, Spent

NS = st.integers(0, 10**15)
PHASE_TIMES = st.dictionaries(st.sampled_from(PHASES), NS)


@st.composite
def histories(draw):
    """Attempts that each resume at a step that some attempt has reached, and go on from there."""
    events, reached = [], 0
    for _ in range(draw(st.integers(1, 5))):
        step = draw(st.integers(0, reached))
        events.append(Began(step))
        for _ in range(draw(st.integers(0, 8))):
            step += draw(st.integers(0, 2))
            phases = draw(PHASE_TIMES)
            events.append(Spent(step, phases, draw(st.integers(0, phases.get("compute", 0)))))
        reached = max(reached, step)
    return events


@given(histories())
def test_held_is_useful_and_badput_exactly(events):
    """No nanosecond is lost or made by any sequence of laps and restarts, and none is negative."""
    account = Book(events).account()
    laps = [event for event in events if isinstance(event, Spent)]
    assert account.held_ns == account.useful_ns + sum(account.badput_ns.values())
    assert account.held_ns == sum(ns for lap in laps for ns in lap.phases.values())
    assert account.useful_ns + account.badput_ns.get(LOST, 0) == sum(lap.phases.get("compute", 0) for lap in laps)
    assert 0 <= account.launch_ns <= account.useful_ns
    assert all(ns > 0 for ns in account.badput_ns.values())
    assert set(account.badput_ns) <= set(CAUSES)
    assert account.attempts == sum(isinstance(event, Began) for event in events)


@pytest.mark.parametrize(
    ("resumed", "useful", "lost"),
    [(None, 111, 0), (3, 111, 0), (2, 11, 100), (1, 1, 110), (0, 0, 111), (7, 111, 0)],
)
def test_a_restart_throws_away_the_steps_after_the_one_it_resumes_from(resumed, useful, lost):
    """Compute of 1, 10 and 100 in steps 1, 2 and 3, launch-bound; what else they cost stays what it was."""
    times = ((step, 10 ** (step - 1)) for step in (1, 2, 3))
    events = [Began(0), *(Spent(step, {"compute": ns, "input": 5}, ns) for step, ns in times)]
    account = Book([*events, *([] if resumed is None else [Began(resumed)])]).account()
    assert (account.useful_ns, account.badput_ns.get(LOST, 0), account.badput_ns["input"]) == (useful, lost, 15)
    assert account.launch_ns == useful


def test_a_run_that_never_trained_has_no_goodput():
    """Nothing held is no division by zero, and start-up alone is all badput."""
    assert Book().account().share == 0.0
    started = Book([Began(0), Spent(0, {"startup": 9})]).account()
    assert (started.held_ns, started.share, started.badput_ns) == (9, 0.0, {"startup": 9})

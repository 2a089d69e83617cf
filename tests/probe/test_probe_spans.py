"""The ledger: whatever is pushed, popped and left open, a lap's phases sum to its wall time exactly."""

import threading
from collections import deque
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe.spans import NOT_MINE, PHASES, Ledger

ACTIONS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(PHASES)),
    st.tuples(st.just("pop"), st.none()),
    st.tuples(st.just("pop"), st.integers(-3, 8)),
    st.tuples(st.just("pop_and_rest"), st.sampled_from(PHASES)),
    st.tuples(st.just("rest"), st.sampled_from(PHASES)),
    st.tuples(st.just("spent"), st.sampled_from(PHASES)),
    st.tuples(st.just("take"), st.none() | st.sampled_from(PHASES)),
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100

    def __call__(self) -> int:
        return self.now

    def tick(self, ns: int) -> None:
        self.now += ns


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 10**12)), max_size=60))
def test_laps_sum_to_wall_time_exactly(script: list[tuple[tuple[str, object], int]]) -> None:
    """Any nesting, any depth given to `pop`, spans left open across laps: no nanosecond is lost or counted twice."""
    clock = Clock()
    ledger = Ledger(clock)
    laps = []
    for (action, argument), ns in [*script, (("take", None), 0)]:
        clock.tick(ns)
        begun_ns = ledger.mark_ns
        result = ledger.pop(None, argument) if action == "pop_and_rest" else getattr(ledger, action)(argument)
        if action == "take":
            laps.append((sum(result.values()), ledger.mark_ns - begun_ns))
            assert set(result) <= set(PHASES)
            assert all(spent >= 0 for spent in result.values())

    assert all(spent == wall for spent, wall in laps)
    assert sum(spent for spent, _ in laps) == clock.now - 100


def test_time_goes_to_the_span_on_top() -> None:
    """A nested span subtracts from its parent; the bottom gets what no span claims."""
    clock = Clock()
    ledger = Ledger(clock, bottom="other")
    clock.tick(1)
    with ledger.span("compute"):
        clock.tick(10)
        with ledger.span("comm"):
            clock.tick(100)
        clock.tick(1000)
    clock.tick(10000)

    assert ledger.take() == {"compute": 1010, "comm": 100, "other": 10001}


def test_a_span_ends_with_its_body_whatever_that_raises() -> None:
    """An exception passes through, and takes the span with it."""
    clock = Clock()
    ledger = Ledger(clock, bottom="other")
    with suppress(KeyError), ledger.span("compute"):
        clock.tick(3)
        raise KeyError
    clock.tick(4)

    assert (ledger.take(), ledger.depth) == ({"compute": 3, "other": 4}, 0)


def test_a_depth_closes_what_was_left_open_above_it() -> None:
    """An abandoned generator's span does not swallow the rest of the run."""
    ledger = Ledger(Clock())
    outer = ledger.push("compute")
    ledger.push("input")
    ledger.push("comm")
    ledger.pop(outer)

    assert ledger.depth == 0


def test_only_the_owning_thread_counts_until_adopted() -> None:
    """Another thread's spans do nothing; after `adopt` they are the ones that count."""
    ledger = Ledger(Clock())
    seen = []

    def work() -> None:
        seen.append(ledger.push("input"))
        ledger.pop(seen[0])
        ledger.rest("compute")
        seen.append(ledger.depth)
        ledger.adopt()
        seen.append(ledger.push("input"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [NOT_MINE, 0, 1]
    assert (ledger.bottom, ledger.is_mine()) == ("startup", False)


def test_a_change_of_the_bottom_is_of_the_same_moment() -> None:
    """With the end of a span, and with the end of a lap; a lap's own time is still the old bottom's."""
    clock = Clock()
    ledger = Ledger(clock, bottom="other")
    span = ledger.push("input")
    clock.tick(1)
    ledger.pop(span, "compute")
    clock.tick(10)
    first = ledger.take("other")
    clock.tick(100)

    assert first == {"other": 0, "input": 1, "compute": 10}
    assert (ledger.take(), ledger.bottom) == ({"other": 100}, "other")


def test_closed_spans_are_traced() -> None:
    """Each closed span and each stretch at the bottom, with its begin and end."""
    clock = Clock()
    trace: deque[tuple[str, int, int]] = deque()
    ledger = Ledger(clock, trace=trace)
    clock.tick(5)
    with ledger.span("input"):
        clock.tick(7)
    ledger.rest("compute")
    clock.tick(1)
    ledger.pop(ledger.push("comm"), "other")
    clock.tick(2)
    ledger.take("compute")

    assert list(trace) == [
        ("input", 105, 112), ("startup", 100, 112), ("comm", 113, 113), ("compute", 112, 113), ("other", 113, 115)
    ]  # fmt: skip

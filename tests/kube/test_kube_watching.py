"""Two looks at counters as one window: when it begins, when it ends, and what is not believed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.adapters.kube.scrape import Counters
from amdahl_loop.adapters.kube.watching import (
    SILENCE_LIMIT_S,
    STALL_LIMIT_S,
    STARTUP_LIMIT_S,
    Reading,
    Unwatchable,
    Watch,
    measure,
    note_reading,
    note_silence,
    render_report,
)
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.runs import observation_request
from amdahl_loop.domain.telemetry import BlockReport, Malformed, Window, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName

RUN = "pydocs-ffffffff-o0"
NONE = Counters(
    steps=0,
    samples=0,
    step_s=0.0,
    phases_s=(0.0,) * 9,
    saves=0,
    blocked_s=0.0,
    batches=0,
    batch_s=0.0,
    world=1,
    by="probe",
)


def after(steps: int, step_s: float = 0.1, before: Counters = NONE, **changes: Any) -> Counters:
    """Counters so many steps later, a quarter of their time spent waiting for data."""
    wall_s = steps * step_s
    phases = list(before.phases_s)
    phases[3] += wall_s / 4
    phases[4] += wall_s * 3 / 4
    return replace(
        before,
        steps=before.steps + steps,
        samples=before.samples + 16 * steps,
        step_s=before.step_s + wall_s,
        phases_s=tuple(phases),
        **changes,
    )


def make_watch(**knobs: Any) -> Watch:
    """An observation that has just found its pod, at second 0."""
    request = observation_request(RUN, Knobs.model_validate(knobs), PROFILES[ProfileName.QUICK], seed=1)
    return Watch(request=request, since_s=0.0).aim("pod", "10.0.0.1", "node-a", 0.0)


def look(watch: Watch, *looks: tuple[float, Counters]) -> Watch | BlockReport | Unwatchable:
    """The observation after these looks."""
    state: Watch | BlockReport | Unwatchable = watch
    for at_s, counters in looks:
        assert isinstance(state, Watch), state
        state = note_reading(state, Reading(at_s, counters), cpus=4)
    return state


def test_a_window_lies_between_warm_up_and_enough_work() -> None:
    """It begins with the first look after warm-up, ends with the first one that has seen enough, and reads back."""
    watch = make_watch()
    wanted = watch.window
    warm = after(100, before=NONE)
    steps = max(wanted.min_steps, int(wanted.measure_s / 0.1) + 1)
    enough = after(steps, before=warm, ignored=("compile", "microBatch"))
    report = look(watch, (5, after(1)), (10, warm), (10 + enough.step_s - warm.step_s, enough))
    assert isinstance(report, BlockReport)
    parsed = parse_block_summary(render_report(report), RUN)
    assert parsed == report
    (window,) = report.windows
    assert window.steps == enough.steps - warm.steps
    assert window.phases_ppk[3:5] == (250, 750)
    assert window.samples == 16 * window.steps
    assert window.ignored == ("compile", "microBatch")


def test_too_little_is_no_window() -> None:
    """Neither seconds nor steps alone are enough."""
    watch = make_watch()
    few = after(watch.window.min_steps - 1, step_s=1000.0, before=after(100))
    short = after(10_000, step_s=1e-6, before=after(100))
    for counters in (few, short):
        assert isinstance(look(watch, (10, after(100)), (10**6, counters)), Watch)


def test_where_saving_is_a_knob_saves_are_waited_for() -> None:
    """Up to ten windows long; then what there is has to do."""
    watch = make_watch(checkpoint_every_steps=100)
    steps = int(watch.window.measure_s / 0.1) + watch.window.min_steps
    first = after(100)
    one, three = (after(steps, before=first, saves=count, blocked_s=count * 0.5) for count in (1, 3))
    assert isinstance(look(watch, (10, first), (10_000, one)), Watch)
    seen = look(watch, (10, first), (10_000, three))
    assert isinstance(seen, BlockReport)
    assert (seen.windows[0].saves.count, seen.windows[0].saves.block_s) == (3, 0.5)
    late = after(11 * steps, before=first)
    assert isinstance(look(watch, (10, first), (100_000, late)), BlockReport)


def test_a_program_that_starts_again_is_measured_anew() -> None:
    """Counters that fell belong to another process."""
    watch = look(make_watch(), (10, after(1000)), (20, after(3)))
    assert isinstance(watch, Watch)
    assert watch.first is None


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        pytest.param(
            [(STARTUP_LIMIT_S - 1, NONE), (STARTUP_LIMIT_S, NONE)], "no optimizer step was seen", id="never a step"
        ),
        pytest.param(
            [(10, after(5)), (10 + STALL_LIMIT_S, after(5))], "made no step for 30 min", id="a program that hangs"
        ),
    ],
)
def test_what_comes_to_nothing_says_why(looks: list[tuple[float, Counters]], why: str) -> None:
    """And is waited for until then."""
    *before, last = looks
    watch = look(make_watch(), *before)
    assert isinstance(watch, Watch)
    ended = look(watch, last)
    assert isinstance(ended, Unwatchable)
    assert why in ended.why


def test_silence_is_borne_for_ten_minutes() -> None:
    """Counted from the last word, or from the start of the pod."""
    watch = make_watch()
    assert isinstance(note_silence(watch, "refused", SILENCE_LIMIT_S - 1), Watch)
    assert isinstance(note_silence(watch, "refused", SILENCE_LIMIT_S), Unwatchable)
    heard = look(watch, (500, after(1)))
    assert isinstance(heard, Watch)
    assert isinstance(note_silence(heard, "refused", 500 + SILENCE_LIMIT_S - 1), Watch)


def test_another_pod_begins_anew_and_the_same_one_goes_on() -> None:
    """After silence the pod is looked up again."""
    watch = look(make_watch(), (10, after(100)))
    assert isinstance(watch, Watch)
    lost = watch.lose_address()
    assert lost.address == ""
    same = lost.aim("pod", "10.0.0.1", "node-a", 0.0)
    assert (same.address, same.first) == ("10.0.0.1", watch.first)
    other = lost.aim("pod-2", "10.0.0.2", "node-b", 20.0)
    assert (other.first, other.node, other.began_s) == (None, "node-b", 20.0)


@pytest.mark.parametrize(
    ("changes", "passed_s"),
    [
        pytest.param({"step_s": 900.0}, 10.0, id="more time than has passed"),
        pytest.param({"samples": 0}, 10.0, id="samples that vanish"),
        pytest.param({"steps": 0}, 10.0, id="steps that vanish"),
        pytest.param({"world": 9}, 10.0, id="another world"),
        pytest.param({"phases_s": (0.0,) * 9}, 10.0, id="phases that vanish"),
    ],
)
def test_counters_that_lie_are_refused(changes: dict[str, Any], passed_s: float) -> None:
    """With a reason, never with a number."""
    first, last = after(10), replace(after(100, before=after(10)), **changes)
    assert isinstance(measure(Reading(0.0, first), Reading(passed_s, last)), Malformed)


counts = st.integers(0, 10**9)
amounts = st.floats(0, 1e9)
anything = st.builds(
    Counters,
    steps=counts,
    samples=counts,
    step_s=amounts,
    phases_s=st.tuples(*[amounts] * 9),
    saves=counts,
    blocked_s=amounts,
    batches=counts,
    batch_s=amounts,
    world=st.integers(1, 10**6),
    by=st.just("probe"),
)


@given(first=anything, last=anything, passed_s=st.floats(0, 1e9))
def test_whatever_counters_say_the_report_can_be_read_back(first: Counters, last: Counters, passed_s: float) -> None:
    """A window is refused here, or it is one that the domain's parser takes."""
    window = measure(Reading(0.0, first), Reading(passed_s, last))
    if isinstance(window, Window):
        assert sum(window.phases_ppk) == 1000
        report = BlockReport(run=RUN, state="done", windows=(window,))
        assert isinstance(parse_block_summary(render_report(report), RUN), BlockReport)

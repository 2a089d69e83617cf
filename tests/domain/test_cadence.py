"""What a save cadence costs, and which one is best."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from amdahl_loop.domain import cadence
from amdahl_loop.domain.blocks import BlockSpec
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.runs import measuring_cadence
from amdahl_loop.domain.telemetry import Arm, Saves, Window
from judge_builders import Bench, make_constants, make_plan, make_window

DAY_S = 86400.0


@pytest.mark.parametrize(
    ("save_s", "interval_s", "best_s"),
    [
        pytest.param(120, 30 * DAY_S, 6.9 * 3600, id="eight GPUs, a fault a month"),
        pytest.param(120, DAY_S, 75 * 60, id="64 nodes, a fault a day"),
        pytest.param(5, DAY_S, 15.5 * 60, id="the same, asynchronous"),
        pytest.param(60, 3.1 * 3600, 19 * 60, id="a very large job"),
        pytest.param(30, 2 * 3600, 11 * 60, id="spot machines"),
    ],
)
def test_best_interval_agrees_with_published_cases(save_s: float, interval_s: float, best_s: float) -> None:
    """Daly's estimate gives the intervals of the research table within 4 %."""
    assert cadence.optimal_interval_s(save_s, interval_s) == pytest.approx(best_s, rel=0.04)


@given(save_s=st.floats(0.01, 100), interval_s=st.floats(1e3, 1e6))
def test_best_interval_is_where_the_exact_cost_is_least(save_s: float, interval_s: float) -> None:
    """At Daly's interval the exact cost is within 1 % of its minimum, wherever saves are short against the interval."""

    def exact(log_interval_s: float) -> float:
        return cadence.log_cost_per_step(math.exp(log_interval_s), 1.0, save_s, 0.0, 0.0, 1 / interval_s)

    found = minimize_scalar(exact, bounds=(0.0, math.log(interval_s * 10)), method="bounded")
    daly = max(1.0, cadence.optimal_interval_s(save_s, interval_s))
    assert exact(math.log(daly)) <= found.fun + 0.01


def test_saves_longer_than_the_interval_leave_one_interval() -> None:
    """Where a save costs twice the time between interruptions, Daly's rule is the interval itself."""
    assert cadence.optimal_interval_s(100.0, 40.0) == 40.0


def test_exact_cost_equals_a_played_out_run() -> None:
    """Interruptions played out one by one cost what the formula says, within sampling error."""
    step_s, every, save_s, restart_s, interval_s = 1.0, 50, 5.0, 3.0, 200.0
    draws = random.Random(4)
    stretches, clock_s = 4000, 0.0
    for _ in range(stretches):
        while (until_s := draws.expovariate(1 / interval_s)) < every * step_s + save_s:
            clock_s += until_s
            while (until_s := draws.expovariate(1 / interval_s)) < restart_s:
                clock_s += until_s
            clock_s += restart_s
        clock_s += every * step_s + save_s
    formula = math.exp(cadence.log_cost_per_step(every, step_s, save_s, 0.0, restart_s, 1 / interval_s))
    assert clock_s / (stretches * every) == pytest.approx(formula, rel=0.03)


def test_absurd_cadences_stay_finite() -> None:
    """Never saving costs more than any number that a float holds; its logarithm is still a number."""
    assert math.isfinite(cadence.log_cost_per_step(10_000_000, 10.0, 1.0, 0.0, 60.0, 1 / 3600))


@pytest.mark.parametrize(
    ("current", "options", "proposed"),
    [
        pytest.param(50, {}, 4091, id="far too often"),
        pytest.param(40_000, {}, 1800, id="beyond what may be lost: the owner's bound"),
        pytest.param(1800, {"max_lost_work_s": 1800.0}, None, id="at the owner's bound already"),
        pytest.param(2500, {"max_lost_work_s": DAY_S}, None, id="within twice the best"),
        pytest.param(50, {"max_lost_work_s": DAY_S, "max_steps": 500}, 500, id="the owner's maximum"),
        pytest.param(50, {"max_lost_work_s": DAY_S, "min_steps": 9000}, 9000, id="the owner's minimum"),
        pytest.param(1, {"save_s": 0.001, "persist_s": 60.0}, 60, id="not faster than a save becomes durable"),
        pytest.param(50, {"max_lost_work_s": 10.0, "min_steps": 20}, None, id="bounds that leave nothing"),
    ],
)
def test_proposed_cadence(current: int, options: dict[str, Any], proposed: int | None) -> None:
    """Young and Daly propose, the owner's bounds dispose, and the flat optimum is left alone."""
    arguments: dict[str, Any] = {
        "step_s": 1.0,
        "save_s": 100.0,
        "persist_s": 0.0,
        "interval_s": DAY_S,
        "max_lost_work_s": 1800.0,
    }
    if current == 50 and not options:
        arguments["max_lost_work_s"] = DAY_S
    found = cadence.propose_cadence(current, **(arguments | options))
    assert found == (pytest.approx(proposed, rel=0.01) if proposed else None)


def test_no_interruptions_never_mean_never() -> None:
    """A long quiet exposure lowers the rate and narrows nothing to zero."""
    prior = cadence.interruption_rate(DAY_S, 0, 0.0)
    quiet = cadence.interruption_rate(DAY_S, 0, 100 * DAY_S)
    assert prior.expected == pytest.approx(1 / DAY_S)
    assert prior.low < prior.expected < prior.high
    assert 0 < quiet.low < quiet.expected < prior.expected


def test_observation_outweighs_the_prior() -> None:
    """Twenty interruptions in a day make the prior of one a day irrelevant."""
    busy = cadence.interruption_rate(DAY_S, 20, DAY_S)
    assert busy.low > 2 / DAY_S
    assert busy.expected == pytest.approx(22 / (3 * DAY_S))


def make_cadence_bench(before: int, after: int, save_s: float = 0.5, **changes: Any) -> Bench:
    """Steps of 50 ms, and saves as often as each arm is asked for."""
    plan = make_plan(make_constants(), knob=KnobName.CHECKPOINT_EVERY_STEPS, before=before, after=after, **changes)

    def saving(spec: BlockSpec, window: Window) -> Window:
        quiet_s = window.quiet_step_s or 0.0
        count = window.steps // measuring_cadence(plan, Arm(spec.order[window.index]))
        saves = Saves(count=count, block_s=save_s)
        return window.model_copy(update={"saves": saves, "wall_s": 40 * quiet_s + count * save_s})

    return Bench(plan, tweak=saving)


def test_saving_far_too_often_is_found_and_won() -> None:
    """Every 10 steps at 0.5 s a save costs half the time; every 2,000 wins by about that, not by raw speed."""
    verdict = make_cadence_bench(10, 2000).carry_through()
    assert verdict.word == "Won", verdict.sentence
    assert verdict.effect == pytest.approx(math.log(2) - 0.008, abs=0.03)


def test_a_cadence_beyond_the_owners_bound_is_vetoed() -> None:
    """Rarer saves would be cheaper still, but one interruption may not cost more than the owner can bear."""
    verdict = make_cadence_bench(10, 20_000, max_lost_work_s=600.0).carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", "harm")
    assert "600 s are allowed" in verdict.sentence


def test_a_cadence_that_pays_at_one_rate_only_is_inconclusive() -> None:
    """Better if interruptions are as rare as the prior's mean, worse if they are as frequent as it allows."""
    verdict = make_cadence_bench(2000, 12_000, save_s=8.0, max_lost_work_s=1e6, interruption_interval_s=4000.0)
    said = verdict.carry_through()
    assert said.word != "Won", said.sentence


def test_raw_speed_never_wins_a_cadence() -> None:
    """Never saving is fastest in every window, and still loses: interruptions are expected."""
    verdict = make_cadence_bench(2000, 1_000_000, save_s=0.5, max_lost_work_s=1e9).carry_through()
    assert verdict.word in ("NoGain", "Inconclusive")
    assert verdict.effect is not None
    assert verdict.effect < 0


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 40])
def test_a_script_that_saves_as_it_likes_wins_nothing(every: int) -> None:
    """Its windows are priced at a cadence that nobody keeps: found at the first block, whatever its own cadence is."""

    def ignore(_spec: BlockSpec, window: Window) -> Window:
        saves = Saves(count=window.steps // every, block_s=0.2)
        return window.model_copy(update={"saves": saves, "wall_s": window.wall_s + saves.count * 0.2})

    plan = make_plan(make_constants(), knob=KnobName.CHECKPOINT_EVERY_STEPS, before=10, after=2000)
    bench = Bench(plan, tweak=ignore)
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("NoGain", "knob_ignored"), verdict.sentence
    assert bench.asked == ["p0", "d0"]


def test_too_few_saves_make_a_block_void() -> None:
    """Three saves an arm are needed to know what a save costs."""
    plan = make_plan(knob=KnobName.CHECKPOINT_EVERY_STEPS, before=10, after=100)
    windows = tuple(make_window(Arm(label), i, saves=Saves(count=1, block_s=0.1)) for i, label in enumerate("ABBA"))
    knobs = [Knobs(checkpoint_every_steps=10)] * 4
    said = cadence.window_costs(plan, windows, knobs, 1 / DAY_S)
    assert said == "arm A saved 2 times, 3 are needed to know what a save costs"


def test_asynchronous_saves_lose_the_time_until_they_are_durable() -> None:
    """The same save costs more expected work when it is durable only later."""
    plain = cadence.log_cost_per_step(100, 1.0, 1.0, 0.0, 10.0, 1 / 3600)
    late = cadence.log_cost_per_step(100, 1.0, 1.0, 60.0, 10.0, 1 / 3600)
    assert late - plain == pytest.approx(60 / 3600)
    window = make_window(Arm.VARIANT, 0, saves=Saves(count=4, block_s=0.01))
    lost = [cadence.lost_work_s(window, Knobs(checkpoint_every_steps=100, async_checkpoint=a)) for a in (False, True)]
    assert lost == [pytest.approx(5.0), pytest.approx(5.5)]

"""Records into numbers: edges, sums, saves, ranks; and everything that must make a window void."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe import windows
from amdahl_probe.plan import Window
from amdahl_probe.records import Knobs, Offset, Refused, Save, Step
from amdahl_probe.windows import Numbers, RankLog, Unfinished, Void


def make_window(**changes: Any) -> Window:
    """Warm-up of two steps and 20 ms, then five steps and 50 ms."""
    fields: dict[str, Any] = {
        "arm": "A", "index": 0, "scored": True, "knobs": {}, "env": {}, "offset": 0, "seed": 0, "warmup_s": 0.02,
        "warmup_steps": 2, "measure_s": 0.05, "min_steps": 5, "steps": None, "save_every": None,
    }  # fmt: skip
    return Window(**{**fields, **changes})


def measure(*logs: RankLog, ranks: int | None = None, seq: int = 0, **changes: Any) -> windows.Outcome:
    """Reduce logs of ranks 0, 1, ..."""
    named, window = dict(enumerate(logs)), make_window(**changes)
    edges = windows.find_edges(window, named, seq)
    return windows.measure(named, edges, ranks or len(logs), seq, window.is_proof)


def expect(outcome: windows.Outcome) -> Numbers:
    """The numbers, where there must be some."""
    assert isinstance(outcome, Numbers), outcome
    return outcome


@pytest.mark.parametrize(
    ("changes", "first", "count"),
    [
        ({}, 2, 5),
        ({"warmup_steps": 0, "warmup_s": 0}, 0, 5),
        ({"warmup_steps": 4}, 4, 5),
        ({"warmup_s": 0.055}, 6, 5),
        ({"measure_s": 0.071}, 2, 8),
        ({"min_steps": 9}, 2, 9),
        ({"steps": 3}, 0, 3),
    ],
)
def test_edges(changes: dict[str, Any], first: int, count: int, make_log: Callable[..., RankLog]) -> None:
    """Warm-up by both bounds, measuring by both bounds; a proof window takes the first steps."""
    numbers = expect(measure(make_log(20), **changes))

    assert numbers.steps == count
    assert numbers.wall_us == count * 10_000
    assert numbers.distinct_ppk == 1000
    wanted = [make_log(20).steps[at] for at in range(first, first + count)]
    assert numbers.mean_loss == 2.0
    assert numbers.samples == sum(step.samples for step in wanted)


@pytest.mark.parametrize(
    ("tagged", "first"),
    [
        pytest.param({0: "warmup"}, 2, id="in the warm-up"),
        pytest.param({2: "warmup"}, 3, id="compiled once more"),
        pytest.param({4: "warmup"}, 5, id="within what would have been the window"),
        pytest.param({2: "profile", 3: "profile"}, 4, id="the profiled step and the one that writes"),
        pytest.param({3: "warmup", 6: "profile", 7: "profile"}, 8, id="each time anew"),
        pytest.param({3: "gc", 5: "eval"}, 2, id="what belongs to the job stays"),
    ],
)
def test_no_window_holds_a_compile_or_a_profile(
    tagged: dict[int, str], first: int, make_log: Callable[..., RankLog], make_step: Callable[..., Step]
) -> None:
    """It begins after the last of them, and is whole steps without a gap."""
    steps = [make_step(at, tags=(tagged[at],) if at in tagged else ()) for at in range(20)]
    log = make_log(steps=steps)

    assert windows.find_edges(make_window(), {0: log}) == windows.Edges(first, first + 4)
    assert expect(measure(log)).steps == 5


def test_a_proof_is_not_timed_and_may_compile(make_log: Callable[..., RankLog], make_step: Callable[..., Step]) -> None:
    """It is the first steps of a launch, which compile; only their work is compared."""
    log = make_log(steps=[make_step(at, tags=("warmup",) if at < 2 else ()) for at in range(20)])

    assert expect(measure(log, steps=3)).steps == 3


@pytest.mark.parametrize(("tag", "did"), [("warmup", "torch compiled"), ("profile", "torch's profiler recorded")])
def test_a_compile_that_cannot_be_kept_out_makes_the_window_void(
    tag: str, did: str, make_log: Callable[..., RankLog], make_step: Callable[..., Step]
) -> None:
    """Of another rank at its own step, or again and again: a launch is not waited for until its deadline."""
    alone = make_log(steps=[make_step(at, tags=(tag,) if at == 4 else ()) for at in range(20)])
    every = make_log(steps=[make_step(at, tags=(tag,) if at % 3 == 0 else ()) for at in range(80)])

    assert measure(make_log(20), alone) == Void(f"rank 1: {did} in step 4")
    assert isinstance(measure(every), Void)


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_too_few_steps_are_unfinished(count: int, make_log: Callable[..., RankLog]) -> None:
    """Two of warm-up and five of measuring are wanted."""
    assert measure(make_log(count)) == Unfinished(waits_for_ranks=False)
    assert windows.measure({}, windows.find_edges(make_window(), {}), 1) == Unfinished(waits_for_ranks=False)


def test_numbers(make_log: Callable[..., RankLog], make_step: Callable[..., Step]) -> None:
    """Every number of a plain window."""
    numbers = expect(measure(make_log(20)))

    assert numbers._replace(losses=None) == Numbers(
        steps=5, samples=40, devices=1, wall_us=50_000, phases_ppk=(0, 0, 0, 200, 700, 0, 0, 0, 100),
        shape="0000abcd", elements_per_sample=8.0, distinct_ppk=1000, ids="00000005", losses=None, mean_loss=2.0,
        saves=None, step_us=10_000, step_sd_us=0, loader=(2000, 0), clock_ppk=0, slowest=(0, 0), offset_applied=False,
    )  # fmt: skip


def test_losses_are_compared_bit_by_bit(make_log: Callable[..., RankLog], make_step: Callable[..., Step]) -> None:
    """The digest sees order and the last bit of a float32; a missing loss is not a loss of zero."""

    def digest(*losses: float | None) -> str | None:
        steps = [make_step(at, loss=loss) for at, loss in enumerate(losses)]
        return expect(measure(make_log(steps=steps), steps=len(losses))).losses

    assert digest(1.0, 2.0) == digest(1.0, 2.0)
    assert len({digest(1.0, 2.0), digest(2.0, 1.0), digest(1.0, 2.0000002), digest(1.0, None), digest(0.0, 0.0)}) == 5
    assert digest(None, None) is None


def test_the_slowest_rank_is_judged_and_samples_are_summed(
    make_log: Callable[..., RankLog], make_step: Callable[..., Step]
) -> None:
    """Wall of the longest; with equal walls the one that waited least; its excess over the median rank."""
    waiting = (0, 0, 0, 2_000_000, 3_000_000, 5_000_000, 0, 0, 0)
    waiter = make_log(steps=[make_step(at, phases_ns=waiting) for at in range(10)])
    other = make_log(steps=[make_step(at, phases_ns=waiting) for at in range(10)])
    numbers = expect(measure(waiter, make_log(10), other))

    assert (numbers.devices, numbers.samples, numbers.wall_us) == (3, 120, 50_000)
    assert numbers.phases_ppk[windows.COMM] == 0
    assert numbers.slowest == (1, 500)


def test_a_rank_that_is_late_or_missing_is_waited_for(make_log: Callable[..., RankLog]) -> None:
    """The reference rank is through; the supervisor decides how long to wait."""
    assert measure(make_log(20), make_log(6)) == Unfinished(waits_for_ranks=True)
    assert measure(make_log(20), ranks=2) == Unfinished(waits_for_ranks=True)


def corrupt(log: RankLog, at: int, **changes: Any) -> RankLog:
    """Change fields of one step."""
    log.steps[at] = Step(**{**vars(log.steps[at]), **changes})
    return log


@pytest.mark.parametrize(
    ("at", "changes", "why"),
    [
        (4, {"end_ns": 10**15}, "the clock jumps at step 4"),
        (4, {"end_ns": 0}, "the clock jumps at step 4"),
        (5, {"wall_ns": 5_000_000}, "the clock jumps at step 5"),
        (4, {"index": 40}, "step 4 is missing"),
        (4, {"index": 3}, "step 4 is missing"),
    ],
)
def test_liars_and_gaps_make_the_window_void(
    at: int, changes: dict[str, Any], why: str, make_log: Callable[..., RankLog]
) -> None:
    """A clock that jumps, a step that vanished or came twice: nothing is repaired."""
    assert measure(corrupt(make_log(20), at, **changes)) == Void(f"rank 0: {why}")


def test_a_vanished_record_of_another_rank_makes_the_window_void(make_log: Callable[..., RankLog]) -> None:
    """All ranks are held to it, not only the reference."""
    other = make_log(20)
    del other.steps[4]

    assert measure(make_log(20), other) == Void("rank 1: step 4 is missing")


def test_a_refused_record_makes_the_window_void(make_log: Callable[..., RankLog]) -> None:
    """Of whatever rank."""
    garbled = make_log(20)
    garbled.add(Refused("w is negative"), 0)

    assert measure(garbled) == Void("rank 0: w is negative")
    assert measure(make_log(20), garbled) == Void("rank 1: w is negative")


@pytest.mark.parametrize(("claimed", "clock_ppk"), [(1, 0), (2, -500), (10, -900), (0.5, 1000)])
def test_the_outside_clock_finds_a_false_unit(claimed: float, clock_ppk: int, make_step: Callable[..., Step]) -> None:
    """Time reported as less or more than passed between two arrivals, parts per thousand."""
    log = RankLog()
    for at in range(100):
        wall_ns = round(10_000_000 / claimed)
        spent = (0, 0, 0, 0, wall_ns, 0, 0, 0, 0)
        log.add(make_step(at, end_ns=(at + 1) * wall_ns, wall_ns=wall_ns, phases_ns=spent), at * 10_000_000)

    assert expect(measure(log)).clock_ppk == clock_ppk


def test_saves_are_counted_with_their_interference(
    make_step: Callable[..., Step], make_log: Callable[..., RankLog]
) -> None:
    """Blocked time by record, interference as the excess of the steps during which a save was being written."""
    steps, end_ns = [], 0
    for at in range(12):
        saving, beside = at in (4, 8), at in (5, 9)
        spent = [0, 0, 0, 0, 14_000_000 if beside else 10_000_000, 0, 3_000_000 if saving else 0, 0, 0]
        end_ns += sum(spent)
        steps.append(make_step(at, end_ns=end_ns, wall_ns=sum(spent), phases_ns=tuple(spent)))
    saves = []
    for at in (4, 8):
        saves += [Save(steps[at].end_ns, at, 3_000_000, False), Save(steps[at + 1].end_ns - 1, at, 3_000_000, True)]
    numbers = expect(measure(make_log(steps=steps, saves=tuple(saves)), min_steps=10))

    assert numbers.saves == (2, 3000, 4000)
    assert (numbers.step_us, numbers.step_sd_us) == (10_000, 0)


def test_a_forced_cadence_waits_for_three_saves(make_log: Callable[..., RankLog]) -> None:
    """The window grows until it holds them."""
    saves = tuple(Save(at * 10_000_000, at, 1000, False) for at in (3, 9, 15))

    assert expect(measure(make_log(20, saves=saves), save_every=6)).steps == 14
    assert measure(make_log(20, saves=saves[:2]), save_every=6) == Unfinished(waits_for_ranks=False)


def test_live_windows_take_only_their_own_sequence(
    make_log: Callable[..., RankLog], make_step: Callable[..., Step]
) -> None:
    """Steps of the window before are not this one's, not even as warm-up."""
    log = make_log(steps=[make_step(at, seq=1 if at < 10 else 2) for at in range(20)])

    assert expect(measure(log, seq=2)).steps == 5
    assert measure(log, seq=3) == Unfinished(waits_for_ranks=False)
    log = make_log(steps=[make_step(at, seq=1 if at < 15 else 2) for at in range(20)])
    assert measure(log, seq=2) == Unfinished(waits_for_ranks=False)


def test_a_knob_that_any_rank_ignores_is_named(make_log: Callable[..., RankLog]) -> None:
    """Of this window: what was ignored under another sequence of knobs is another window's."""
    first, second = make_log(20), make_log(20)
    first.add(Knobs(0, ("microBatch",)), 0)
    first.add(Knobs(0, ("compile", "microBatch")), 0)
    second.add(Knobs(1, ("bucketMb",)), 0)

    assert expect(measure(first, second)).ignored == ("compile", "microBatch")


def test_the_offset_counts_when_all_ranks_applied_it(make_log: Callable[..., RankLog]) -> None:
    """One rank without it reads other data."""
    first, second = make_log(20), make_log(20)
    first.add(Offset(0, True), 0)
    assert not expect(measure(first, second)).offset_applied
    second.add(Offset(0, True), 0)
    assert expect(measure(first, second)).offset_applied
    second.add(Offset(0, False), 0)  # one loader of several did not
    assert not expect(measure(first, second)).offset_applied


def test_a_window_without_samples_or_time_has_no_cost(
    make_log: Callable[..., RankLog], make_step: Callable[..., Step]
) -> None:
    """A script without a DataLoader cannot be judged by samples; a clock that stands still measures nothing."""
    assert measure(make_log(steps=[make_step(at, samples=0) for at in range(20)])) == Void(
        "no samples: the probe has seen no DataLoader"
    )
    frozen = [make_step(at, wall_ns=0, end_ns=7, phases_ns=(0,) * 9) for at in range(20)]
    assert measure(make_log(steps=frozen), steps=4) == Void("no time has passed")


@given(st.lists(st.integers(0, 10**12), min_size=9, max_size=9))
def test_shares_always_sum_to_a_thousand(spent: list[int]) -> None:
    """Largest remainders, none negative, none off by more than one."""
    shares = windows._shares(spent)

    assert sum(shares) == (1000 if sum(spent) else 0)
    assert all(abs(share - ns * 1000 / (sum(spent) or 1)) <= 1 for share, ns in zip(shares, spent, strict=True))

"""Attacks on the judge: whatever is missing, garbled, biased or lying, it must not become a win."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdahl_loop.domain import judge
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.telemetry import Arm, Malformed, Window, WindowOutcome, checksum, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName
from judge_builders import Bench, make_constants, make_lost_window, make_plan, make_record, make_report

GAIN = 0.3
"""A variant this much better wins when nothing is wrong, so each attack must be what stops it."""


def lose_window(outcome: WindowOutcome, arm: str, share: float = 1.0) -> Callable[[BlockSpec, Window], Window]:
    """A tweak that replaces windows of an arm, outside the proof, by lost ones."""

    def tweak(spec: BlockSpec, window: Window) -> Window:
        if spec.stage is Stage.PROOF or spec.order[window.index] != arm:
            return window
        draws = random.Random(f"{spec.name}{window.index}")
        return make_lost_window(window.arm, window.index, outcome) if draws.random() < share else window

    return tweak


def change_arm(arm: str, **changes: object) -> Callable[[BlockSpec, Window], Window]:
    """A tweak that changes fields of an arm's windows outside the proof."""

    def tweak(spec: BlockSpec, window: Window) -> Window:
        hit = spec.stage is not Stage.PROOF and spec.order[window.index] == arm
        return window.model_copy(update=changes) if hit else window

    return tweak


def test_without_an_attack_it_wins() -> None:
    """The control: the same bench, untouched."""
    assert Bench(make_plan(), gain=GAIN).carry_through().word == "Won"


@pytest.mark.parametrize("outcome", [WindowOutcome.CRASH, WindowOutcome.OOM, WindowOutcome.HANG])
def test_a_variant_that_fails_loses_at_once(outcome: WindowOutcome) -> None:
    """One crash, one kill for memory or one hang of the variant is a loss, never a missing value."""
    bench = Bench(make_plan(), gain=GAIN, tweak=lose_window(outcome, "B"))
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", f"variant_{outcome}")
    assert bench.asked == ["p0", "d0"]


def test_a_variant_that_crashes_in_a_late_block_loses_too() -> None:
    """Four clean blocks and a candidate do not excuse a crash in a check."""

    def tweak(spec: BlockSpec, window: Window) -> Window:
        late = spec.stage is Stage.REFUTE and spec.order[window.index] == "B"
        return make_lost_window(window.arm, window.index, WindowOutcome.OOM) if late else window

    assert Bench(make_plan(), gain=GAIN, tweak=tweak).carry_through().reason == "variant_oom"


def test_a_container_killed_for_memory_names_its_arm() -> None:
    """The last summary says which arm was running when the whole container died."""

    def killed(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
        if spec.stage is Stage.PROOF:
            return record
        index = spec.order.index("B")
        report = make_report(plan, spec, (), state="running", running_arm=Arm.VARIANT, running_index=index)
        return record.model_copy(update={"report": report, "failure": "OOMKilled"})

    assert Bench(make_plan(), gain=GAIN, replace=killed).carry_through().reason == "variant_oom"


def test_a_baseline_that_keeps_crashing_is_an_error() -> None:
    """The variant may not win because the baseline falls over."""
    verdict = Bench(make_plan(), gain=GAIN, tweak=lose_window(WindowOutcome.CRASH, "A")).carry_through()
    assert (verdict.word, verdict.reason) == ("Error", "BaselineUnstable")


@pytest.mark.parametrize("outcome", [WindowOutcome.NO_REPORT, WindowOutcome.NO_STEPS, WindowOutcome.VOID])
def test_a_variant_that_hides_its_windows_is_not_judged(outcome: WindowOutcome) -> None:
    """Failing to report where the baseline does is a finding; the good windows that are left do not win."""
    verdict = Bench(make_plan(), gain=GAIN, tweak=lose_window(outcome, "B", share=0.5)).carry_through()
    assert (verdict.word, verdict.reason) == ("Inconclusive", "variant_missing")


def test_all_blocks_void_is_inconclusive() -> None:
    """Nothing but interrupted blocks: the cap ends it."""
    verdict = Bench(make_plan(), gain=GAIN, tweak=lose_window(WindowOutcome.SIGNAL, "B")).carry_through()
    assert (verdict.word, verdict.reason) == ("Inconclusive", "voids")
    assert verdict.blocks_used == 8


def test_a_variant_that_voids_its_bad_launches_is_found_out() -> None:
    """Fast in four windows of five, very slow in the fifth, no gain: replacing disturbed blocks must not hide it.

    The standard profile sees some 22 windows of the variant. `quick` sees 16, of which one in seven such variants shows
    at most one slow one: its rate is in docs/judge.md.
    """
    plan = make_plan(make_constants(ProfileName.STANDARD))
    words = Counter[str]()
    for seed in range(40):
        draws = random.Random(seed)

        def flaky(spec: BlockSpec, window: Window, draws: random.Random = draws) -> Window:
            slow = spec.stage is not Stage.PROOF and spec.order[window.index] == "B" and draws.random() < 0.2
            return window.model_copy(update={"wall_s": window.wall_s * 1.38}) if slow else window

        words[Bench(plan, gain=0.06, noise=0.01, seed=seed, tweak=flaky).carry_through().word] += 1
    assert words["Won"] <= 4, words


def swap_labels(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """The report calls every A window B and the other way round."""
    if spec.stage is not Stage.DISCOVERY or record.report is None:
        return record
    other = {Arm.BASELINE: Arm.VARIANT, Arm.VARIANT: Arm.BASELINE}
    windows = tuple(w.model_copy(update={"arm": other[w.arm]}) for w in record.report.windows)
    return record.model_copy(update={"report": make_report(plan, spec, windows)})


def of_another_run(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """The report is of some other block."""
    if spec.stage is Stage.PROOF or record.report is None:
        return record
    return record.model_copy(update={"report": record.report.model_copy(update={"run": "another-d0"})})


def three_windows(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """The last window is missing."""
    if spec.stage is Stage.PROOF or record.report is None:
        return record
    return record.model_copy(update={"report": make_report(plan, spec, record.report.windows[:3])})


def no_report(_plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """Nothing came back."""
    if spec.stage is Stage.PROOF:
        return record
    return record.model_copy(update={"report": None, "failure": "checksum does not match"})


def failed_supervisor(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """The supervisor gave up, though it lists four windows."""
    if spec.stage is Stage.PROOF or record.report is None:
        return record
    return record.model_copy(update={"report": make_report(plan, spec, record.report.windows, state="error")})


def shrinking_devices(plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """One arm's windows claim different device counts."""
    if spec.stage is Stage.PROOF or record.report is None:
        return record
    windows = tuple(w.model_copy(update={"devices": 2 + w.index}) for w in record.report.windows)
    return record.model_copy(update={"report": make_report(plan, spec, windows)})


@pytest.mark.parametrize(
    "attack", [swap_labels, of_another_run, three_windows, no_report, failed_supervisor, shrinking_devices]
)
def test_garbled_reports_are_void_and_never_win(attack: Callable[[Plan, BlockSpec, BlockRecord], BlockRecord]) -> None:
    """A report that is not exactly the one of its block counts for nothing."""
    verdict = Bench(make_plan(), gain=GAIN, replace=attack).carry_through()
    assert (verdict.word, verdict.reason) == ("Inconclusive", "voids")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1e400"])
def test_impossible_numbers_are_refused_before_the_judge(number: str) -> None:
    """Not a number, infinite, negative or beyond any float: the summary is malformed, so there is no report."""
    window = {
        "a": "A",
        "i": 0,
        "x": "ok",
        "n": 40,
        "s": 640,
        "d": 1,
        "us": 2_000_000,
        "ph": [0, 0, 0, 600, 400, 0, 0, 0, 0],
    }
    content = {"v": "amdahl.block/1", "run": "job-e1-d0", "state": "done", "w": [window]}
    good = json.dumps(content | {"crc": checksum(content)})
    assert not isinstance(parse_block_summary(good, "job-e1-d0"), Malformed)
    assert isinstance(parse_block_summary(good.replace('"us": 2000000', f'"us": {number}'), "job-e1-d0"), Malformed)


def test_a_cost_that_is_not_finite_is_no_cost() -> None:
    """Even past the parser, a number that is none makes the block void."""
    bench = Bench(make_plan(), gain=GAIN, tweak=change_arm("B", wall_s=float("nan")))
    assert bench.carry_through().word == "Inconclusive"
    bench = Bench(make_plan(), gain=GAIN, tweak=change_arm("B", wall_s=0.0))
    assert bench.carry_through().word == "Inconclusive"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"samples": 320}, "work", id="half the batch"),
        pytest.param({"elements_per_sample": 32.0}, "work", id="half the sequence"),
        pytest.param({"shape": "deadbeef"}, "work", id="another shape"),
        pytest.param({"distinct_ppk": 500}, "work", id="every batch twice"),
        pytest.param({"elements_per_sample": None}, "work", id="elements hidden"),
        pytest.param({"distinct_ppk": None}, "work", id="repeats hidden"),
        pytest.param({"clock_ppk": -300}, "meter", id="a clock that runs slow"),
        pytest.param({"quiet_step_s": 0.5}, "meter", id="steps longer than their sum"),
        pytest.param({"loss_mean": None}, "quality", id="losses hidden"),
    ],
)
def test_lying_counters_end_the_experiment_at_once(changes: dict[str, object], reason: str) -> None:
    """Work and meters are checked in the first block, before any statistics."""
    bench = Bench(make_plan(), gain=GAIN, tweak=change_arm("B", **changes))
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", reason), verdict.sentence
    assert bench.asked == ["p0", "d0"]


def test_drift_does_not_make_a_win() -> None:
    """The machine gets 2 % faster with every window: ABBA cancels it."""

    def drift(spec: BlockSpec, window: Window) -> Window:
        if spec.stage is Stage.PROOF:
            return window
        factor = 0.98 ** (4 * spec.index + window.index)
        return window.model_copy(update={"wall_s": window.wall_s * factor, "quiet_step_s": None})

    verdicts = [Bench(make_plan(seed=s), noise=0.005, seed=s, tweak=drift).carry_through().word for s in range(20)]
    assert "Won" not in verdicts


@pytest.mark.parametrize("slow", [(1, 2), (0, 3), (0,), (3,)])
def test_an_effect_of_order_does_not_make_a_win(slow: tuple[int, ...]) -> None:
    """Some positions of every block are 10 % slower, whichever arm stands there: the coin cancels it."""

    def by_position(spec: BlockSpec, window: Window) -> Window:
        hit = spec.stage is not Stage.PROOF and window.index in slow
        return window.model_copy(update={"wall_s": window.wall_s * 1.1, "quiet_step_s": None}) if hit else window

    words = Counter(
        Bench(make_plan(seed=s), noise=0.01, seed=s, tweak=by_position).carry_through().word for s in range(40)
    )
    assert words["Won"] == 0, words


def test_a_random_judge_is_worse() -> None:
    """Control: a judge that tosses a coin accepts half of the nulls; ours accepts none of 150."""
    nulls = [Bench(make_plan(seed=s), noise=0.03, seed=s).carry_through().word == "Won" for s in range(150)]
    coins = random.Random(1)
    assert sum(nulls) == 0
    assert sum(coins.random() < 0.5 for _ in nulls) > 50


def test_data_that_cannot_be_changed_are_not_judged() -> None:
    """Where the offset is not applied, no check sees other data: said after the first look, not after the last check."""

    def stuck(_spec: BlockSpec, window: Window) -> Window:
        return window.model_copy(update={"offset_applied": False})

    bench = Bench(make_plan(), gain=GAIN, tweak=stuck)
    assert bench.carry_through().reason == "offset_not_applied"
    assert len(bench.asked) == 5


def test_a_trial_unlike_the_job_is_not_judged() -> None:
    """The job computes 90 % of its time, the trial waits for data: not representative."""
    plan = make_plan(baseline_shares_ppk=(0, 0, 0, 100, 900, 0, 0, 0, 0))
    verdict = Bench(plan, gain=GAIN).carry_through()
    assert (verdict.word, verdict.reason) == ("Inconclusive", "not_representative")
    assert "input takes" in verdict.sentence


def test_launch_phases_do_not_make_a_trial_unlike_the_job() -> None:
    """Start-up is left out on both sides: a trial is short and a job is long."""
    plan = make_plan(baseline_shares_ppk=(0, 500, 0, 300, 190, 0, 0, 0, 10))
    assert Bench(plan, gain=GAIN).carry_through().word == "Won"


def test_memory_that_doubles_is_a_harm() -> None:
    """Without a known limit: twice the memory and 4 GiB more."""
    verdict = Bench(make_plan(), gain=GAIN, tweak=change_arm("B", peak_mem_mib=9000)).carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", "harm")


@given(
    lost=st.dictionaries(
        st.tuples(st.sampled_from(["d", "r", "s", "n"]), st.integers(0, 6), st.integers(0, 3)),
        st.sampled_from([o for o in WindowOutcome if o is not WindowOutcome.OK]),
        max_size=12,
    ),
    absent=st.sets(st.sampled_from(["d", "r", "s", "n"]), min_size=1, max_size=4),
)
@settings(max_examples=60)
def test_missing_data_never_win(lost: dict[tuple[str, int, int], WindowOutcome], absent: set[str]) -> None:
    """Whatever windows are lost, an experiment one of whose stages brings nothing at all does not win."""

    def tweak(spec: BlockSpec, window: Window) -> Window:
        outcome = lost.get((spec.name[0], spec.index, window.index))
        return make_lost_window(window.arm, window.index, outcome) if outcome else window

    def replace(_plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
        gone = spec.name[0] in absent
        return record.model_copy(update={"report": None}) if gone else record

    assert Bench(make_plan(), gain=GAIN, tweak=tweak, replace=replace).carry_through().word != "Won"


@given(seed=st.integers(0, 10_000), better=st.floats(0.0, 0.4), worse_by=st.floats(0.001, 0.3))
@settings(max_examples=60)
def test_a_worse_variant_never_wins_where_a_better_one_did_not(seed: int, better: float, worse_by: float) -> None:
    """Same machine, same noise: the more expensive variant is not preferred."""
    words = [
        Bench(make_plan(), gain=gain, noise=0.02, seed=seed).carry_through().word
        for gain in (better, better - worse_by)
    ]
    assert not (words[1] == "Won" and words[0] in ("NoGain", "Refuted"))


@given(seed=st.integers(0, 10_000), gain=st.floats(-0.2, 0.4), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_same_blocks_give_the_same_verdict(seed: int, gain: float, shuffle: random.Random) -> None:
    """Records may arrive in any order and be judged any number of times."""
    bench = Bench(make_plan(), gain=gain, noise=0.03, seed=seed)
    experiment = Experiment(plan=bench.plan)
    while not isinstance(said := judge.assess(experiment), judge.Closed):
        experiment = experiment.with_block(bench.run(said.specs[0]))
    blocks = list(experiment.blocks)
    shuffle.shuffle(blocks)
    again = judge.assess(Experiment(plan=bench.plan, blocks=tuple(blocks)))
    assert again == said


def test_blocks_of_another_plan_are_ignored() -> None:
    """Records that the plan does not know are none of this experiment's."""
    bench, other = Bench(make_plan(), gain=GAIN), make_plan(make_constants(), seed=99)
    spec = other.stage_blocks(Stage.DISCOVERY)[0]
    stray = make_record(other, spec)
    alone = judge.assess(Experiment(plan=bench.plan))
    assert judge.assess(Experiment(plan=bench.plan, blocks=(stray,))) == alone


def test_later_blocks_cannot_change_an_earlier_look() -> None:
    """A look sees what had run when its count was reached; good blocks run afterwards do not mend it."""
    bench = Bench(make_plan(), gain=0.0, noise=0.02)
    experiment = Experiment(plan=bench.plan).with_block(bench.run(bench.plan.blocks[0]))
    for spec in bench.plan.stage_blocks(Stage.DISCOVERY)[:4]:
        experiment = experiment.with_block(bench.run(spec))
    first = judge.assess(experiment)
    lucky = Bench(bench.plan, gain=0.5)
    for spec in bench.plan.stage_blocks(Stage.DISCOVERY)[4:]:
        experiment = experiment.with_block(lucky.run(spec))
    second = judge.assess(experiment)
    assert isinstance(first, judge.Closed)
    assert isinstance(second, judge.Closed)
    assert first.verdict.word == second.verdict.word == "NoGain"
    assert first.verdict.effect == second.verdict.effect
    assert math.isfinite(first.verdict.effect or math.nan)

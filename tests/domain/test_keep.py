"""Whether a win in force still stands: what counts, what does not, and how much it takes."""

import math
from collections.abc import Callable

import pytest

from amdahl_loop.domain.bank import balance
from amdahl_loop.domain.blocks import BlockSpec, Stage, holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.keep import BLOCKS_TO_FADE, Kept, assess, find_effect, find_kept, interval_s
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.telemetry import Arm, Window, WindowOutcome
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import make_application
from judge_builders import Bench, make_constants, make_lost_window, make_plan, make_record, make_window

APPLIED, ROLLED_BACK, REVERTED = ApplicationKind.APPLIED, ApplicationKind.ROLLED_BACK, ApplicationKind.REVERTED
STANDARD = make_constants(ProfileName.STANDARD)
DAY_S = 86400.0

Fault = Callable[[BlockSpec, Window], Window]


def make_win(claim: float = 0.10, constants: object = STANDARD, **plan: object) -> Experiment:
    """A won experiment whose checks really ran: blocks with 1 % noise and a saving of `claim`."""
    planned = make_plan(constants=constants, **plan)  # type: ignore[arg-type] # the builder takes any field of a plan
    bench = Bench(planned, gain=claim)
    blocks = [bench.run(spec) for check in range(5) for spec in planned.stage_blocks(Stage.REFUTE, check)[:1]]
    effect = -math.log1p(-claim)
    verdict = Verdict(word=VerdictWord.WON, sentence="-", effect=effect, effect_se=0.004, floor=0.03)
    return Experiment(plan=planned, blocks=tuple(blocks), verdict=verdict)


def make_holdout(plan: Plan, index: int, saving: float | None, tweak: Fault | None = None) -> BlockRecord:
    """A block after the verdict in which the variant saved so much; None: nothing was reported."""
    spec = holdout_block(plan.seed, index)
    windows = []
    for number, arm in enumerate(Arm(letter) for letter in spec.order):
        step_s = 0.05 * (1 - (saving or 0.0) if arm is Arm.VARIANT else 1)
        window = make_window(arm, number, step_s=step_s)
        windows.append(tweak(spec, window) if tweak else window)
    at_s = 2_000_000.0 + index * DAY_S
    record = make_record(plan, plan.blocks[0], started_at_s=at_s).model_copy(update={"spec": spec})
    if saving is None:
        return record.model_copy(update={"failure": "unschedulable"})
    full = make_record(plan, plan.blocks[0], tuple(windows))
    assert full.report is not None
    return record.model_copy(update={"report": full.report.model_copy(update={"run": plan.run_name(spec)})})


def hold_out(win: Experiment, *savings: float | None, tweak: Fault | None = None) -> Experiment:
    """The win after holdout blocks with these savings."""
    for saving in savings:
        index = len(win.stage_records(Stage.HOLDOUT))
        win = win.with_block(make_holdout(win.plan, index, saving, tweak))
    return win


def only(arm: Arm, change: Callable[[Window], Window], position: int | None = None) -> Fault:
    """Changes the windows of one arm, or one window of them."""

    def tweak(spec: BlockSpec, window: Window) -> Window:
        places = [number for number, letter in enumerate(spec.order) if letter == arm]
        is_meant = window.arm is arm and (position is None or window.index == places[position])
        return change(window) if is_meant else window

    return tweak


def slow(factor: float) -> Callable[[Window], Window]:
    """A window that took longer."""
    return lambda window: window.model_copy(update={"wall_s": window.wall_s * factor})


def fail(outcome: WindowOutcome) -> Callable[[Window], Window]:
    """A window that ended without a measurement."""
    return lambda window: make_lost_window(window.arm, window.index, outcome)


class TestFading:
    @pytest.mark.parametrize(
        ("savings", "has_faded"),
        [
            pytest.param([], False, id="not tested yet"),
            pytest.param([0.10] * 30, False, id="it stands"),
            pytest.param([0.06] * 30, False, id="more than the floor is left"),
            pytest.param([0.0] * 2, False, id="two blocks without it"),
            pytest.param([0.0] * 3, True, id="three blocks without it"),
            pytest.param([-0.9] * 2, False, id="two disastrous blocks"),
            pytest.param([-0.9] * 3, True, id="three of them"),
            pytest.param([0.0, 0.10, 0.0, 0.10, 0.0, 0.10] * 5, False, id="every second block is good"),
            pytest.param([0.10] * 20 + [0.0] * 3, True, id="a good past does not help"),
            pytest.param([0.01] * 8, True, id="a remnant below the floor adds up"),
            pytest.param([None] * 30, False, id="blocks that could not be run"),
            pytest.param([0.0, None, 0.0, None, 0.0], True, id="gaps between bad blocks"),
            pytest.param([0.0] * 3 + [0.10] * 20, True, id="what was said is not unsaid"),
        ],
    )
    def test_a_win_of_ten_percent(self, savings: list[float | None], has_faded: bool) -> None:
        """It is taken back when about nothing is left, three blocks in a row at the soonest."""
        assert assess(hold_out(make_win(0.10), *savings)).has_faded is has_faded

    @pytest.mark.parametrize(
        ("claim", "left", "has_faded"),
        [
            pytest.param(0.50, 0.20, False, id="most of a large win is gone, a fifth is still saved"),
            pytest.param(0.50, 0.00, True, id="all of it is gone"),
            pytest.param(0.04, 0.025, False, id="a small win shrinks a little"),
            pytest.param(0.04, 0.00, True, id="a small win is gone"),
        ],
    )
    def test_the_bar_is_the_floor_or_half_of_a_smaller_claim(self, claim: float, left: float, has_faded: bool) -> None:
        """Taking back what still saves would cost its owner what is left."""
        assert assess(hold_out(make_win(claim), *[left] * 30)).has_faded is has_faded

    def test_noise_asks_for_more_blocks(self) -> None:
        """The alarm follows the block noise of the experiment: twice the noise, four times the sum."""
        quiet, noisy = make_win(0.10), make_win(0.10)
        bench = Bench(noisy.plan, gain=0.10, noise=0.05)
        noisy = noisy.model_copy(update={"blocks": tuple(bench.run(record.spec) for record in noisy.blocks)})
        alarms = [assess(hold_out(win, 0.1)).alarm for win in (quiet, noisy)]
        assert alarms[0] == STANDARD.holdout_least_alarm
        assert alarms[1] > 2 * alarms[0]

    @pytest.mark.parametrize(
        ("tweak", "faded_after"),
        [
            pytest.param(only(Arm.VARIANT, fail(WindowOutcome.OOM)), 3, id="the variant runs out of memory"),
            pytest.param(only(Arm.VARIANT, fail(WindowOutcome.HANG)), 3, id="the variant hangs"),
            pytest.param(only(Arm.BASELINE, fail(WindowOutcome.CRASH)), None, id="the baseline crashes"),
            pytest.param(only(Arm.VARIANT, fail(WindowOutcome.SIGNAL)), None, id="stopped from outside"),
            pytest.param(only(Arm.VARIANT, slow(1.5), position=0), 3, id="every second launch of the variant is slow"),
            pytest.param(only(Arm.BASELINE, slow(1.5), position=0), None, id="the baseline disagrees with itself"),
        ],
    )
    def test_what_else_a_block_can_say(self, tweak: Fault, faded_after: int | None) -> None:
        """The variant's own failures count, each as one bad block; everything else that voids a block says nothing."""
        win, faded = make_win(0.10), None
        for number in range(1, 7):
            win = hold_out(win, 0.10, tweak=tweak)
            if faded is None and assess(win).has_faded:
                faded = number
        assert faded == faded_after

    @pytest.mark.parametrize(
        ("change", "veto"),
        [
            pytest.param({"samples": 320}, "work", id="fewer samples a step"),
            pytest.param({"loss_mean": None, "losses": None}, "quality", id="losses are hidden"),
            pytest.param({"clock_ppk": 200}, "meter", id="its clock runs slow"),
        ],
    )
    def test_a_guard_takes_it_back_at_once(self, change: dict[str, object], veto: str) -> None:
        """What no experiment survives, no win in force survives either; the sentence says which guard spoke."""
        tweak = only(Arm.VARIANT, lambda window: window.model_copy(update=change))
        standing = assess(hold_out(make_win(0.10), 0.10, tweak=tweak))
        assert standing.has_faded
        assert standing.sentence.startswith(f"vetoed by {veto} since it was applied: ")

    @pytest.mark.parametrize(
        ("savings", "words"),
        [
            ([], "claims 10.0 %, no block has tested it since it was applied"),
            (
                [0.10] * 4,
                "stands: saves 10.0 % over 4 blocks since it was applied, claims 10.0 %; it fell short by 0.0 %",
            ),
            ([0.0] * 3, "faded: saves 0.0 % over 3 blocks since it was applied, claims 10.0 %; it fell short by 3.9 %"),
        ],
    )
    def test_it_is_said_with_numbers(self, savings: list[float], words: str) -> None:
        """What it saves now, over how many blocks, and what was claimed."""
        assert assess(hold_out(make_win(0.10), *savings)).sentence.startswith(words)

    def test_an_open_experiment_has_no_win_to_keep(self) -> None:
        """Asking is a broken contract."""
        with pytest.raises(AssertionError, match="is open"):
            assess(Experiment(plan=make_plan()))


def apply(
    experiment: str, after: int, kind: ApplicationKind = APPLIED, declared: int = 0, at_s: float = 1.0
) -> Application:
    """Values that took effect."""
    return make_application(Knobs(dataloader_workers=after), kind, experiment, Knobs(dataloader_workers=declared), at_s)


class TestInForce:
    @pytest.mark.parametrize(
        ("applications", "workers", "kept"),
        [
            pytest.param([], 0, [], id="nothing was applied"),
            pytest.param([apply("a", 2)], 2, ["a"], id="applied"),
            pytest.param([apply("a", 2), apply("a", 0, ROLLED_BACK)], 0, [], id="taken back"),
            pytest.param(
                [apply("a", 2), apply("a", 2, REVERTED)], 2, ["a"], id="put back in the spec, runs as an overlay"
            ),
            pytest.param([apply("a", 2), apply("a", 2, REVERTED)], 0, [], id="put back where only the spec counts"),
            pytest.param([apply("a", 2)], 5, [], id="its owner chose another value"),
            pytest.param([apply("a", 2), apply("b", 4)], 4, ["b"], id="a later win moved the same knob on"),
            pytest.param(
                [apply("a", 2), apply("b", 4), apply("b", 2, ROLLED_BACK)],
                2,
                ["a"],
                id="the later one is gone",
            ),
            pytest.param(
                [apply("a", 2), apply("b", 2, declared=5)], 2, ["b"], id="won again from its owner's new value"
            ),
        ],
    )
    def test_which_wins_are_tested(self, applications: list[Application], workers: int, kept: list[str]) -> None:
        """Applied since the owner last spoke, not taken back, and still at the value that was proven."""
        wins = [
            make_win(name="a", before=0, after=2),
            make_win(name="b", before=2, after=workers if workers == 2 else 4),
        ]
        lost = (
            wins[0]
            .model_copy(update={"plan": wins[0].plan.model_copy(update={"name": "c"})})
            .with_verdict(Verdict(word=VerdictWord.REFUTED, sentence="-"))
        )
        found = find_kept([*wins, lost], applications, Knobs(dataloader_workers=workers))
        assert [one.win.name for one in found] == kept

    def test_undoing_touches_its_own_knobs_only(self) -> None:
        """Whatever else is in force stays."""
        kept = Kept(make_win(before=0, after=2), apply("a", 2))
        knobs = Knobs(dataloader_workers=2, gpus_per_replica=1)
        assert kept.undo(knobs) == Knobs(dataloader_workers=0, gpus_per_replica=1)


class TestDue:
    APPLIED_AT_S = 1_000_000.0

    def due(self, win: Experiment, now_s: float) -> str | None:
        """The block that is due, by its name."""
        spec = Kept(win, apply("a", 2, at_s=self.APPLIED_AT_S)).next_block(now_s)
        return None if spec is None else spec.name

    @pytest.mark.parametrize(
        ("blocks", "days", "due"),
        [
            pytest.param(0, 0.99, None, id="not a day since it was applied"),
            pytest.param(0, 1.0, "h0", id="a day later"),
            pytest.param(0, 50.0, "h0", id="long after: one block"),
            pytest.param(0, -0.5, None, id="the clock is a little behind"),
            pytest.param(0, -30.0, "h0", id="the clock was set back"),
        ],
    )
    def test_the_first_comes_a_day_after_the_win(self, blocks: int, days: float, due: str | None) -> None:
        """Counted from its application."""
        assert self.due(hold_out(make_win(), *[0.1] * blocks), self.APPLIED_AT_S + days * DAY_S) == due

    def test_the_next_comes_a_day_after_the_last(self) -> None:
        """By its own start; after the last planned one there are no more."""
        win = hold_out(make_win(), *[0.1] * 4)
        last_s = win.blocks[-1].started_at_s
        assert self.due(win, last_s + 0.99 * DAY_S) is None
        assert self.due(win, last_s + DAY_S) == "h4"
        many = hold_out(make_win(), *[0.1] * STANDARD.holdout_blocks)
        assert self.due(many, last_s + 99 * DAY_S) is None

    def test_the_quick_profile_has_none(self) -> None:
        """It is for one machine whose loop ends."""
        assert self.due(make_win(constants=make_constants()), self.APPLIED_AT_S + 9 * DAY_S) is None

    def test_blocks_are_drawn_from_the_seed_alone(self) -> None:
        """The same block whenever it is asked for; no two alike; none shares a seed or offset with the plan's blocks."""
        plan = make_plan(constants=STANDARD)
        drawn = [holdout_block(plan.seed, index) for index in range(30)]
        assert drawn == [holdout_block(plan.seed, index) for index in range(30)]
        offsets = [offset for spec in (*plan.blocks, *drawn) for offset in spec.offsets if offset]
        assert len(set(offsets)) == len(offsets)
        assert {spec.order for spec in drawn} == {"ABBA", "BAAB"}
        assert drawn[0] != holdout_block(8, 0)

    @pytest.mark.parametrize(
        ("claim", "held_s", "processes", "days"),
        [
            pytest.param(0.20, 600.0, 1, 1.0, id="a large win: every day"),
            pytest.param(0.04, 600.0, 1, 600 / 0.1 / (1 / 0.96 - 1) / DAY_S, id="a small one: when it has paid for it"),
            pytest.param(0.04, 600.0, 4, 1.0, id="on four devices it saves four times as much"),
            pytest.param(0.20, 12_000.0, 1, 12_000 / 0.1 / 0.25 / DAY_S, id="an expensive block"),
        ],
    )
    def test_testing_costs_a_tenth_of_what_is_saved(
        self, claim: float, held_s: float, processes: int, days: float
    ) -> None:
        """The profile's interval, or the time in which the win has saved ten times what a block holds."""
        win = make_win(claim, others={KnobName.GPUS_PER_REPLICA: processes})
        blocks = tuple(record.model_copy(update={"held_device_s": held_s}) for record in win.blocks)
        assert interval_s(win.model_copy(update={"blocks": blocks})) / DAY_S == pytest.approx(days)


class TestCredit:
    @pytest.mark.parametrize(
        ("savings", "credited"),
        [
            pytest.param([], 0.30, id="not tested yet"),
            pytest.param([0.32, 0.31, 0.33, 0.30], 0.30, id="never more than was claimed"),
            pytest.param([0.29, 0.31, 0.30, 0.28], 0.30, id="the same, within its error"),
            pytest.param([0.10, 0.11], 0.30, id="two blocks are too few to say so"),
            pytest.param([0.10, 0.11, 0.09, 0.10], 0.10, id="a third of it is left"),
        ],
    )
    def test_what_is_left_is_credited(self, savings: list[float], credited: float) -> None:
        """The mean of the checks, until the blocks since then show that less is left."""
        found = find_effect(hold_out(make_win(0.30), *savings))
        assert found is not None
        assert -math.expm1(-found.mean) == pytest.approx(credited, abs=0.005)

    def test_the_bank_follows(self) -> None:
        """Projected savings shrink with the win, and its blocks are debited."""
        win = make_win(0.30, name="a")
        weaker = hold_out(win, *[0.10, 0.11, 0.09, 0.10])
        before, after = (balance([one], [apply("a", 2)], ahead_h=100.0) for one in (win, weaker))
        assert before.projected.expected_h == pytest.approx(30.0)
        assert after.projected.expected_h == pytest.approx(10.0, abs=0.5)
        assert after.spent_h == pytest.approx(before.spent_h + 4 * 12.0 / 3600)

    def test_a_win_without_an_error_is_credited_with_nothing(self) -> None:
        """As before: what is not known is not banked."""
        win = make_win()
        assert win.verdict is not None
        unsure = win.with_verdict(win.verdict.model_copy(update={"effect_se": None}))
        assert find_effect(unsure) is None


def test_three_blocks_are_the_least() -> None:
    """The figure that this file's tables are written for."""
    assert BLOCKS_TO_FADE == 3

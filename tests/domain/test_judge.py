"""How a verdict is reached: proof, looks, checks, soak, null."""

import math

import pytest

from amdahl_loop.domain import judge
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.constants import JUDGE_VERSION, Constants
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import Arm, Window, WindowOutcome
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.verdicts import VetoName
from judge_builders import Bench, make_constants, make_lost_window, make_plan, make_record


def run_until(bench: Bench, stage: Stage) -> tuple[Experiment, judge.Assessment]:
    """Run blocks until the judge asks for one of `stage`, or has closed."""
    experiment = Experiment(plan=bench.plan)
    while True:
        said = judge.assess(experiment)
        if isinstance(said, judge.Closed) or said.specs[0].stage is stage:
            return experiment, said
        experiment = experiment.with_block(bench.run(said.specs[0]))


def test_equal_work_is_proven_first() -> None:
    """Before anything is timed, the arms are compared from one start."""
    said = judge.assess(Experiment(plan=make_plan()))
    assert isinstance(said, judge.NeedBlocks)
    assert (said.stage, [spec.name for spec in said.specs]) == (Stage.PROOF, ["p0"])


def test_discovery_asks_for_its_first_look_at_once() -> None:
    """Four blocks are needed before anything can be said, so four are named."""
    _, said = run_until(Bench(make_plan()), Stage.DISCOVERY)
    assert isinstance(said, judge.NeedBlocks)
    assert [spec.name for spec in said.specs] == ["d0", "d1", "d2", "d3"]


@pytest.mark.parametrize("profile", list(ProfileName))
def test_a_true_gain_wins(profile: ProfileName) -> None:
    """30 % on a noisy machine wins in every profile, at the fewest blocks, and the checks' mean is what is reported."""
    bench = Bench(make_plan(make_constants(profile)), gain=0.3, noise=0.04)
    verdict = bench.carry_through()
    constants = bench.plan.constants
    assert verdict.word == "Won", verdict.sentence
    assert verdict.effect == pytest.approx(-math.log(0.7), abs=0.08)
    assert verdict.effect == pytest.approx(sum(vote.effect for vote in verdict.votes) / constants.checks)
    assert verdict.discovery_effect != verdict.effect
    assert len(verdict.votes) == constants.checks
    assert [veto.name for veto in verdict.vetoes if veto.silent] == [
        VetoName.WORK,
        VetoName.QUALITY,
        VetoName.SOAK,
        VetoName.NULL,
        VetoName.HARM,
        VetoName.COST,
        VetoName.METER,
    ]
    assert verdict.blocks_used == len(bench.asked)


@pytest.mark.parametrize("gain", [0.0, -0.02, -0.3])
def test_no_gain_ends_at_four_blocks(gain: float) -> None:
    """A variant that changes nothing, or harms, is over after the first look."""
    bench = Bench(make_plan(), gain=gain, noise=0.02)
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("NoGain", "below_floor")
    assert bench.asked == ["p0", "d0", "d1", "d2", "d3"]


def test_every_verdict_holds_its_numbers() -> None:
    """The sentence names effect, interval, blocks and floor."""
    sentence = Bench(make_plan(), gain=0.3).carry_through().sentence
    assert sentence.startswith("dataloaderWorkers 0 -> 2 saves +")
    for words in ("3 of 3 checks agree", "7 vetoes silent", "on this node", "discovery claimed", "floor 3.0 %"):
        assert words in sentence


def test_a_candidate_names_the_blocks_that_try_to_refute_it() -> None:
    """Between discovery and the first check the judge says what it found."""
    _, said = run_until(Bench(make_plan(), gain=0.3), Stage.REFUTE)
    assert isinstance(said, judge.Candidate)
    assert [spec.name for spec in said.specs] == ["r0-0", "r1-0", "r2-0"]
    assert said.interval[0] < said.effect < said.interval[1]
    assert said.effect > said.floor


def test_the_floor_rises_with_the_noise() -> None:
    """1.5 block spreads: on a machine that spreads by 6 % a gain of 6 % is not claimed."""
    quiet = Bench(make_plan(), gain=0.06, noise=0.002).carry_through()
    noisy = Bench(make_plan(), gain=0.06, noise=0.06).carry_through()
    assert quiet.word == "Won"
    assert quiet.floor == pytest.approx(0.03)
    assert noisy.word != "Won"
    assert noisy.floor is not None
    assert noisy.floor > 0.05


def test_too_noisy_to_experiment() -> None:
    """Beyond 10 % spread the judge refuses, at the second look."""
    verdict = Bench(make_plan(), gain=0.1, noise=0.3).carry_through()
    assert (verdict.word, verdict.reason) == ("Inconclusive", "too_noisy")
    assert "block sd" in verdict.sentence


@pytest.mark.parametrize(
    ("gain", "margin", "word", "reason"),
    [
        pytest.param(0.55, 1.0, "Won", "won", id="what stands out by a floor"),
        pytest.param(0.55, 0.0, "Inconclusive", "too_noisy", id="nothing stands out to a plan of an older judge"),
        pytest.param(0.2, 1.0, "Inconclusive", "too_noisy", id="a gain that the noise could make"),
        pytest.param(0.0, 1.0, "Inconclusive", "too_noisy", id="no gain"),
        pytest.param(-0.8, 1.0, "Inconclusive", "too_noisy", id="a loss does not stand out"),
    ],
)
def test_noise_hides_no_gain_that_stands_out(gain: float, margin: float, word: str, reason: str) -> None:
    """Blocks that spread by 17 %: only a gain whose bound clears the floor, itself 1.5 spreads, goes on to its checks."""
    plan = make_plan(make_constants(noisy_margin=margin))
    verdict = Bench(plan, gain=gain, noise=0.17).carry_through()
    assert (verdict.word, verdict.reason) == (word, reason)


def test_plans_of_an_older_judge_keep_their_rule() -> None:
    """A plan that says nothing of a margin was made without one; new plans have one in every profile."""
    older = make_plan().constants.model_dump(exclude={"noisy_margin"})
    assert Constants.model_validate(older).noisy_margin == 0
    assert {profile.noisy_margin for profile in PROFILES.values()} == {1.0}


def test_a_win_that_fades_is_vetoed_by_the_soak() -> None:
    """Fast in every block but the long ones."""

    def fading(spec: BlockSpec, window: Window) -> Window:
        slow = spec.stage is Stage.SOAK and spec.order[window.index] == "B"
        return window.model_copy(update={"wall_s": window.wall_s * 1.5}) if slow else window

    bench = Bench(make_plan(), gain=0.3, tweak=fading)
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", "soak")
    assert bench.asked[-1] == "s1"


def test_a_harness_that_flatters_is_vetoed_by_null() -> None:
    """Both arms run the baseline, and whatever is labelled variant still looks 20 % cheaper."""
    verdict = Bench(make_plan(), gain=0.0, label_gain=0.2).carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", "null")


def test_a_majority_against_ends_the_checks_early() -> None:
    """Two of three checks found nothing: the third could not change that, and is not run."""

    def only_at_first(spec: BlockSpec, window: Window) -> Window:
        gone = spec.stage is Stage.REFUTE and spec.order[window.index] == "B"
        return window.model_copy(update={"wall_s": window.wall_s / 0.7}) if gone else window

    bench = Bench(make_plan(), gain=0.3, tweak=only_at_first)
    verdict = bench.carry_through()
    assert (verdict.word, verdict.reason) == ("Refuted", "outvoted")
    assert bench.asked[-2:] == ["r0-0", "r1-0"]


def test_one_dissenting_check_does_not_refute() -> None:
    """Two of three agree, and all three are run and counted."""

    def dissent(spec: BlockSpec, window: Window) -> Window:
        bad = spec.stage is Stage.REFUTE and spec.check == 1 and spec.order[window.index] == "B"
        return window.model_copy(update={"wall_s": window.wall_s * 1.25}) if bad else window

    verdict = Bench(make_plan(), gain=0.3, tweak=dissent).carry_through()
    assert verdict.word == "Won"
    assert [vote.agree for vote in verdict.votes] == [True, False, True]


def test_small_wins_buy_more_null_blocks() -> None:
    """Half of a small claim is hard to bound: null stops where it can, and only there."""
    large = Bench(make_plan(), gain=0.3, noise=0.03)
    small = Bench(make_plan(), gain=0.07, noise=0.03, seed=2)
    large.carry_through()
    small.carry_through()
    counts = [sum(name.startswith("n") for name in bench.asked) for bench in (large, small)]
    assert counts[0] < counts[1]


def test_a_job_that_cannot_run_in_a_trial_is_an_error() -> None:
    """The baseline itself fails in the proof: nothing is compared."""

    def broken(plan: Plan, spec: BlockSpec, _record: BlockRecord) -> BlockRecord:
        return make_record(plan, spec, (make_lost_window(Arm.BASELINE, 0, WindowOutcome.CRASH),))

    verdict = Bench(make_plan(), replace=broken).carry_through()
    assert (verdict.word, verdict.reason) == ("Error", "TrialCannotRun")


def test_transfer_skips_discovery_and_nothing_else() -> None:
    """A win of the family goes straight to the checks, and through soak and null."""
    bench = Bench(make_plan(skip_discovery=True, expected_gain=0.3), gain=0.3)
    verdict = bench.carry_through()
    assert verdict.word == "Won", verdict.sentence
    assert [name[0] for name in bench.asked] == ["p", "r", "r", "r", "s", "n"]


@pytest.mark.parametrize(
    ("gain", "noise", "word"),
    [
        pytest.param(0.0, 0.01, "Refuted", id="nothing here"),
        pytest.param(0.2, 0.08, "Inconclusive", id="bound at 99.5 % not above zero"),
    ],
)
def test_a_failed_transfer(gain: float, noise: float, word: str) -> None:
    """What was true elsewhere is not taken for granted here."""
    verdict = Bench(make_plan(skip_discovery=True, expected_gain=0.2), gain=gain, noise=noise, seed=5).carry_through()
    assert verdict.word == word, verdict.sentence


@pytest.mark.parametrize(
    ("objective", "devices", "word"),
    [
        pytest.param(Objective.DEVICE_HOURS, 1, "Vetoed", id="half the devices, three quarters slower"),
        pytest.param(Objective.WALL_TIME, 1, "NoGain", id="the same, where wall time counts"),
    ],
)
def test_fewer_devices_must_not_cost_too_much_wall_time(objective: Objective, devices: int, word: str) -> None:
    """Device-hours may be saved at a bounded price in wall time; without the bound one device would always win."""
    plan = make_plan(knob=KnobName.GPUS_PER_REPLICA, before=4, after=devices, objective=objective)

    def scaled(spec: BlockSpec, window: Window) -> Window:
        count = devices if spec.order[window.index] == "B" else 4
        slower = 1.75 if count == 1 and spec.stage is not Stage.PROOF else 1.0
        return window.model_copy(update={"devices": count, "wall_s": window.wall_s * slower})

    verdict = Bench(plan, tweak=scaled).carry_through()
    assert verdict.word == word, verdict.sentence
    if word == "Vetoed":
        assert verdict.reason == "cost"
        assert "allowed 1.05" in verdict.sentence


def test_a_closed_experiment_stays_closed() -> None:
    """A verdict is final, whatever blocks lie beside it."""
    bench = Bench(make_plan(), gain=0.3)
    verdict = bench.carry_through()
    assert judge.assess(Experiment(plan=bench.plan, verdict=verdict)) == judge.Closed(verdict)


def test_a_plan_without_proof_is_not_judged() -> None:
    """No proof of equal work, no verdict in favour."""
    plan = make_plan()
    bare = plan.model_copy(update={"blocks": tuple(s for s in plan.blocks if s.stage is not Stage.PROOF)})
    said = judge.assess(Experiment(plan=bare))
    assert isinstance(said, judge.Closed)
    assert said.verdict.reason == "no_proof"


def test_nodes_are_named_in_the_claim() -> None:
    """Checks on another node widen the claim; on one node it says so."""

    def elsewhere(_plan: Plan, spec: BlockSpec, record: BlockRecord) -> BlockRecord:
        node = "n1" if spec.stage is Stage.REFUTE else "n0"
        return record.model_copy(update={"node": node})

    verdict = Bench(make_plan(), gain=0.3, replace=elsewhere).carry_through()
    assert "on 2 nodes" in verdict.sentence
    assert all("node" in vote.changed for vote in verdict.votes)


VERSIONS = pytest.mark.parametrize("version", [JUDGE_VERSION, "2", "of nobody"])


@VERSIONS
def test_a_win_is_upheld_by_its_blocks_whoever_has_judged_it(version: str) -> None:
    """The plan holds every constant, so another version's win is judged again by this one."""
    win = Bench(make_plan(make_constants(judge_version=version)), gain=0.3).close()
    assert win.is_won
    assert judge.upholds(win)


@VERSIONS
def test_a_win_that_its_blocks_do_not_show_is_not_upheld(version: str) -> None:
    """A verdict that was written by hand: over blocks that show no gain, over half of a win's, or over none."""
    constants = make_constants(judge_version=version)
    win, none = (Bench(make_plan(constants), gain=gain).close() for gain in (0.3, 0.0))
    for blocks in (none.blocks, win.blocks[: len(win.blocks) // 2], ()):
        assert not judge.upholds(win.model_copy(update={"blocks": blocks}))

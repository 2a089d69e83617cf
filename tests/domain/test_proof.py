"""When both arms are believed to do the same work."""

from collections.abc import Callable
from typing import Any

import pytest

from amdahl_loop.domain import judge
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.telemetry import Arm, Window, WindowOutcome
from amdahl_loop.domain.verdicts import VerdictWord
from judge_builders import Bench, make_constants, make_lost_window, make_plan, make_record, make_report, make_window

S0 = make_plan(make_constants(loss_tolerance=0.0))
S1 = make_plan(make_constants(loss_tolerance=1e-5), knob=KnobName.GPUS_PER_REPLICA, before=2, after=1)
LARGER = make_plan(make_constants(loss_tolerance=1e-5), knob=KnobName.MICRO_BATCH, before=1, after=8)
WORDS = make_plan(
    make_constants(loss_tolerance=1e-5), knob=KnobName.ACTIVATION_CHECKPOINTING, before="block", after="none"
)


def make_proof(plan: Plan, spec: BlockSpec, baseline: dict[str, Any], variant: dict[str, Any]) -> BlockRecord:
    """A proof block; list values hold one value a window of the arm."""
    seen = {"A": 0, "B": 0}
    windows = []
    for index, arm in enumerate(spec.labels):
        changes = {
            k: v[seen[arm]] if isinstance(v, list) else v for k, v in (baseline if arm == "A" else variant).items()
        }
        windows.append(make_window(Arm(arm), index, steps=8, **changes))
        seen[arm] += 1
    return make_record(plan, spec, tuple(windows))


def prove(plan: Plan, *blocks: tuple[dict[str, Any], dict[str, Any]]) -> judge.Assessment:
    """What the judge says after these proof blocks."""
    experiment = Experiment(plan=plan)
    for spec, (baseline, variant) in zip(plan.stage_blocks(Stage.PROOF), blocks, strict=False):
        experiment = experiment.with_block(make_proof(plan, spec, baseline, variant))
    return judge.assess(experiment)


def reason_of(said: judge.Assessment) -> str:
    """The verdict's reason, or the stage that is next."""
    return said.verdict.reason if isinstance(said, judge.Closed) else said.specs[0].stage.value


@pytest.mark.parametrize(
    ("plan", "variant", "reason"),
    [
        pytest.param(S0, {}, "discovery", id="bit-equal"),
        pytest.param(S0, {"sample_ids": "0000000f"}, "work", id="other samples"),
        pytest.param(S0, {"samples": 64}, "work", id="fewer samples"),
        pytest.param(S0, {"elements_per_sample": 32.0}, "work", id="shorter samples"),
        pytest.param(S0, {"shape": "deadbeef"}, "work", id="other shapes"),
        pytest.param(S0, {"sample_ids": None}, "work", id="ids hidden"),
        pytest.param(S0, {"losses": None}, "no_losses", id="losses hidden"),
        pytest.param(S0, {"losses": "00000003"}, "proof", id="losses differ: look at seeds"),
        pytest.param(S1, {"losses": "00000003", "loss_mean": 2.50001}, "discovery", id="rounding of another count"),
        pytest.param(S1, {"losses": "00000003", "loss_mean": 2.5001}, "quality", id="more than rounding"),
        pytest.param(LARGER, {"losses": "00000003", "loss_mean": 2.50001}, "discovery", id="rounding of larger passes"),
        pytest.param(LARGER, {"losses": "00000003", "loss_mean": 2.5001}, "quality", id="larger passes, other loss"),
        pytest.param(LARGER, {"samples": 64}, "work", id="larger passes, fewer samples"),
        pytest.param(LARGER, {"ignored": ("microBatch",)}, "knob_ignored", id="the program refuses the value"),
        pytest.param(LARGER, {"ignored": ("pinMemory",)}, "discovery", id="it refuses another knob"),
        pytest.param(WORDS, {"losses": "00000003", "loss_mean": 2.50001}, "discovery", id="rounding of a word"),
        pytest.param(S1, {"losses": "00000003", "loss_mean": None}, "no_losses", id="mean hidden"),
    ],
)
def test_first_pair(plan: Plan, variant: dict[str, Any], reason: str) -> None:
    """Same samples, same shapes, same losses from one start."""
    assert reason_of(prove(plan, ({}, variant))) == reason


@pytest.mark.parametrize(
    ("dtypes", "loss_mean", "reason"),
    [
        pytest.param(("bfloat16", "bfloat16"), 2.501, "discovery", id="8 bits round more"),
        pytest.param(("bfloat16", "bfloat16"), 2.51, "quality", id="but not so much"),
        pytest.param(("float32", "float32"), 2.501, "quality", id="24 bits do not"),
        pytest.param((None, None), 2.501, "quality", id="a type that is not told is taken for float32"),
        pytest.param(("float32", "bfloat16"), 2.5, "work", id="no knob changes the type"),
        pytest.param((None, "bfloat16"), 2.5, "work", id="nor hides it"),
    ],
)
def test_rounding_follows_the_type_of_the_products(
    dtypes: tuple[str | None, str | None], loss_mean: float, reason: str
) -> None:
    """As the baseline tells it: losses of bfloat16 differ more when passes are larger, and the work is the same."""
    baseline, variant = ({"dtype": dtype} for dtype in dtypes)

    assert reason_of(prove(LARGER, (baseline, variant | DIFFERENT | {"loss_mean": loss_mean}))) == reason


def test_the_same_bits_are_asked_for_where_nothing_is_reordered() -> None:
    """A loader knob leaves every sum as it was, in bfloat16 too: other losses are looked at with other seeds."""
    baseline = {"dtype": "bfloat16"}

    assert reason_of(prove(S0, (baseline, baseline | DIFFERENT | {"loss_mean": 2.501}))) == "proof"


DIFFERENT = {"losses": "00000003"}


@pytest.mark.parametrize(
    ("baseline", "variant", "reason"),
    [
        pytest.param([2.40, 2.50, 2.60], [2.41, 2.52, 2.58], "discovery", id="within the spread of seeds"),
        pytest.param([2.40, 2.50, 2.60], [2.70, 2.80, 2.90], "quality", id="three spreads away"),
        pytest.param([2.50, 2.50, 2.50], [2.50, 2.50, 2.51], "quality", id="no spread at all"),
    ],
)
def test_random_augmentation(baseline: list[float], variant: list[float], reason: str) -> None:
    """Losses that differ from one start must lie within twice the spread of three baseline seeds."""
    first = {"loss_mean": baseline[0]}, DIFFERENT | {"loss_mean": variant[0]}
    rest = {"loss_mean": baseline[1:]}, DIFFERENT | {"loss_mean": variant[1:]}
    assert reason_of(prove(S0, first)) == "proof"
    assert reason_of(prove(S0, first, rest)) == reason


def test_too_few_seeds_prove_nothing() -> None:
    """A plan with one proof block cannot tell noise from harm."""
    bare = S0.model_copy(update={"blocks": tuple(s for s in S0.blocks if s.name != "p1")})
    assert reason_of(prove(bare, ({}, DIFFERENT))) == "few_seeds"


@pytest.mark.parametrize(
    ("arm", "outcome", "word", "reason"),
    [
        pytest.param("A", WindowOutcome.CRASH, "Error", "TrialCannotRun", id="the baseline cannot run"),
        pytest.param("A", WindowOutcome.NO_REPORT, "Error", "TrialCannotRun", id="nothing is reported"),
        pytest.param("B", WindowOutcome.CRASH, "Vetoed", "variant_crash", id="the variant cannot run"),
        pytest.param("B", WindowOutcome.SIGNAL, "Inconclusive", "interrupted", id="stopped from outside"),
        pytest.param("B", WindowOutcome.NO_REPORT, "Inconclusive", "variant_missing", id="only the variant is silent"),
    ],
)
def test_a_proof_that_fails(arm: str, outcome: WindowOutcome, word: str, reason: str) -> None:
    """Who failed decides what is said."""

    def fail(spec: BlockSpec, window: Window) -> Window:
        return make_lost_window(window.arm, window.index, outcome) if spec.order[window.index] == arm else window

    verdict = Bench(S0, tweak=fail).carry_through()
    assert (verdict.word, verdict.reason) == (word, reason)


@pytest.mark.parametrize("arms", ["A", "B", "AB"])
def test_a_pause_of_the_machine_does_not_spoil_a_proof(arms: str) -> None:
    """A proof is not timed: samples and losses are compared, whatever the clocks say."""
    verdict = Bench(S0, tweak=bend_clocks(arms, Stage.PROOF)).carry_through()
    assert verdict.reason == Bench(S0).carry_through().reason
    assert verdict.word is not VerdictWord.ERROR


@pytest.mark.parametrize("arms", ["A", "B", "AB"])
def test_a_clock_that_lies_is_vetoed_by_the_first_timed_block(arms: str) -> None:
    """What lies in the proof lies in the trial as well: nothing is gained by it."""
    verdict = Bench(S0, tweak=bend_clocks(arms, *Stage)).carry_through()
    assert (verdict.word, verdict.reason) == ("Vetoed", "meter")
    assert verdict.blocks_used == 2  # the proof and one block


def bend_clocks(arms: str, *stages: Stage) -> Callable[[BlockSpec, Window], Window]:
    """Windows of these arms, in blocks of these stages, tell half the time that the supervisor saw."""

    def bend(spec: BlockSpec, window: Window) -> Window:
        is_bent = spec.stage in stages and spec.order[window.index] in arms
        return window.model_copy(update={"clock_ppk": -500, "wall_s": 10.0}) if is_bent else window

    return bend


def test_a_proof_without_a_report_is_an_error() -> None:
    """The supervisor's failure is named, with what to do."""
    spec = S0.stage_blocks(Stage.PROOF)[0]
    record = make_record(S0, spec, failure="no such file: train.py")
    said = judge.assess(Experiment(plan=S0, blocks=(record,)))
    assert isinstance(said, judge.Closed)
    assert said.verdict.reason == "TrialCannotRun"
    assert "no such file: train.py" in said.verdict.sentence


def test_a_retried_block_is_the_same_block() -> None:
    """A report under the run's name with an attempt suffix is believed."""
    spec = S0.stage_blocks(Stage.PROOF)[0]
    windows = tuple(make_window(Arm(arm), i, steps=8) for i, arm in enumerate(spec.labels))
    report = make_report(S0, spec, windows, run=S0.run_name(spec, attempt=2))
    said = judge.assess(Experiment(plan=S0, blocks=(make_record(S0, spec, windows, report=report),)))
    assert reason_of(said) == "discovery"

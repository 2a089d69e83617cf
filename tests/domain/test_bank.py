"""What the bank credits, debits and claws back."""

import math

import pytest

from amdahl_loop.domain.bank import balance, hours_in_force
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.standing_still import Standstill
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from judge_builders import make_plan, make_record


def make_closed(
    name: str, word: VerdictWord, saving: float = 0.2, se: float = 0.01, held_s: float = 3600.0
) -> Experiment:
    """A closed experiment that held `held_s` device-seconds; its discovery claimed twice what the checks found."""
    plan = make_plan(name=name)
    effect = -math.log1p(-saving)
    verdict = Verdict(word=word, sentence="-", effect=effect, effect_se=se, discovery_effect=2 * effect)
    record = make_record(plan, plan.blocks[0], held_device_s=held_s)
    return Experiment(plan=plan, blocks=(record,), verdict=verdict)


def make_application(experiment: str, kind: ApplicationKind) -> Application:
    """One change of values in force."""
    return Application(
        job="job",
        job_uid="uid",
        fingerprint="f" * 16,
        at_s=1.0,
        kind=kind,
        experiment=experiment,
        declared=Knobs(),
        knobs=Knobs(),
    )


APPLIED = make_application("a", ApplicationKind.APPLIED)


def test_credit_comes_from_the_checks_and_every_experiment_is_debited() -> None:
    """A win of 20 % over 100 hours ahead saves 20, less its own hour and the two hours of a loss."""
    lost = make_closed("b", VerdictWord.NO_GAIN, held_s=7200.0)
    bank = balance([make_closed("a", VerdictWord.WON), lost], [APPLIED], ahead_h=100.0)
    assert bank.projected.expected_h == pytest.approx(20.0)
    assert bank.spent_h == pytest.approx(3.0)
    assert bank.projected_net_h == pytest.approx(17.0)


def test_the_headline_subtracts_its_error() -> None:
    """At least: refute mean less 1.64 standard errors, and never below zero."""
    sure, unsure = (make_closed("a", VerdictWord.WON, se=se) for se in (0.01, 1.0))
    bound = -math.expm1(-(-math.log1p(-0.2) - 0.0164))
    assert balance([sure], [APPLIED], 100.0).headline_h == pytest.approx(100 * bound - 1)
    assert balance([unsure], [APPLIED], 100.0).projected.at_least_h == 0.0


def test_accrued_and_projected_are_kept_apart() -> None:
    """Nothing has accrued before an hour has run; an hour run at 80 % of the cost has saved a quarter of an hour."""
    win = make_closed("a", VerdictWord.WON)
    assert balance([win], [APPLIED], 100.0).net_h == pytest.approx(-1.0)
    later = balance([win], [APPLIED], 100.0, run_h={"a": 8.0})
    assert later.accrued.expected_h == pytest.approx(2.0)
    assert later.net_h == pytest.approx(1.0)


def test_a_win_that_faded_is_clawed_back() -> None:
    """Rolled back: the hours credited are taken back, and nothing is projected."""
    rolled_back = make_application("a", ApplicationKind.ROLLED_BACK)
    bank = balance([make_closed("a", VerdictWord.WON)], [APPLIED, rolled_back], 100.0, run_h={"a": 8.0})
    assert bank.net_h == pytest.approx(-1.0)
    assert bank.clawed_back.expected_h == pytest.approx(2.0)
    assert bank.projected.expected_h == 0.0


def test_a_win_that_its_owner_put_back_runs_on_as_an_overlay_and_counts() -> None:
    """What the spec says is the owner's; what runs is the proven value, so it is credited and projected as before."""
    reverted = make_application("a", ApplicationKind.REVERTED)
    bank = balance([make_closed("a", VerdictWord.WON)], [APPLIED, reverted], 100.0, run_h={"a": 8.0})
    assert bank.accrued.expected_h == pytest.approx(2.0)
    assert bank.clawed_back.expected_h == 0.0
    assert bank.projected.expected_h == pytest.approx(20.0)


def test_successive_wins_never_save_more_than_everything() -> None:
    """Two wins of 60 % leave 16 % of the cost: 84 hours of 100, not 120."""
    wins = [make_closed(name, VerdictWord.WON, saving=0.6) for name in ("a", "b")]
    assert balance(wins, [], 100.0).projected.expected_h == pytest.approx(84.0)


def at(
    hour: float, experiment: str, workers: int, kind: ApplicationKind = ApplicationKind.APPLIED, declared: int = 0
) -> Application:
    """Workers that took effect at an hour."""
    changed = {"at_s": 3600 * hour, "declared": Knobs(dataloader_workers=declared)}
    return make_application(experiment, kind).model_copy(update=changed | {"knobs": Knobs(dataloader_workers=workers)})


@pytest.mark.parametrize(
    ("applications", "in_force", "hours"),
    [
        pytest.param([], 0, {}, id="nothing was applied"),
        pytest.param([at(1, "a", 2)], 2, {"a": 18.0}, id="in force until now, on two devices"),
        pytest.param([at(1, "a", 2), at(4, "b", 3)], 3, {"a": 18.0, "b": 12.0}, id="two wins, one on the other"),
        pytest.param(
            [at(1, "a", 2), at(4, "a", 0, ApplicationKind.ROLLED_BACK)], 0, {"a": 6.0}, id="until it was taken back"
        ),
        pytest.param(
            [at(1, "a", 2), at(4, "b", 3), at(6, "b", 2, ApplicationKind.ROLLED_BACK)],
            2,
            {"a": 18.0, "b": 4.0},
            id="only the later one was taken back",
        ),
        pytest.param([at(1, "a", 2), at(3, "b", 9, declared=8)], 9, {"a": 4.0, "b": 14.0}, id="a new baseline between"),
        pytest.param(
            [at(1, "a", 2), at(4, "a", 2, ApplicationKind.REVERTED)], 2, {"a": 18.0}, id="put back, an overlay since"
        ),
        pytest.param(
            [at(1, "a", 2), at(4, "a", 2, ApplicationKind.REVERTED)],
            0,
            {"a": 6.0},
            id="put back where only the spec counts",
        ),
        pytest.param(
            [at(1, "a", 2), at(3, "b", 3, declared=2), at(4, "b", 3, ApplicationKind.REVERTED)],
            3,
            {"a": 18.0, "b": 14.0},
            id="two wins, both put back at once",
        ),
        pytest.param([at(1, "a", 2)], 5, {"a": 0.0}, id="its owner changed it, nobody knows when"),
    ],
)
def test_hours_in_force_end_with_what_ends_a_win(
    applications: list[Application], in_force: int, hours: dict[str, float]
) -> None:
    """At ten o'clock, with two devices: only hours that surely ran with a value are credited to it."""
    assert hours_in_force(applications, Knobs(dataloader_workers=in_force), 36_000.0, devices=2) == hours


@pytest.mark.parametrize(
    ("standstills", "in_force", "hours"),
    [
        pytest.param([(4, 6)], 2, {"a": 14.0}, id="suspended for two hours"),
        pytest.param([(0, 3), (4, 6)], 2, {"a": 10.0}, id="twice, once from before it was applied"),
        pytest.param([(7, None)], 2, {"a": 12.0}, id="over since seven"),
        pytest.param([(7, None)], 5, {"a": 12.0}, id="its owner changed it at seven"),
        pytest.param([(0, None)], 2, {"a": 0.0}, id="never ran with it"),
    ],
)
def test_hours_in_which_the_job_stood_still_save_nothing(
    standstills: list[tuple[float, float | None]], in_force: int, hours: dict[str, float]
) -> None:
    """Applied at one, on two devices; it is ten o'clock."""
    still = [Standstill(from_s=3600 * a, to_s=None if b is None else 3600 * b) for a, b in standstills]
    knobs = Knobs(dataloader_workers=in_force)
    assert hours_in_force([at(1, "a", 2)], knobs, 36_000.0, devices=2, standstills=still) == hours


def test_only_wins_are_credited() -> None:
    """A refuted claim has an effect, and no credit."""
    for word in (VerdictWord.REFUTED, VerdictWord.VETOED, VerdictWord.INCONCLUSIVE, VerdictWord.NO_GAIN):
        bank = balance([make_closed("a", word)], [], 100.0, run_h={"a": 5.0})
        assert (bank.projected.expected_h, bank.accrued.expected_h) == (0.0, 0.0)

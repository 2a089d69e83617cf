"""Which applications on record are believed, and what is said of the others?"""

from functools import cache

import pytest

from amdahl_loop.domain.believing import sift_applications
from amdahl_loop.domain.constants import JUDGE_VERSION
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import make_application
from judge_builders import Bench, make_constants, make_plan

APPLIED, REVERTED, ROLLED_BACK = ApplicationKind.APPLIED, ApplicationKind.REVERTED, ApplicationKind.ROLLED_BACK
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)
ZERO, TWO, NINE = (Knobs(dataloader_workers=workers) for workers in (0, 2, 9))
FAST = KnobName.PREFETCH_FACTOR


@cache
def win(name: str = "job-e1", version: str = JUDGE_VERSION) -> Experiment:
    """`job-e1` proves two workers, `job-e2` a prefetch factor of 4 on top of them; with all evidence."""
    constants = make_constants(judge_version=version)
    if name == "job-e1":
        return Bench(make_plan(constants, name=name), gain=0.3).close()
    others = {KnobName.DATALOADER_WORKERS: 2}
    return Bench(make_plan(constants, knob=FAST, before=2, after=4, others=others, name=name), gain=0.3).close()


def bare(version: str = JUDGE_VERSION) -> Experiment:
    """An experiment that says that it has won, without any block."""
    return win(version=version).model_copy(update={"blocks": (), "verdict": WON})


def applied(
    knobs: Knobs, kind: ApplicationKind = APPLIED, at_s: float = 1.0, name: str = "job-e1", declared: Knobs = ZERO
) -> Application:
    """One entry."""
    return make_application(knobs, kind, name, declared, at_s)


def sift(experiments: list[Experiment], *applications: Application) -> JobMemory:
    """What is believed."""
    return sift_applications(JobMemory(experiments=tuple(experiments), applications=applications), "uid")


@pytest.mark.parametrize(
    ("experiment", "doubt"),
    [
        (win(), ""),
        (win().model_copy(update={"verdict": None}), "is still open"),
        (win().model_copy(update={"verdict": WON.model_copy(update={"word": VerdictWord.NO_GAIN})}), "ended NoGain"),
        (bare(), "its recorded blocks do not show it"),
        (bare("2"), ""),
    ],
    ids=["won", "open", "found nothing", "won by its word alone", "won by the word of another version"],
)
def test_an_application_needs_a_win(experiment: Experiment, doubt: str) -> None:
    """What an older version put in force stays: an upgrade restarts no job."""
    memory = sift([experiment], applied(TWO))
    assert bool(memory.applications) == (not doubt)
    assert all(doubt in sentence and "Experiment job-e1 holds an entry" in sentence for sentence in memory.disowned)
    assert bool(memory.disowned) == bool(doubt)


@pytest.mark.parametrize(
    ("kind", "knobs", "is_believed"),
    [
        (APPLIED, TWO, True),
        (APPLIED, NINE, False),
        (APPLIED, ZERO, False),
        (APPLIED, Knobs(dataloader_workers=2, pin_memory=True), False),
        (REVERTED, TWO, True),
        (REVERTED, NINE, False),
        (ROLLED_BACK, ZERO, True),
        (ROLLED_BACK, TWO, False),
        (ROLLED_BACK, NINE, False),
    ],
)
def test_its_values_follow_from_the_experiment(kind: ApplicationKind, knobs: Knobs, is_believed: bool) -> None:
    """The variant's where they were applied, the baseline's where they were taken back; what else is there stays."""
    true = applied(TWO)
    memory = sift([win()], true, applied(knobs, kind, at_s=2.0))
    assert memory.applications[:1] == (true,)
    assert (len(memory.applications) == 2) == is_believed
    assert bool(memory.disowned) == (not is_believed)


def test_a_first_win_is_taken_back_from_under_a_second_one() -> None:
    """The values are those in force without it: no experiment has them as an arm."""
    both = Knobs(dataloader_workers=2, prefetch_factor=4)
    first, second = applied(TWO), applied(both, at_s=2.0, name="job-e2", declared=Knobs(dataloader_workers=2))
    left = Knobs(dataloader_workers=0, prefetch_factor=4)
    back = applied(left, ROLLED_BACK, at_s=3.0, declared=both)
    assert win("job-e2").plan.baseline == Knobs(dataloader_workers=2, prefetch_factor=2)
    assert sift([win(), win("job-e2")], first, second, back).applications == (first, second, back)


def test_a_win_that_was_rolled_back_needs_no_evidence_any_more() -> None:
    """Its blocks are not kept in memory, and its values are not in force."""
    entries = applied(TWO), applied(ZERO, ROLLED_BACK, at_s=2.0)
    memory = sift([bare()], *entries)
    assert (memory.applications, memory.disowned) == (entries, ())


def test_an_entry_of_an_experiment_that_is_not_the_job_s_is_named() -> None:
    """One sentence for each experiment, however many entries it has."""
    memory = sift([], applied(TWO), applied(NINE))
    assert memory.applications == ()
    (sentence,) = memory.disowned
    assert sentence.endswith("Remove the entry, or delete the Experiment.")

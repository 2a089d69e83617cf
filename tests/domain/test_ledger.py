"""What is remembered: identities, settled questions, and the values in force."""

from typing import Any

import pytest

from amdahl_loop.domain.experiments import Experiment, Loss
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.ledger import (
    Application,
    ApplicationKind,
    History,
    JobMemory,
    count_attempts,
    effective_knobs,
    family_of,
    fingerprint_job,
    is_settled,
    newest_observation,
)
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import WindowOutcome
from amdahl_loop.domain.verdicts import CANCELLED, Verdict, VerdictWord
from builders import FINGERPRINT, UID, make_job, make_manifest, make_observation, make_window, with_knobs
from judge_builders import make_plan

INCONCLUSIVE, WON = VerdictWord.INCONCLUSIVE, VerdictWord.WON


def job_with(**container: Any) -> TrainingJob:
    """A job whose trainer container has other fields."""
    manifest = make_manifest()
    manifest["spec"]["template"]["spec"]["containers"][0] |= container
    return parse_training_job(manifest)


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        (job_with(), True),
        (make_job({"dataloaderWorkers": 7}), True),
        (make_job(tuning={"profile": "quick"}), True),
        (job_with(image="example/trainer:2"), False),
        (job_with(command=["python", "other.py"]), False),
        (job_with(args=["--lr", "1"]), False),
        (job_with(env=[{"name": "A", "value": "1"}]), False),
        (make_job(replicas=2), False),
    ],
)
def test_the_fingerprint_is_the_work_s_identity(changed: TrainingJob, is_same: bool) -> None:
    """Image, command, environment and shape change it; knob values and tuning do not."""
    assert (fingerprint_job(changed, "cpu") == fingerprint_job(make_job(), "cpu")) == is_same


def test_device_and_local_code_are_part_of_the_fingerprint() -> None:
    """Another device type, or other files under the same command, is other work."""
    job = make_job()

    assert len({fingerprint_job(job, "cpu"), fingerprint_job(job, "h200"), fingerprint_job(job, "cpu", "c0de")}) == 3


@pytest.mark.parametrize(
    ("changed", "is_kin"),
    [
        (job_with(image="example/trainer:2"), True),
        (job_with(image="example/trainer@sha256:" + "0" * 64), True),
        (job_with(args=["--lr=0.1"]), False),
        (job_with(image="registry:5000/trainer:1"), False),
        (job_with(command=["python", "other.py"]), False),
    ],
)
def test_the_family_is_looser(changed: TrainingJob, is_kin: bool) -> None:
    """Another tag is kin; another program or another set of options is not."""
    assert (family_of(changed) == family_of(make_job())) == is_kin


def test_options_values_do_not_part_a_family() -> None:
    """The same options with other values are kin."""
    assert family_of(job_with(args=["--lr=0.1"])) == family_of(job_with(args=["--lr=0.2"]))


def applied(job: TrainingJob, workers: int, at_s: float = 1.0) -> Application:
    """The application of a worker count."""
    return Application(
        job="pydocs",
        job_uid=UID,
        fingerprint=FINGERPRINT,
        at_s=at_s,
        kind=ApplicationKind.APPLIED,
        experiment=f"e{workers}",
        declared=job.spec.knobs,
        knobs=with_knobs(job, dataloader_workers=workers),
    )


@pytest.mark.parametrize(
    ("declared_now", "in_force"),
    [(0, 2), (2, 2), (5, 5)],
    ids=["the manifest was not written", "it was written", "its owner chose a third value"],
)
def test_the_overlay_holds_until_the_owner_speaks(declared_now: int, in_force: int) -> None:
    """Old or applied value: the overlay holds. A third value is a new baseline."""
    job = make_job({"dataloaderWorkers": 0})
    now = make_job({"dataloaderWorkers": declared_now})

    assert effective_knobs(now.spec.knobs, (applied(job, 2),)).dataloader_workers == in_force


def test_the_last_application_counts() -> None:
    """Applications are oldest first, even within one second."""
    job = make_job({"dataloaderWorkers": 0})

    assert effective_knobs(job.spec.knobs, (applied(job, 2), applied(job, 0))).dataloader_workers == 0


@pytest.mark.parametrize(
    ("outcome", "at_s", "is_found"),
    [(WindowOutcome.OK, 5.0, True), (WindowOutcome.CRASH, 5.0, False), (WindowOutcome.CRASH, 15.0, True)],
)
def test_a_failed_observation_is_tried_again_by_the_next_loop(
    outcome: WindowOutcome, at_s: float, is_found: bool
) -> None:
    """A measured observation keeps; one that failed counts only within the loop that made it."""
    job = make_job()
    memory = JobMemory(observations=(make_observation(job, make_window(outcome=outcome), at_s=at_s),))

    found = newest_observation(memory, FINGERPRINT, job.spec.knobs, since_s=10.0)

    assert (found is not None) == is_found


def test_an_observation_of_other_work_or_values_is_not_this_one() -> None:
    """Fingerprint and knob values must both match."""
    job = make_job()
    memory = JobMemory(observations=(make_observation(job, make_window()),))

    assert newest_observation(memory, "0" * 16, job.spec.knobs) is None
    assert newest_observation(memory, FINGERPRINT, with_knobs(job, dataloader_workers=3)) is None


def make_experiment(
    name: str,
    uid: str = UID,
    after: int = 2,
    word: VerdictWord | None = VerdictWord.NO_GAIN,
    reason: str = "",
    fingerprint: str = FINGERPRINT,
) -> Experiment:
    """An experiment that held half a device-hour; without a word it is open."""
    plan = make_plan(name=name, job_uid=uid, fingerprint=fingerprint, after=after)
    verdict = None if word is None else Verdict(word=word, sentence="said", reason=reason)
    return Experiment(
        plan=plan, losses=(Loss(run=f"{name}-d0", started_at_s=1.0, held_device_s=1800),), verdict=verdict
    )


def test_a_job_s_history_is_its_own() -> None:
    """What is open, what won and what was spent is counted over the job's own experiments; others' are told apart."""
    lost, won, running = make_experiment("lost"), make_experiment("won", word=WON), make_experiment("open", word=None)
    other, theirs = make_experiment("other", uid="another", word=WON), make_experiment("theirs", uid="third", word=None)
    memory = JobMemory(experiments=(other, lost, won, theirs, running))
    own = memory.of_job(UID)

    assert (own.experiments, own.wins, own.running, own.spent_h) == ((lost, won, running), (won,), running, 1.5)
    assert memory.of_others(UID) == (other, theirs)
    assert JobMemory(experiments=(lost, won)).of_others(UID) == ()
    assert memory.of_job("a stranger") == History()
    assert memory.of_job("a stranger").spent_h == 0


def test_a_question_is_the_work_and_the_change() -> None:
    """Experiments that asked the same are counted as attempts, whoever asked and however they ended."""
    two, again = make_experiment("two", after=2), make_experiment("again", uid="another", after=2, word=None)
    memory = JobMemory(experiments=(two, make_experiment("four", after=4), again))
    question = two.plan.hypothesis

    assert list(memory.that_asked(two.question)) == [two, again]
    assert count_attempts(question, FINGERPRINT, memory) == 2
    assert count_attempts(question, "0" * 16, memory) == 0


@pytest.mark.parametrize(
    ("experiment", "age_days", "is_answer"),
    [
        pytest.param(make_experiment("e"), 400, True, id="no gain, for as long as the work is the same"),
        pytest.param(make_experiment("e", word=WON), 1, True, id="won"),
        pytest.param(
            make_experiment("e", word=WON, uid="another"), 1, False, id="another job's win has to be proven here"
        ),
        pytest.param(make_experiment("e", uid="another"), 1, True, id="another job's loss is not paid for again"),
        pytest.param(make_experiment("e", word=INCONCLUSIVE), 13, True, id="undecided of late"),
        pytest.param(make_experiment("e", word=INCONCLUSIVE), 14, False, id="undecided two weeks ago"),
        pytest.param(
            make_experiment("e", word=INCONCLUSIVE, reason=CANCELLED), 0, False, id="cancelled by its owner's change"
        ),
        pytest.param(make_experiment("e", word=None), 0, False, id="open"),
        pytest.param(make_experiment("e", after=4), 1, False, id="another question"),
        pytest.param(make_experiment("e", fingerprint="0" * 16), 1, False, id="other work"),
    ],
)
def test_an_answered_question_is_not_asked_again(experiment: Experiment, age_days: int, is_answer: bool) -> None:
    """Nothing is paid for twice; what was never answered, or may have changed, may be asked again."""
    memory = JobMemory(experiments=(experiment,), closed_at_s={"e": 1000.0})
    question = make_experiment("q").plan.hypothesis
    answer = is_settled(question, UID, FINGERPRINT, memory, 1000.0 + 86400 * age_days)
    assert answer == (experiment if is_answer else None)


def test_outcomes_count_wins_and_others_of_each_knob() -> None:
    """Open experiments say nothing; those of the family speak as the job's own do."""
    memory = JobMemory(
        experiments=(make_experiment("a", word=WON), make_experiment("b"), make_experiment("c", word=None)),
        family=(make_experiment("d", uid="kin"),),
    )

    workers = KnobName.DATALOADER_WORKERS
    assert memory.outcomes == {(workers, True): 1, (workers, False): 2}

"""What does a status say of a job, and when does it stay silent?"""

from collections.abc import Sequence
from typing import Any

import pytest

from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.parts import clip
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.training_job import BankReport, KnobSource, TrainingJobStatus
from amdahl_loop.domain.applying import Conflict, Decision, KeepOverlay, Nothing, RecordRelease, RecordRevert, WriteSpec
from amdahl_loop.domain.bank import Balance, Saving
from amdahl_loop.domain.conditions import STANDINGS, Facts, Finding, Note, find, update_conditions
from amdahl_loop.domain.experiments import Experiment, Loss
from amdahl_loop.domain.isolation import Obstacle, miss_probe
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.phases import Unobservable
from amdahl_loop.domain.plan import Halt, Judge, Snapshot, Wait, look, next_action
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.standing_still import Standstill
from amdahl_loop.domain.status import describe, read_seen, read_standstills, report_bank
from amdahl_loop.domain.stewards import Ignore
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import FAMILY, FINGERPRINT, UID, make_job, make_observation, make_window
from judge_builders import Bench, make_constants, make_plan

T = JobConditionType
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
RUNNING = Note(reason=Reason.AS_DECLARED, sentence="1 of 1 pods run.")
HALT = Halt(sentence="No knob is expected to help.")
OTHER_JUDGE = make_constants(judge_version="2")
"""Constants of an experiment that another version judged."""
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


def make_experiment(
    name: str = "e0", verdict: Verdict | None = None, held_device_s: float = 0.0, uid: str = UID, **plan: Any
) -> Experiment:
    """An experiment of this job; `held_device_s` is charged to it."""
    made = Experiment(plan=make_plan(name=name, job_uid=uid, **plan), verdict=verdict)
    loss = Loss(run=f"{name}-d0", started_at_s=0.0, held_device_s=held_device_s)
    return made.with_loss(loss) if held_device_s else made


def make_win(**plan: Any) -> Experiment:
    """An experiment of this job whose blocks show its win."""
    return Bench(make_plan(name="e0", job_uid=UID, **plan), gain=0.3).close()


def make_application(
    kind: ApplicationKind = ApplicationKind.APPLIED, before: int = 0, after: int = 2, experiment: str = "e0"
) -> Application:
    """Two loader workers, put in force."""
    return Application(
        job="pydocs",
        job_uid=UID,
        fingerprint=FINGERPRINT,
        at_s=1.0,
        kind=kind,
        experiment=experiment,
        declared=Knobs(dataloader_workers=before),
        knobs=Knobs(dataloader_workers=after),
    )


def make_facts(
    job: TrainingJob | None = None,
    experiments: Sequence[Experiment] = (),
    applications: Sequence[Application] = (),
    paused: bool = False,
    withheld: bool = False,
    input_share: float = 0.7,
    **facts: Any,
) -> Facts:
    """What a pass sees of a job that waits for its input most of the time, and has been measured."""
    job = job or make_job({"dataloaderWorkers": 0})
    observation = make_observation(job, make_window(0.17, shares={"input": input_share}, batch_s=0.12), cpus=8)
    memory = JobMemory(
        observations=(observation,),
        experiments=tuple(experiments),
        closed_at_s={e.name: float(n) for n, e in enumerate(experiments) if e.verdict is not None},
        applications=tuple(applications),
    )
    snapshot = Snapshot(
        job=job,
        job_uid=UID,
        fingerprint=FINGERPRINT,
        family=FAMILY,
        memory=memory,
        now_s=100.0,
        paused=paused,
        withheld=withheld,
    )
    review = facts.pop("review", look(snapshot, observation))
    return Facts(standing=RUNNING, snapshot=snapshot, review=review, **({"action": HALT} | facts))


def found(facts: Facts, type_name: JobConditionType) -> tuple[ConditionStatus, Reason]:
    """One finding, without its sentence."""
    (finding,) = (finding for finding in find(facts) if finding.type is type_name)
    return finding.status, finding.reason


def sentence(facts: Facts, type_name: JobConditionType) -> str:
    """One finding's sentence."""
    return next(finding.sentence for finding in find(facts) if finding.type is type_name)


@pytest.mark.parametrize(
    ("reason", "true"),
    [
        (Reason.AS_DECLARED, {T.READY}),
        (Reason.STARTING, {T.RECONCILING}),
        (Reason.REPLACING, {T.RECONCILING}),
        (Reason.SUSPENDED, {T.SUSPENDED}),
        (Reason.QUEUED, {T.RECONCILING, T.SUSPENDED}),
        (Reason.MAKING_WAY, {T.RECONCILING, T.SUSPENDED}),
        (Reason.FINISHED, {T.READY, T.COMPLETE}),
        (Reason.JOB_FAILED, {T.STALLED, T.FAILED}),
        (Reason.INVALID_SPEC, {T.STALLED}),
        (Reason.REFUSED_BY_SERVER, {T.STALLED}),
        (Reason.SQUATTED, {T.STALLED}),
        (Reason.OPERATOR_FAULT, {T.STALLED}),
    ],
)
def test_how_the_job_stands_in_the_words_of_kstatus(reason: Reason, true: set[JobConditionType]) -> None:
    """Every way of standing has its true conditions, and the reason is on each of them and on Ready."""
    findings = find(Facts(standing=Note(reason=reason, sentence="Because.")))
    assert {finding.type for finding in findings if finding.status is TRUE} == true
    assert {finding.type for finding in findings if finding.reason is reason} == true | {T.READY} | (
        {T.RECONCILING} if reason is Reason.AS_DECLARED else set()
    )
    assert len(findings) == 6


def test_every_way_of_standing_is_in_the_table() -> None:
    """Never ready and stalled at once, never going on and stalled at once: kstatus would not know which to believe."""
    for stands in STANDINGS.values():
        assert stands.is_ready + stands.is_stalled + stands.is_reconciling <= 1


OPEN = make_experiment()
ONE_HOUR = 3600.0
OBSTACLE = Obstacle(reason=Reason.NOT_ISOLATED, field="spec.x", why="holds a Secret", fix="drop it")
FULL = Wait(
    experiment=OPEN, until_s=200.0, sentence="no spare devices for a trial, tried once", reason=Reason.NO_SPARE_DEVICES
)
NO_DEVICES = Note(reason=Reason.NO_SPARE_DEVICES, sentence="No node has 4 free devices.")


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        pytest.param(make_facts(input_share=0.0), FALSE, Reason.NOTHING_TO_TRY, id="nothing to win"),
        pytest.param(make_facts(make_job({"dataloaderWorkers": 0}, {"mode": "Observe"})), FALSE, Reason.OBSERVE_ONLY, id="observe"),
        pytest.param(make_facts(make_job(suspend=True)), FALSE, Reason.PAUSED, id="suspended"),
        pytest.param(make_facts(paused=True), FALSE, Reason.PAUSED, id="paused by policy"),
        pytest.param(make_facts(obstacles=(OBSTACLE,)), FALSE, Reason.BLOCKED, id="obstacles"),
        pytest.param(make_facts(obstacles=(OBSTACLE,), input_share=0.0), FALSE, Reason.NOTHING_TO_TRY, id="obstacles, but nothing to win"),
        pytest.param(make_facts(action=FULL, experiments=[OPEN]), TRUE, Reason.NO_SPARE_DEVICES, id="tried again later"),
        pytest.param(make_facts(hold=NO_DEVICES), FALSE, Reason.BLOCKED, id="no devices"),
        pytest.param(make_facts(hold=NO_DEVICES, experiments=[OPEN]), TRUE, Reason.BLOCKED, id="no devices, open"),
        pytest.param(make_facts(make_job({"dataloaderWorkers": 0}, {"budget": {"deviceHours": "0.001"}})), FALSE, Reason.OUT_OF_BUDGET, id="too small a budget"),
        pytest.param(make_facts(experiments=[OPEN], action=Judge(experiment=OPEN, verdict=WON)), TRUE, Reason.DECIDING, id="about to close"),
        pytest.param(make_facts(action=None), FALSE, Reason.DECIDING, id="no action yet"),
    ],
)  # fmt: skip
def test_why_no_experiment_or_one_goes_on(facts: Facts, status: ConditionStatus, reason: Reason) -> None:
    """The owner's wishes come before the loop's own reasons."""
    assert found(facts, T.EXPERIMENTING) == (status, reason)


def test_a_running_block_is_named() -> None:
    """The decision's own sentence, with the experiment and the block."""
    facts = make_facts(experiments=[OPEN])
    assert facts.snapshot is not None
    facts = facts.model_copy(update={"action": next_action(facts.snapshot)})
    assert found(facts, T.EXPERIMENTING) == (TRUE, Reason.BLOCK_RUNNING)
    assert sentence(facts, T.EXPERIMENTING).startswith("e0, block p0: ")


@pytest.mark.parametrize(
    ("job", "experiments", "applications", "extra", "status", "reason"),
    [
        pytest.param(0, [], [], {}, FALSE, Reason.NO_WIN, id="nothing tried"),
        pytest.param(0, [make_win()], [], {}, FALSE, Reason.WON_UNAPPLIED, id="won, not yet applied"),
        pytest.param(0, [make_win(constants=OTHER_JUDGE)], [], {}, FALSE, Reason.WON_UNAPPLIED, id="won before another judge, not yet applied"),
        pytest.param(0, [make_experiment(verdict=WON, constants=OTHER_JUDGE)], [], {}, FALSE, Reason.UNPROVEN, id="says that it won before another judge"),
        pytest.param(0, [make_experiment(verdict=WON)], [], {}, FALSE, Reason.UNPROVEN, id="says that it won, and shows nothing"),
        pytest.param(0, [make_experiment(verdict=WON)], [make_application()], {}, TRUE, Reason.PROVEN_VALUES, id="overlay"),
        pytest.param(2, [make_experiment(verdict=WON)], [make_application()], {}, TRUE, Reason.PROVEN_VALUES, id="in the spec"),
        pytest.param(0, [make_experiment(verdict=WON)], [make_application(ApplicationKind.REVERTED)], {}, TRUE, Reason.PROVEN_VALUES, id="put back, runs as overlay"),
        pytest.param(7, [make_experiment(verdict=WON)], [make_application()], {}, FALSE, Reason.WON_UNAPPLIED, id="a third value"),
        pytest.param(2, [make_experiment(verdict=WON)], [make_application(), make_application(ApplicationKind.ROLLED_BACK, 2, 0)], {}, FALSE, Reason.ROLLED_BACK, id="rolled back"),
        pytest.param(0, [make_experiment(verdict=WON)], [make_application()], {"decision": Conflict(reason=Reason.MANAGED_BY_FLUX, sentence="Not in force.")}, FALSE, Reason.WON_UNAPPLIED, id="spec or nothing: nothing"),
    ],
)  # fmt: skip
def test_tuned_is_true_while_a_proven_value_is_in_force(
    job: int,
    experiments: list[Experiment],
    applications: list[Application],
    extra: Any,
    status: ConditionStatus,
    reason: Reason,
) -> None:
    """Wherever it is written; a value that was rolled back or withheld is not in force."""
    facts = make_facts(make_job({"dataloaderWorkers": job}), experiments, applications, **extra)
    assert found(facts, T.TUNED) == (status, reason)


def test_a_recommended_win_says_what_to_set() -> None:
    """Mode Recommend: proven, and left to the owner, in numbers."""
    job = make_job({"dataloaderWorkers": 0}, {"mode": "Recommend"})
    facts = make_facts(job, [make_experiment(verdict=WON)])
    assert found(facts, T.TUNED) == (FALSE, Reason.RECOMMENDED)
    assert sentence(facts, T.TUNED) == "Proven, not in force: dataloaderWorkers 0 -> 2 saves 30.2 % (e0)."


def test_a_recommended_win_that_its_owner_took_is_in_force() -> None:
    """The advice was followed: there is nothing left to recommend."""
    job = make_job({"dataloaderWorkers": 2}, {"mode": "Recommend"})
    facts = make_facts(job, [make_experiment(verdict=WON)])
    assert found(facts, T.TUNED) == (TRUE, Reason.PROVEN_VALUES)
    assert sentence(facts, T.TUNED) == "dataloaderWorkers 0 -> 2 saves 30.2 % (e0), in the spec."


RULE = Ignore(where="leave out of the chart", snippet="spec: {x: 1}")
HELD = KeepOverlay(reason=Reason.MANAGED_BY_ARGO_CD, sentence="Kept.", ignore=(RULE,))


@pytest.mark.parametrize(
    ("decision", "status", "reason"),
    [
        (None, FALSE, Reason.NOTHING_APPLIED),
        (Nothing(reason=Reason.IN_SPEC, sentence="There."), FALSE, Reason.IN_SPEC),
        (WriteSpec(experiment="e0", values={}, force=False), FALSE, Reason.TO_BE_WRITTEN),
        (KeepOverlay(reason=Reason.MODE_KEEPS_SPEC, sentence="Overlay."), FALSE, Reason.MODE_KEEPS_SPEC),
        (HELD, TRUE, Reason.MANAGED_BY_ARGO_CD),
        (KeepOverlay(reason=Reason.DRIFT_FIGHT, sentence="Twice."), TRUE, Reason.DRIFT_FIGHT),
        (Conflict(reason=Reason.MANAGED_BY_HELM, sentence="Helm."), TRUE, Reason.MANAGED_BY_HELM),
        (RecordRevert(application=make_application(), declared=Knobs(), sentence="Back."), TRUE, Reason.REVERTED),
        (RecordRelease(application=make_application(), declared=Knobs(), sentence="Out."), FALSE, Reason.TO_BE_WRITTEN),
    ],
)
def test_a_conflict_is_what_the_mode_wants_and_does_not_get(
    decision: Decision | None, status: ConditionStatus, reason: Reason
) -> None:
    """An overlay that the mode asks for is none."""
    assert found(make_facts(decision=decision), T.APPLY_CONFLICT) == (status, reason)


def test_an_ignore_rule_is_shown_whole_or_not_at_all() -> None:
    """A rule that is cut would be worse than none."""
    assert sentence(make_facts(decision=HELD), T.APPLY_CONFLICT) == (
        "Kept. To hand it over, leave out of the chart: spec: {x: 1}"
    )
    long = HELD.model_copy(update={"ignore": (Ignore(where="x", snippet="y" * 500),)})
    assert sentence(make_facts(decision=long), T.APPLY_CONFLICT) == (
        "Kept. `amdahl-loop explain` prints the ignore rule."
    )


@pytest.mark.parametrize(
    ("obstacles", "hold", "status", "reason"),
    [
        ((), None, FALSE, Reason.FREE),
        ((OBSTACLE,), None, TRUE, Reason.NOT_ISOLATED),
        ((OBSTACLE, OBSTACLE.model_copy(update={"reason": Reason.UNSAFE_TEMPLATE})), NO_DEVICES, TRUE, Reason.UNSAFE_TEMPLATE),
        ((), NO_DEVICES, TRUE, Reason.NO_SPARE_DEVICES),
    ],
)  # fmt: skip
def test_what_the_owner_must_mend_comes_first(
    obstacles: tuple[Obstacle, ...], hold: Note | None, status: ConditionStatus, reason: Reason
) -> None:
    """Obstacles in the template before what passes by itself, the gravest first."""
    assert found(make_facts(obstacles=obstacles, hold=hold), T.TRIALS_BLOCKED) == (status, reason)


@pytest.mark.parametrize(
    ("budget", "held_h", "is_open", "status"),
    [
        ("4", 0.0, False, FALSE),
        ("4", 4.0, False, TRUE),
        ("4", 3.999, False, TRUE),
        ("4", 3.999, True, FALSE),
        ("4", 4.1, True, TRUE),
        ("0", 0.0, False, TRUE),
    ],
)
def test_a_budget_is_exhausted_when_it_carries_no_further_trial(
    budget: str, held_h: float, is_open: bool, status: ConditionStatus
) -> None:
    """An open experiment goes on until the last device-second; a new one is weighed before it begins."""
    job = make_job({"dataloaderWorkers": 0}, {"budget": {"deviceHours": budget}})
    past = make_experiment("past", WON.model_copy(update={"word": VerdictWord.NO_GAIN}), held_h * ONE_HOUR)
    facts = make_facts(job, [past, *([OPEN] if is_open else [])])
    assert found(facts, T.BUDGET_EXHAUSTED)[0] is status
    assert f"{held_h:.3g} of {budget} device-hours (tuning.budget.deviceHours) are spent" in sentence(
        facts, T.BUDGET_EXHAUSTED
    )


class TestTimes:
    """When conditions change, and when they do not."""

    FINDING = Finding(T.READY, TRUE, Reason.AS_DECLARED, "Runs.")

    def update(self, before: Sequence[JobCondition], finding: Finding, now_s: float) -> JobCondition:
        (condition,) = update_conditions(before, [finding], generation=3, now_s=now_s)
        return condition

    @pytest.mark.parametrize(
        ("finding", "moves"),
        [
            (FINDING, False),
            (FINDING._replace(reason=Reason.FINISHED), False),
            (FINDING._replace(sentence="Runs on."), False),
            (FINDING._replace(status=FALSE), True),
            (FINDING._replace(status=UNKNOWN), True),
        ],
    )
    def test_the_time_moves_with_the_status_alone(self, finding: Finding, moves: bool) -> None:
        """Another reason or sentence is no transition."""
        before = self.update((), self.FINDING, 10.7)
        assert before.last_transition_time == to_timestamp(10.0)
        after = self.update((before,), finding, 20.0)
        assert after.last_transition_time == to_timestamp(20.0 if moves else 10.0)
        assert (after.reason, after.message, after.observed_generation) == (finding.reason, finding.sentence, 3)

    def test_conditions_that_nothing_is_said_of_stay(self) -> None:
        """A job whose spec cannot be read keeps what was known of its measurements."""
        measured = update_conditions((), find(make_facts()), 1, 5.0)
        broken = Facts(standing=Note(reason=Reason.INVALID_SPEC, sentence="spec.knobs: no."))
        after = {c.type: c for c in update_conditions(measured, find(broken), 2, 9.0)}
        assert (after[T.STALLED].status, after[T.READY].status) == (TRUE, FALSE)
        assert after[T.OBSERVED] == next(c for c in measured if c.type is T.OBSERVED)
        assert after[T.OBSERVED].observed_generation == 1


class TestStatus:
    """The status as a whole."""

    def test_the_same_facts_give_the_same_status(self) -> None:
        """Later passes over an idle job change nothing, at any hour."""
        facts = make_facts(experiments=[make_experiment(verdict=WON)], applications=[make_application()])
        first = describe(facts, TrainingJobStatus(), 1, 10.0)
        assert describe(facts, first, 1, 999.0) == first
        assert {condition.type for condition in first.conditions} == set(T)

    def test_it_holds_what_was_found_out(self) -> None:
        """Shares, diagnosis, knobs with their source, verdicts newest first, and what is next."""
        lost = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain.")
        experiments = [make_experiment("e0", WON), make_experiment("e1", lost), make_experiment("e2")]
        status = describe(
            make_facts(experiments=experiments, applications=[make_application()]), TrainingJobStatus(), 4, 10.0
        )
        assert status.observed_generation == 4
        assert status.phase_shares is not None
        assert (status.phase_shares.input, status.phase_shares.compute) == (700, 300)
        assert status.diagnosis is not None
        assert status.diagnosis.bottleneck == "InputBound"
        (knob,) = status.effective_knobs
        assert (knob.name, knob.value, knob.source, knob.experiment) == ("dataloaderWorkers", "2", "Overlay", "e0")
        assert [(v.experiment, v.word) for v in status.last_verdicts] == [("e1", "NoGain"), ("e0", "Won")]
        assert status.active_experiment == "e2"
        assert status.message == HALT.sentence

    def test_a_value_in_the_spec_is_remembered_as_seen_there(self) -> None:
        """What tells a later revert from a write that has not happened yet."""
        won, applied = [make_experiment(verdict=WON)], [make_application()]
        overlay = describe(make_facts(experiments=won, applications=applied), TrainingJobStatus(), 1, 1.0)
        assert read_seen(overlay) == {}
        job = make_job({"dataloaderWorkers": 2})
        written = describe(make_facts(job, won, applied), overlay, 2, 2.0)
        assert read_seen(written) == {KnobName.DATALOADER_WORKERS: 2}
        assert written.effective_knobs[0].experiment == "e0"

    def test_values_that_are_withheld_are_not_effective(self) -> None:
        """Spec or nothing: what the spec says is what runs."""
        facts = make_facts(experiments=[make_experiment(verdict=WON)], applications=[make_application()], withheld=True)
        (knob,) = describe(facts, TrainingJobStatus(), 1, 1.0).effective_knobs
        assert (knob.value, knob.source, knob.experiment) == ("0", KnobSource.SPEC, None)

    def test_an_unreadable_spec_leaves_the_rest_as_it_was(self) -> None:
        """Only the job's own conditions, the message and the generation speak of the new spec."""
        before = describe(make_facts(experiments=[make_experiment(verdict=WON)]), TrainingJobStatus(), 1, 1.0)
        broken = Facts(standing=Note(reason=Reason.INVALID_SPEC, sentence="spec.knobs: no."))
        after = describe(broken, before, 2, 2.0)
        assert after.message == "spec.knobs: no."
        assert after.model_copy(update={"message": before.message, "conditions": (), "observed_generation": 1}) == (
            before.model_copy(update={"conditions": ()})
        )

    @pytest.mark.parametrize(
        ("accrued_h", "spent_h", "is_new"),
        [(10.0, 1.0, False), (10.1, 1.0, False), (10.3, 1.0, True), (10.0, 1.1, True), (9.7, 1.0, True)],
    )
    def test_the_bank_is_not_written_every_hour(self, accrued_h: float, spent_h: float, is_new: bool) -> None:
        """Savings that grew by less than 2 % wait; a cost never does."""
        before = BankReport(gross_device_hours=10.0, spent_device_hours=1.0, net_device_hours=9.0)
        balance = Balance(
            accrued=Saving(expected_h=accrued_h), clawed_back=Saving(), projected=Saving(), spent_h=spent_h
        )
        after = report_bank(balance, before)
        assert (after != before) == is_new
        if is_new:
            assert after.net_device_hours == pytest.approx(accrued_h - spent_h)

    @pytest.mark.parametrize(
        ("reason", "wastes"),
        [
            (Reason.AS_DECLARED, True),
            (Reason.STARTING, True),
            (Reason.MAKING_WAY, True),
            (Reason.SUSPENDED, False),
            (Reason.QUEUED, False),
            (Reason.FINISHED, False),
            (Reason.JOB_FAILED, False),
        ],
    )
    def test_who_holds_no_device_wastes_none(self, reason: Reason, wastes: bool) -> None:
        """Seven tenths of a device while it runs; of a job that does not, the fleet counts nothing."""
        facts = make_facts().model_copy(update={"standing": Note(reason=reason, sentence="So.")})
        status = describe(facts, TrainingJobStatus(), 1, 100.0)
        assert status.wasted_device_hours_per_hour == (pytest.approx(0.7, abs=0.1) if wastes else 0.0)
        assert status.phase_shares is not None
        bare = describe(Facts(standing=facts.standing), status, 1, 100.0)
        assert bare.wasted_device_hours_per_hour == status.wasted_device_hours_per_hour

    def test_standstills_read_back_as_they_were_written(self) -> None:
        """To the moment, with the one that lasts."""
        known = (Standstill(from_s=100.25, to_s=200.5), Standstill(from_s=300.125))
        facts = make_facts(bank=Balance(accrued=Saving(), clawed_back=Saving(), projected=Saving(), spent_h=0.0))
        status = describe(facts.model_copy(update={"standstills": known}), TrainingJobStatus(), 1, 400.0)
        assert read_standstills(status) == known


def test_a_block_without_room_blocks_trials_in_words() -> None:
    """The owner reads it where whatever keeps trials from running is said."""
    facts = make_facts(action=FULL, experiments=[OPEN])
    assert found(facts, T.TRIALS_BLOCKED) == (TRUE, Reason.NO_SPARE_DEVICES)
    assert sentence(facts, T.TRIALS_BLOCKED) == FULL.sentence


@pytest.mark.parametrize(
    ("review", "observed"),
    [
        pytest.param(None, (FALSE, Reason.PROBE_REMOVED), id="before anything is measured"),
        pytest.param(
            Unobservable(sentence="no counters"), (FALSE, Reason.PROBE_REMOVED), id="the cause, not its effect"
        ),
    ],
)
def test_a_job_that_runs_without_the_probe_says_why_and_what_to_do(
    review: Unobservable | None, observed: tuple[ConditionStatus, Reason]
) -> None:
    """Observed and TrialsBlocked name the variable, the field and the way out, and no word of it is cut off."""
    removed, other = miss_probe(), Obstacle(reason=Reason.NOT_ISOLATED, field="f", why="holds a key", fix="vouch")
    facts = make_facts(review=review, obstacles=(removed, other))
    assert found(facts, T.OBSERVED) == observed
    assert found(facts, T.TRIALS_BLOCKED) == (TRUE, Reason.PROBE_REMOVED)
    for type_name in (T.OBSERVED, T.TRIALS_BLOCKED):
        said = sentence(facts, type_name)
        assert removed.why in said
        assert said.endswith(f"To go on, {removed.fix}.")
        assert clip(said) == said


def test_a_program_that_reports_by_itself_is_observed_without_the_probe() -> None:
    """What was measured counts, whoever measured it."""
    assert found(make_facts(obstacles=(miss_probe(),)), T.OBSERVED) == (TRUE, Reason.MEASURED)

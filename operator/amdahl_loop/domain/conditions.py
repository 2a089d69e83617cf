"""Which conditions does a TrainingJob report, and why?

Twelve findings from the facts of one pass: each a type, whether it holds, one word of `reasons.py` and one sentence
with the numbers. Pure: the same facts always give the same findings, so that nothing is written while nothing changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from amdahl_loop.domain import judge
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.parts import MAX_SENTENCE, clip
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.applying import Conflict, Decision, KeepOverlay, Nothing, RecordRelease, RecordRevert, WriteSpec
from amdahl_loop.domain.assessment import percent
from amdahl_loop.domain.bank import Balance
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.isolation import Obstacle, say_obstacles
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import ApplicationKind
from amdahl_loop.domain.phases import Unobservable
from amdahl_loop.domain.plan import (
    Action,
    Apply,
    Challenge,
    Halt,
    Judge,
    Launch,
    Observe,
    Propose,
    Review,
    Rollback,
    Snapshot,
    Wait,
)
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.standing_still import Standstill
from amdahl_loop.domain.stewards import Ignore
from amdahl_loop.domain.tuning import APPLYING, Mode
from amdahl_loop.domain.values import Frozen

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


class Note(Frozen):
    """A word and a sentence: how the job's pods stand, or what keeps its trials waiting."""

    reason: Reason
    sentence: str


class Facts(Frozen):
    """What one pass has seen of a job and decided for it. Without a snapshot, only the job itself is spoken of."""

    standing: Note
    """How the job itself stands: a reason of `STANDINGS`."""
    snapshot: Snapshot | None = None
    action: Action | None = None
    review: Review | Unobservable | None = None
    """What the observation of the values in force shows; None before there is one."""
    obstacles: tuple[Obstacle, ...] = ()
    """What in the template keeps trials from starting."""
    hold: Note | None = None
    """What else keeps them from starting now: no devices, no admission, other work of the owner's."""
    decision: Decision | None = None
    """What is done about the spec."""
    limits: tuple[str, ...] = ()
    """What an administrator's policies changed about the owner's wishes, a sentence each."""
    bank: Balance | None = None
    """What tuning has saved so far, and cost."""
    standstills: tuple[Standstill, ...] = ()
    """When the job did not run with its proven values."""

    @property
    def holds_devices(self) -> bool:
        """Whether the job holds what it can waste; one that makes way for a trial has it back in a moment."""
        stands = STANDINGS[self.standing.reason]
        is_away = stands.is_suspended and self.standing.reason is not Reason.MAKING_WAY
        return not (is_away or stands.is_complete or stands.has_failed)


class Finding(NamedTuple):
    """One condition without its times."""

    type: JobConditionType
    status: ConditionStatus
    reason: Reason
    sentence: str


class Standing(NamedTuple):
    """What a way of standing means for the conditions about the job itself."""

    is_ready: bool = False
    is_reconciling: bool = False
    is_stalled: bool = False
    is_suspended: bool = False
    is_complete: bool = False
    has_failed: bool = False


STANDINGS: Mapping[Reason, Standing] = {
    Reason.AS_DECLARED: Standing(is_ready=True),
    Reason.STARTING: Standing(is_reconciling=True),
    Reason.REPLACING: Standing(is_reconciling=True),
    Reason.SUSPENDED: Standing(is_suspended=True),
    Reason.QUEUED: Standing(is_reconciling=True, is_suspended=True),
    Reason.MAKING_WAY: Standing(is_reconciling=True, is_suspended=True),
    Reason.FINISHED: Standing(is_ready=True, is_complete=True),
    Reason.JOB_FAILED: Standing(is_stalled=True, has_failed=True),
    Reason.CRASH_LOOPING: Standing(is_stalled=True),
    Reason.INVALID_SPEC: Standing(is_stalled=True),
    Reason.REFUSED_BY_SERVER: Standing(is_stalled=True),
    Reason.SQUATTED: Standing(is_stalled=True),
    Reason.OPERATOR_FAULT: Standing(is_stalled=True),
}
"""Every way in which a job can stand. kstatus reads Ready, Reconciling and Stalled: the last two are true when
something is going on, or wrong."""


def find(facts: Facts) -> tuple[Finding, ...]:
    """What the facts say, in the order of the types; of the job itself alone where there is no snapshot."""
    findings = list(_find_standing(facts.standing))
    snapshot = facts.snapshot
    if snapshot is not None:
        findings += [
            _find_observed(facts),
            _find_experimenting(facts, snapshot),
            _find_tuned(facts, snapshot),
            _find_blocked(facts),
            _find_conflict(facts.decision),
            _find_budget(facts, snapshot),
        ]
    order = list(JobConditionType)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.type)))


def update_conditions(
    conditions: Sequence[JobCondition], findings: Iterable[Finding], generation: int, now_s: float
) -> tuple[JobCondition, ...]:
    """The conditions with these findings. A time moves only when its condition's status does; others stay as they are.

    `generation` is that of the spec which the findings are about.
    """
    now, updated = to_timestamp(float(int(now_s))), {condition.type: condition for condition in conditions}
    for finding in findings:
        before = updated.get(finding.type)
        if before is not None and _says_so(before, finding, generation):
            continue
        updated[finding.type] = JobCondition(
            type=finding.type,
            status=finding.status,
            reason=finding.reason.value,
            message=finding.sentence,
            last_transition_time=before.last_transition_time if before and before.status is finding.status else now,
            observed_generation=generation,
        )
    order = list(JobConditionType)
    return tuple(sorted(updated.values(), key=lambda condition: order.index(condition.type)))


def _says_so(condition: JobCondition, finding: Finding, generation: int) -> bool:
    """Whether a condition says this already, word for word."""
    told = (condition.status, condition.reason, condition.message, condition.observed_generation)
    return told == (finding.status, finding.reason.value, clip(finding.sentence), generation)


def _say(is_so: bool) -> ConditionStatus:
    return TRUE if is_so else FALSE


def _find_standing(note: Note) -> list[Finding]:
    """Ready, Reconciling, Stalled, Suspended, Complete and Failed, in kstatus' sense."""
    stands = STANDINGS[note.reason]

    def about(type_name: JobConditionType, is_so: bool, otherwise: Reason) -> Finding:
        return Finding(type_name, _say(is_so), note.reason if is_so else otherwise, note.sentence if is_so else "")

    return [
        Finding(JobConditionType.READY, _say(stands.is_ready), note.reason, note.sentence),
        about(JobConditionType.RECONCILING, stands.is_reconciling, Reason.AS_DECLARED),
        about(JobConditionType.STALLED, stands.is_stalled, Reason.PROGRESSING),
        about(JobConditionType.SUSPENDED, stands.is_suspended, Reason.NOT_SUSPENDED),
        about(JobConditionType.COMPLETE, stands.is_complete, Reason.RUNNING),
        about(JobConditionType.FAILED, stands.has_failed, Reason.RUNNING),
    ]


def _find_observed(facts: Facts) -> Finding:
    removed = next((obstacle for obstacle in facts.obstacles if obstacle.reason is Reason.PROBE_REMOVED), None)
    if removed is not None and not isinstance(facts.review, Review):
        sentence = f"Not measured: {removed}. To go on, {removed.fix}."
        return Finding(JobConditionType.OBSERVED, FALSE, Reason.PROBE_REMOVED, sentence)
    match facts.review:
        case None:
            sentence = "The values in force have not been measured yet."
            return Finding(JobConditionType.OBSERVED, UNKNOWN, Reason.MEASURING, sentence)
        case Unobservable():
            return Finding(JobConditionType.OBSERVED, FALSE, Reason.NOT_MEASURABLE, facts.review.sentence)
        case Review():
            seen = facts.review.breakdown
            sentence = (
                f"{seen.steps} steps of {1000 * seen.step_s:.3g} ms on {seen.devices} device"
                f"{'' if seen.devices == 1 else 's'}: {facts.review.diagnosis.sentence}"
            )
            return Finding(JobConditionType.OBSERVED, TRUE, Reason.MEASURED, sentence)


def _find_experimenting(facts: Facts, snapshot: Snapshot) -> Finding:
    """True while an experiment is open, also while it waits."""
    running, action = snapshot.history.running, facts.action
    if running is None:
        reason, sentence = _why_idle(facts, snapshot)
        return Finding(JobConditionType.EXPERIMENTING, FALSE, reason, sentence)
    if facts.obstacles or facts.hold is not None:
        sentence = f"{running.name} waits: {_find_blocked(facts).sentence}"
        return Finding(JobConditionType.EXPERIMENTING, TRUE, Reason.BLOCKED, sentence)
    match action:
        case Launch() | Challenge():
            reason, sentence = Reason.BLOCK_RUNNING, f"{running.name}, block {action.spec.name}: {action.sentence}"
        case Wait():
            reason, sentence = action.reason, f"{running.name}: {action.sentence}"
        case _:
            reason, sentence = Reason.DECIDING, f"{running.name} is open."
    return Finding(JobConditionType.EXPERIMENTING, TRUE, reason, sentence)


def _why_idle(facts: Facts, snapshot: Snapshot) -> tuple[Reason, str]:
    """Why no experiment is open, the owner's wishes before the loop's own reasons."""
    action = facts.action
    match action:
        case Observe():
            return Reason.NOT_MEASURED_YET, "What is worth trying follows from the first measurement."
        case Propose():
            return Reason.DECIDING, f"{action.plan.name} is opened: {action.worth.sentence}"
        case Judge() | Apply() | Rollback() | Launch() | Challenge() | Wait() | None:
            return Reason.DECIDING, "The next pass acts on what is known."
        case Halt():
            return _why_halted(facts, snapshot), action.sentence


def _why_halted(facts: Facts, snapshot: Snapshot) -> Reason:
    review = facts.review
    if snapshot.ended:
        return Reason.FINISHED
    if snapshot.job.is_paused:
        return Reason.PAUSED
    if (facts.obstacles or facts.hold is not None) and isinstance(review, Review) and review.best is not None:
        return Reason.BLOCKED
    if snapshot.paused:
        return Reason.PAUSED
    if snapshot.job.spec.tuning.mode is Mode.OBSERVE:
        return Reason.OBSERVE_ONLY
    if isinstance(review, Unobservable):
        return Reason.NOT_MEASURABLE
    return Reason.OUT_OF_BUDGET if _is_out_of_budget(facts, snapshot) else Reason.NOTHING_TO_TRY


def _find_tuned(facts: Facts, snapshot: Snapshot) -> Finding:
    """True while a proven value is in force, wherever it is written; what is on record and not believed is named."""
    found, disowned = _tell_tuned(facts, snapshot), snapshot.memory.disowned
    if not disowned:
        return found
    reason = found.reason if found.status is TRUE else Reason.UNPROVEN
    return Finding(JobConditionType.TUNED, found.status, reason, " ".join((*disowned, found.sentence)))


def _tell_tuned(facts: Facts, snapshot: Snapshot) -> Finding:
    applications = snapshot.memory.applications
    newest = applications[-1] if applications else None
    wins = snapshot.history.wins
    if isinstance(facts.decision, Conflict):
        return Finding(JobConditionType.TUNED, FALSE, Reason.WON_UNAPPLIED, facts.decision.sentence)
    if newest is not None and newest.knobs == snapshot.knobs:
        win = next((e for e in wins if e.name == newest.experiment), None)
        if newest.kind is ApplicationKind.ROLLED_BACK:
            sentence = f"{newest.experiment} was rolled back; the values before it are in force."
            return Finding(JobConditionType.TUNED, FALSE, Reason.ROLLED_BACK, sentence)
        place = "in the spec" if snapshot.job.spec.knobs == newest.knobs else "as an overlay"
        return Finding(
            JobConditionType.TUNED, TRUE, Reason.PROVEN_VALUES, f"{_say_win(newest.experiment, win)}, {place}."
        )
    taken = next((e for e in reversed(wins) if _is_taken(e, snapshot.job.spec.knobs)), None)
    if taken is not None and newest is None:
        return Finding(
            JobConditionType.TUNED, TRUE, Reason.PROVEN_VALUES, f"{_say_win(taken.name, taken)}, in the spec."
        )
    if wins:
        is_new = all(application.experiment != wins[-1].name for application in applications)
        if is_new and snapshot.job.spec.tuning.mode in APPLYING and not judge.upholds(wins[-1]):
            name = wins[-1].name
            sentence = f"{name} says that it has won, and its recorded blocks do not show it: it is not used."
            sentence += f" Delete Experiment {name}, and its question is asked anew."
            return Finding(JobConditionType.TUNED, FALSE, Reason.UNPROVEN, sentence)
        is_advice = snapshot.job.spec.tuning.mode is Mode.RECOMMEND
        reason = Reason.RECOMMENDED if is_advice else Reason.WON_UNAPPLIED
        return Finding(
            JobConditionType.TUNED, FALSE, reason, f"Proven, not in force: {_say_win(wins[-1].name, wins[-1])}."
        )
    closed = sum(experiment.verdict is not None for experiment in snapshot.experiments)
    sentence = f"Nothing is proven to be better than what is declared ({closed} experiments)."
    return Finding(JobConditionType.TUNED, FALSE, Reason.NO_WIN, sentence)


def _is_taken(win: Experiment, declared: Knobs) -> bool:
    """Whether the owner has written what an experiment proved."""
    return all(declared.get(knob) == value for knob, value in win.plan.hypothesis.values().items())


def _say_win(name: str, win: Experiment | None) -> str:
    """What a win changes and saves: `dataloaderWorkers 0 -> 2 saves 31 % (pydocs-1a2b)`."""
    if win is None or win.verdict is None:
        return name
    changes = "; ".join(str(change) for change in win.plan.hypothesis.changes)
    effect = win.verdict.effect
    saves = "" if effect is None else f" saves {percent(effect)}"
    return f"{changes}{saves} ({name})"


_WITHOUT_ROOM = (Reason.NO_SPARE_DEVICES, Reason.NOT_SAVED, Reason.NOT_LET_RUN)
_SEVERITY = (Reason.PROBE_REMOVED, Reason.UNSAFE_TEMPLATE, Reason.EXCLUSIVE_STORAGE, Reason.NOT_ISOLATED)


def _find_blocked(facts: Facts) -> Finding:
    """What the owner has to mend comes before what passes by itself."""
    if facts.obstacles:
        found = {obstacle.reason for obstacle in facts.obstacles}
        reason = next(reason for reason in _SEVERITY if reason in found)
        return Finding(JobConditionType.TRIALS_BLOCKED, TRUE, reason, say_obstacles(facts.obstacles))
    if facts.hold is not None:
        return Finding(JobConditionType.TRIALS_BLOCKED, TRUE, facts.hold.reason, facts.hold.sentence)
    if isinstance(facts.action, Wait) and facts.action.reason in _WITHOUT_ROOM:
        return Finding(JobConditionType.TRIALS_BLOCKED, TRUE, facts.action.reason, facts.action.sentence)
    return Finding(JobConditionType.TRIALS_BLOCKED, FALSE, Reason.FREE, "")


def _find_conflict(decision: Decision | None) -> Finding:
    """True where the spec lacks proven values that the mode wants in it."""
    type_name = JobConditionType.APPLY_CONFLICT
    match decision:
        case None:
            return Finding(type_name, FALSE, Reason.NOTHING_APPLIED, "")
        case WriteSpec() | RecordRelease():
            return Finding(type_name, FALSE, Reason.TO_BE_WRITTEN, "")
        case RecordRevert():
            return Finding(type_name, TRUE, Reason.REVERTED, decision.sentence)
        case Nothing():
            return Finding(type_name, FALSE, decision.reason, decision.sentence)
        case KeepOverlay(reason=Reason.MODE_KEEPS_SPEC):
            return Finding(type_name, FALSE, decision.reason, decision.sentence)
        case KeepOverlay() | Conflict():
            return Finding(type_name, TRUE, decision.reason, say_with_rule(decision.sentence, decision.ignore))


def say_with_rule(sentence: str, ignore: Sequence[Ignore]) -> str:
    """The sentence with the first ignore rule where all of it fits: a rule that is cut would be worse than none."""
    if not ignore:
        return sentence
    whole = f"{sentence} To hand it over, {ignore[0].where}: {ignore[0].snippet}"
    if clip(whole) == whole:
        return whole
    return f"{clip(sentence, MAX_SENTENCE - 60)} `amdahl-loop explain` prints the ignore rule."


def _find_budget(facts: Facts, snapshot: Snapshot) -> Finding:
    budget_h, origin = snapshot.job.budget_device_hours
    spent = f"{snapshot.spent_h:.3g} of {budget_h:g} device-hours ({origin}) are spent"
    if not _is_out_of_budget(facts, snapshot):
        return Finding(JobConditionType.BUDGET_EXHAUSTED, FALSE, Reason.WITHIN_BUDGET, f"{spent}.")
    best = facts.review.best if isinstance(facts.review, Review) else None
    need = f"; the next trial needs about {best.trial_h:.2g}" if best is not None else ""
    sentence = f"{spent}{need}. Raise tuning.budget.deviceHours to go on."
    return Finding(JobConditionType.BUDGET_EXHAUSTED, TRUE, Reason.OUT_OF_BUDGET, sentence)


def _is_out_of_budget(facts: Facts, snapshot: Snapshot) -> bool:
    """Whether the budget is spent, or what is left of it does not carry the next trial."""
    budget_h, _ = snapshot.job.budget_device_hours
    if snapshot.spent_h >= budget_h:
        return True
    if snapshot.history.running is not None or not isinstance(facts.review, Review):
        return False
    best = facts.review.best
    return best is not None and snapshot.spent_h + best.trial_h > budget_h

"""What does a TrainingJob's status say?

One pure function from the facts of a pass and the status before it to the status after it. What the facts do not speak
of stays as it was; what has not changed is letter for letter the same, so that an idle job is never written to.
"""

from collections.abc import Sequence

from amdahl_loop.domain.api.parts import clip, read_knob, write_knob
from amdahl_loop.domain.api.timestamps import to_epoch_s, to_timestamp
from amdahl_loop.domain.api.training_job import (
    MAX_LAST_VERDICTS,
    BankReport,
    DiagnosisReport,
    EffectiveKnob,
    KnobSource,
    PhaseShares,
    StandstillReport,
    TrainingJobStatus,
    VerdictReport,
)
from amdahl_loop.domain.applying import chain_of
from amdahl_loop.domain.bank import Balance
from amdahl_loop.domain.conditions import Facts, find, update_conditions
from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.ledger import ApplicationKind
from amdahl_loop.domain.plan import (
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
from amdahl_loop.domain.standing_still import Standstill
from amdahl_loop.domain.telemetry import PHASES

BANK_STEP = 0.02
LEAST_BANK_STEP_H = 0.05
"""Savings grow with every hour: they are written anew when they have changed by this share, and by so many hours."""
MAX_CHANGE = 160


def describe(facts: Facts, before: TrainingJobStatus, generation: int, now_s: float) -> TrainingJobStatus:
    """The status after a pass. The observation is not touched: the ledger keeps it."""
    status = before.model_copy(
        update={
            "observed_generation": generation,
            "conditions": update_conditions(before.conditions, find(facts), generation, now_s),
            "message": " ".join((_say_next(facts), *facts.limits)),
        }
    )
    idle: dict[str, object] = {} if facts.holds_devices else {"wasted_device_hours_per_hour": 0.0}
    snapshot = facts.snapshot
    if snapshot is None:
        return TrainingJobStatus.model_validate(dict(status) | idle)
    running = snapshot.history.running
    update: dict[str, object] = {
        "effective_knobs": report_knobs(snapshot),
        "active_experiment": None if running is None else running.name,
        "last_verdicts": report_verdicts(snapshot, before.last_verdicts),
    }
    if facts.bank is not None:
        update["bank"] = report_bank(facts.bank, before.bank)
        update["standstills"] = report_standstills(facts.standstills)
    if isinstance(facts.review, Review):
        update |= _report_review(facts.review)
    return TrainingJobStatus.model_validate(dict(status) | update | idle)


def _say_next(facts: Facts) -> str:
    """What happens next, or why nothing does."""
    match facts.action:
        case None:
            return facts.standing.sentence
        case Observe():
            return "Measuring the job as it is."
        case Propose():
            return f"Opening {facts.action.plan.name}: {facts.action.worth.sentence}"
        case Judge():
            return facts.action.verdict.sentence
        case Apply():
            return f"Putting the values of {facts.action.experiment.name} in force."
        case Launch() | Challenge() | Wait() | Rollback() | Halt():
            return facts.action.sentence


def _report_review(review: Review) -> dict[str, object]:
    """Shares, diagnosis and waste of the latest observation of the values in force."""
    shares = {phase.value: ppk for phase, ppk in zip(PHASES, review.breakdown.shares_ppk, strict=True)}
    diagnosis = review.diagnosis
    return {
        "phase_shares": PhaseShares(**shares),
        "diagnosis": DiagnosisReport(bottleneck=diagnosis.bottleneck, sentence=diagnosis.sentence),
        "wasted_device_hours_per_hour": _round(diagnosis.wasted_devices),
    }


def report_knobs(snapshot: Snapshot) -> tuple[EffectiveKnob, ...]:
    """Every declared knob with the value that runs, where it stands and which experiment proved it."""
    declared = snapshot.job.spec.knobs
    return tuple(
        EffectiveKnob(
            name=knob,
            value=write_knob(value),
            source=KnobSource.SPEC if declared.get(knob) == value else KnobSource.OVERLAY,
            experiment=_prover(snapshot, knob, value),
        )
        for knob, value in snapshot.knobs.declared().items()
    )


def read_seen(status: TrainingJobStatus) -> dict[KnobName, KnobValue]:
    """Values that a status found in the spec: what `applying.decide` tells a revert by."""
    return {k.name: read_knob(k.value) for k in status.effective_knobs if k.source is KnobSource.SPEC}


def _prover(snapshot: Snapshot, knob: KnobName, value: KnobValue) -> str | None:
    """The experiment by whose application a knob has its value; None where its owner chose it."""
    changed = {experiment.name: experiment.plan.hypothesis.values() for experiment in snapshot.experiments}
    for application in reversed(chain_of(snapshot.memory.applications)):
        is_in_force = application.kind is not ApplicationKind.ROLLED_BACK
        if is_in_force and changed.get(application.experiment, {}).get(knob) == value:
            return application.experiment
    return None


def report_verdicts(snapshot: Snapshot, before: Sequence[VerdictReport] = ()) -> tuple[VerdictReport, ...]:
    """How this job's latest experiments ended, newest first; what was told before is not put into words again."""
    closed_at_s = snapshot.memory.closed_at_s
    closed = [e for e in snapshot.experiments if e.verdict is not None and e.name in closed_at_s]
    closed.sort(key=lambda experiment: -closed_at_s[experiment.name])
    told = {(report.experiment, report.closed_at): report for report in before}
    return tuple(
        told.get((experiment.name, to_timestamp(closed_at_s[experiment.name])))
        or VerdictReport(
            experiment=experiment.name,
            word=experiment.verdict.word,
            change=clip("; ".join(str(change) for change in experiment.plan.hypothesis.changes), MAX_CHANGE),
            sentence=experiment.verdict.sentence,
            closed_at=to_timestamp(closed_at_s[experiment.name]),
        )
        for experiment in closed[:MAX_LAST_VERDICTS]
        if experiment.verdict is not None
    )


def report_bank(balance: Balance, before: BankReport | None) -> BankReport:
    """The bank, as it was reported before while only the hours have moved it, and not by much."""
    gross_h = balance.accrued.expected_h - balance.clawed_back.expected_h
    spent_h = _round(balance.spent_h)
    if before is not None and before.spent_device_hours == spent_h:
        step_h = max(LEAST_BANK_STEP_H, BANK_STEP * abs(before.gross_device_hours))
        if abs(gross_h - before.gross_device_hours) < step_h:
            return before
    return BankReport(
        gross_device_hours=_round(gross_h),
        spent_device_hours=spent_h,
        net_device_hours=_round(gross_h - balance.spent_h),
    )


def report_standstills(standstills: Sequence[Standstill]) -> tuple[StandstillReport, ...]:
    """Times without savings as a status keeps them."""
    return tuple(
        StandstillReport(since=to_timestamp(one.from_s), until=None if one.to_s is None else to_timestamp(one.to_s))
        for one in standstills
    )


def read_standstills(status: TrainingJobStatus) -> tuple[Standstill, ...]:
    """Times without savings that a status tells of."""
    return tuple(
        Standstill(from_s=to_epoch_s(told.since), to_s=None if told.until is None else to_epoch_s(told.until))
        for told in status.standstills
    )


def _round(hours: float) -> float:
    """Four significant digits: what people read, and what the noise of a measurement leaves."""
    return float(f"{hours:.4g}")

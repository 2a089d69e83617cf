"""What does the loop's memory say about one job, before and after?

Pure: a snapshot in, a printable value out. Everything is derived from the ledger, so a second run on a settled ledger
prints the same without starting anything.
"""

import math
from collections.abc import Iterable, Mapping

from amdahl_loop.cli.shapes import (
    BankShape,
    BlockShape,
    CeilingShape,
    ChangeShape,
    DiagnosisShape,
    ExperimentShape,
    FinalShape,
    IdeaShape,
    ObservationShape,
    RefuteShape,
    RejectedShape,
    VetoShape,
    WindowShape,
)
from amdahl_loop.domain.bank import balance
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.diagnosis import Diagnosis, diagnose, weigh_cadence
from amdahl_loop.domain.evidence import read_block, run_arm, sift
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.hypotheses import Change
from amdahl_loop.domain.knob_values import KnobName, Knobs, KnobValue
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.phases import Breakdown, Unobservable, account
from amdahl_loop.domain.plan import Review, Snapshot
from amdahl_loop.domain.telemetry import PHASES, Window
from amdahl_loop.domain.tuning import Mode
from amdahl_loop.domain.verdicts import VerdictWord

DIGITS = 6
"""Decimals of printed fractions: far finer than any measurement, and free of binary noise."""


def starting_knobs(snapshot: Snapshot) -> Knobs:
    """Values before the loop changed any: what the manifest said when the newest overlay in force was applied."""
    declared, applications = snapshot.job.spec.knobs, snapshot.memory.applications
    is_overlaid = bool(applications) and declared in (applications[-1].declared, applications[-1].knobs)
    return applications[-1].declared if is_overlaid else declared


def first_observation(snapshot: Snapshot) -> Observation | None:
    """The first usable observation under the starting values; where code changed since, the first of this code."""
    usable = [o for o in snapshot.memory.observations if o.fingerprint == snapshot.fingerprint and o.is_usable]
    start = starting_knobs(snapshot)
    return next((o for o in usable if o.knobs == start), usable[0] if usable else None)


def own_experiments(snapshot: Snapshot) -> tuple[Experiment, ...]:
    """This job's experiments on the code as it is now."""
    return tuple(e for e in snapshot.experiments if e.plan.fingerprint == snapshot.fingerprint)


def proven_values(snapshot: Snapshot) -> dict[KnobName, KnobValue]:
    """Values that the manifest lacks: those in force, and the best win where the loop may only recommend.

    Only the best of several: each was proven from the declared values alone, not together with the others.
    """
    declared = snapshot.job.spec.knobs
    values = {knob: value for knob, value in snapshot.knobs.declared().items() if declared.get(knob) != value}
    if snapshot.job.spec.tuning.mode is not Mode.RECOMMEND:
        return values
    verdicts = [(e.verdict, e.plan) for e in own_experiments(snapshot) if e.plan.baseline == snapshot.knobs]
    wins = [(verdict.effect or 0.0, plan) for verdict, plan in verdicts if verdict and verdict.word is VerdictWord.WON]
    return values | (max(wins, key=lambda win: win[0])[1].hypothesis.values() if wins else {})


def breakdown_of(snapshot: Snapshot, observation: Observation | None) -> Breakdown | None:
    """Where the time of an observation went; None where there is none that can be used."""
    if observation is None:
        return None
    tuning = snapshot.job.spec.tuning
    found = account(observation, snapshot.job.expected_device_hours[0], tuning.checkpoint)
    return None if isinstance(found, Unobservable) else found


def diagnosis_of(snapshot: Snapshot, breakdown: Breakdown) -> Diagnosis:
    """The diagnosis of a breakdown, under the values that it was measured with."""
    job = snapshot.job.with_knobs(breakdown.knobs)
    return diagnose(breakdown, job, weigh_cadence(breakdown, job))


def shape_observation(breakdown: Breakdown) -> ObservationShape:
    """Printed form of a breakdown."""
    return ObservationShape(
        phases={phase.value: _round(breakdown.shares[phase]) for phase in PHASES},
        step_s=_round(breakdown.step_s),
        samples_per_s=round(breakdown.samples_per_s, 3),
        devices=breakdown.devices,
    )


def shape_diagnosis(diagnosis: Diagnosis) -> DiagnosisShape:
    """Printed form of a diagnosis."""
    return DiagnosisShape(
        class_=diagnosis.bottleneck.value,
        sentence=diagnosis.sentence,
        ceilings={
            ceiling.knob.value: CeilingShape(
                removable_share=_round(ceiling.removable_share),
                speedup=round(ceiling.speedup, 3),
                sentence=ceiling.sentence,
            )
            for ceiling in diagnosis.ceilings
        },
    )


def shape_change(change: Change) -> ChangeShape:
    """Printed form of a change."""
    return ChangeShape(knob=change.knob.value, from_=change.before, to=change.after)


def shape_experiment(experiment: Experiment, namespace: str | None = None) -> ExperimentShape:
    """Printed form of an experiment, closed or not; `namespace` where it is kept in a cluster."""
    hypothesis, verdict = experiment.plan.hypothesis, experiment.verdict
    first, *others = hypothesis.changes
    return ExperimentShape(
        id=experiment.name,
        knob=first.knob.value,
        from_=first.before,
        to=first.after,
        with_=[shape_change(change) for change in others],
        job=experiment.plan.job,
        source=hypothesis.source,
        verdict=verdict.word if verdict else None,
        reason=verdict.reason if verdict else "",
        sentence=verdict.sentence if verdict else "",
        effect=saving(verdict.effect) if verdict and verdict.effect is not None else None,
        interval=(saving(verdict.interval[0]), saving(verdict.interval[1])) if verdict and verdict.interval else None,
        refutes=[
            RefuteShape(agree=vote.agree, effect=saving(vote.effect), changed=list(vote.changed))
            for vote in (verdict.votes if verdict else ())
        ],
        vetoes=[
            VetoShape(name=veto.name.value, silent=veto.silent, sentence=veto.sentence)
            for veto in (verdict.vetoes if verdict else ())
        ],
        blocks=len(experiment.blocks),
        device_seconds=round(experiment.held_device_s, 3),
        namespace=namespace,
    )


def shape_floor(experiment: Experiment) -> float | None:
    """The smallest share of cost that the judge would have called a saving, once it has said so."""
    verdict = experiment.verdict
    return saving(verdict.floor) if verdict and verdict.floor is not None else None


def shape_final(knobs: Knobs) -> FinalShape:
    """Printed form of the values in force."""
    return FinalShape(knobs={knob.value: value for knob, value in knobs.declared().items()})


def shape_bank(snapshot: Snapshot) -> BankShape:
    """Printed form of the bank: what the wins are worth over the hours ahead, less every trial's cost, losses too."""
    ahead_h, origin = snapshot.job.expected_device_hours
    bank = balance(snapshot.experiments, snapshot.memory.applications, ahead_h)
    return BankShape(
        gross=_round(bank.projected.expected_h),
        spent=_round(bank.spent_h),
        net=_round(bank.projected_net_h),
        at_least=_round(bank.headline_h),
        accrued=_round(bank.accrued.expected_h),
        basis=f"projected over {ahead_h:g} device-hours ahead ({origin})",
    )


def shape_ideas(review: Review) -> list[IdeaShape]:
    """Printed form of what the spend gate weighed, best first."""
    return [
        IdeaShape(
            changes=[shape_change(change) for change in worth.hypothesis.changes],
            source=worth.hypothesis.source,
            rationale=worth.hypothesis.rationale,
            expected_gain=_round(worth.hypothesis.expected_gain),
            expected_bank=_round(worth.expected_bank_h),
            trial_device_hours=_round(worth.trial_h),
            sentence=worth.sentence,
            worth_trying=worth.expected_bank_h > 0,
        )
        for worth in review.worths
    ]


def shape_rejected(review: Review) -> list[RejectedShape]:
    """Printed form of what may not be tried."""
    return [
        RejectedShape(changes=[shape_change(change) for change in rejected.hypothesis.changes], reason=rejected.reason)
        for rejected in review.rejected
    ]


def shape_blocks(experiment: Experiment) -> list[BlockShape]:
    """Printed form of every finished block, in plan order, holdout blocks last; `valid` by its stage's void gate."""
    plan = experiment.plan
    read = {record.spec: read_block(plan, record) for record in experiment.blocks}
    valid = {
        block.spec
        for stage in Stage
        for block in sift([b for b in read.values() if b.spec.stage is stage], plan.constants).valid
    }
    places = {spec: place for place, spec in enumerate(plan.blocks)}
    records = sorted(experiment.blocks, key=lambda record: places.get(record.spec, len(places) + record.spec.index))
    shaped = []
    for record in records:
        spec, evidence = record.spec, read[record.spec]
        is_proof = spec.stage is Stage.PROOF
        shaped.append(
            BlockShape(
                name=spec.name,
                stage=spec.stage.value,
                check=spec.check,
                order=spec.order,
                node=record.node,
                started_at_s=record.started_at_s,
                device_seconds=round(record.held_device_s, 3),
                valid=not evidence.problem if is_proof else spec in valid,
                effect=saving(evidence.effect) if evidence.is_measured else None,
                problem=evidence.problem,
                windows=[
                    _shape_window(window, run_arm(spec, window.index).value, spec.seeds, spec.offsets)
                    for window in (record.report.windows if record.report else ())
                ],
            )
        )
    return shaped


def _shape_window(window: Window, ran: str, seeds: tuple[int, ...], offsets: tuple[int, ...]) -> WindowShape:
    return WindowShape(
        arm=window.arm.value,
        ran=ran,
        outcome=window.outcome.value,
        why=window.why,
        steps=window.steps,
        samples=window.samples,
        devices=window.devices,
        wall_s=window.wall_s,
        device_s_per_sample=round(math.exp(window.device_cost), 9) if window.is_measured else None,
        phases={phase.value: window.share(phase) for phase in PHASES if window.share(phase)},
        seed=seeds[window.index],
        offset=offsets[window.index],
        offset_applied=window.offset_applied,
        peak_mem_mib=window.peak_mem_mib,
    )


def saving(effect: float) -> float:
    """A difference of log cost as the share of cost saved: 0.40 is 40 % less."""
    return _round(-math.expm1(-effect))


def by_phase(shares: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    """Phases with their shares, `compute` first, then the contract's order; those that take nothing are left out."""
    ordered = sorted(shares.items(), key=lambda item: item[0] != "compute")
    return ((phase, share) for phase, share in ordered if share > 0)


def _round(value: float) -> float:
    return round(value, DIGITS)

"""How do the ledger's facts become an Experiment's status, and how is a whole Experiment read back?

Lossless in both directions: plan, hash, blocks, losses, verdict and applications come back as they were. What cannot be
read is a value with a reason, never a guess.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from amdahl_loop.domain.api.experiment import (
    MAX_APPLICATIONS,
    MAX_LOSSES,
    ApplicationReport,
    Block,
    ExperimentSpec,
    ExperimentStatus,
    LossReport,
)
from amdahl_loop.domain.api.plans import read_plan
from amdahl_loop.domain.api.timestamps import to_epoch_s, to_timestamp
from amdahl_loop.domain.api.training_job import ObservationReport
from amdahl_loop.domain.api.wire import from_wire, to_wire
from amdahl_loop.domain.assessment import percent
from amdahl_loop.domain.blocks import BlockSpec, Stage, holdout_block
from amdahl_loop.domain.children import read_run
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.ledger import Application
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import BlockReport, Malformed, parse_block_summary
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import Verdict

MAX_EVIDENCE_BYTES = 80_000
"""JSON of all finished blocks together: with plan, verdict and the rest, an Experiment stays below 128 KiB."""

WORST_SHOWN = -7.0
"""A variant a thousand times as expensive is shown no worse: nobody needs the digits."""


class StoredExperiment(Frozen):
    """An Experiment as it was read."""

    experiment: Experiment
    closed_at_s: float | None = None
    applications: tuple[Application, ...] = ()
    status: ExperimentStatus = ExperimentStatus()
    observation: ObservationReport | None = None
    """What the plan was made from."""


class Unreadable(Frozen):
    """An Experiment that cannot be used, and why."""

    name: str
    reason: str


def add_block(status: ExperimentStatus, record: BlockRecord) -> ExperimentStatus:
    """The status with one more finished block; one that it holds already stays as it is.

    Where all blocks together would outgrow the object, this one's summary is left out: missing data is never a win.
    """
    finished, block = (*status.blocks, *status.holdouts), write_block(record)
    if any(kept.name == block.name for kept in finished):
        return status
    if sum(_json_bytes(kept) for kept in (*finished, block)) > MAX_EVIDENCE_BYTES:
        block = block.model_copy(update={"summary": None, "failure": "the Experiment has no room for another summary"})
    if record.spec.stage is Stage.HOLDOUT:
        return status.model_copy(update={"holdouts": (*status.holdouts, block)})
    return status.model_copy(update={"blocks": (*status.blocks, block)})


def add_loss(status: ExperimentStatus, loss: Loss) -> ExperimentStatus:
    """The status with one more run that was stopped; the same one twice is kept once.

    Where there are too many, the two oldest become one, so that no device-second is ever forgotten.
    """
    written = LossReport(
        run=loss.run,
        started_at=to_timestamp(loss.started_at_s),
        held_device_s=loss.held_device_s,
        why=loss.why or None,
    )
    if written in status.losses:
        return status
    losses = (*status.losses, written)
    if len(losses) > MAX_LOSSES:
        first, second, *others = losses
        both_s = first.held_device_s + second.held_device_s
        losses = (second.model_copy(update={"held_device_s": both_s}), *others)
    return status.model_copy(update={"losses": losses})


def write_block(record: BlockRecord) -> Block:
    """A finished block as a status keeps it."""
    summary = render_block_summary(record.report) if record.report is not None else None
    unkept = record.report is not None and summary is None
    return Block(
        name=record.spec.name,
        run=record.report.run if record.report is not None else None,
        node=record.node or None,
        started_at=to_timestamp(record.started_at_s),
        held_device_s=record.held_device_s,
        failure=record.failure or ("the summary is too long to be kept" if unkept else None),
        summary=summary,
    )


def read_block(plan: Plan, block: Block) -> BlockRecord:
    """The finished block that a status keeps; ValueError where the plan holds no such block."""
    spec = _find_spec(plan, block.name)
    report, failure = _read_summary(plan, spec, block)
    return BlockRecord(
        spec=spec,
        node=block.node or "",
        started_at_s=to_epoch_s(block.started_at),
        held_device_s=block.held_device_s,
        report=report,
        failure=failure,
    )


def close(status: ExperimentStatus, verdict: Verdict, now_s: float) -> ExperimentStatus:
    """The status with its verdict; one that has a verdict keeps it."""
    if status.verdict is not None:
        return status
    saving = None if verdict.effect is None else percent(max(verdict.effect, WORST_SHOWN))
    return status.model_copy(update={"verdict": verdict, "closed_at": to_timestamp(now_s), "saving": saving})


def add_application(status: ExperimentStatus, application: Application) -> ExperimentStatus:
    """The status with one more application; the same one twice is kept once, and only the newest sixteen stay."""
    written = ApplicationReport(
        at_time=to_timestamp(application.at_s),
        kind=application.kind,
        fingerprint=application.fingerprint,
        declared=application.declared,
        knobs=application.knobs,
        failing=application.failing,
    )
    if written in status.applications:
        return status
    return status.model_copy(update={"applications": (*status.applications, written)[-MAX_APPLICATIONS:]})


def read_experiment(document: Mapping[str, Any]) -> StoredExperiment | Unreadable:
    """The experiment that an object holds.

    An open one whose plan no longer hashes to what was recorded is refused: another version wrote it, or somebody
    meddled, and its blocks were launched under another plan. A closed one is history and is read as it stands.
    """
    name = str((document.get("metadata") or {}).get("name", ""))
    try:
        spec = from_wire(ExperimentSpec, document.get("spec"))
        status = from_wire(ExperimentStatus, document.get("status") or {})
        plan = read_plan(name, spec)
        blocks = tuple(read_block(plan, block) for block in (*status.blocks, *status.holdouts))
        losses = tuple(_read_loss(report) for report in status.losses)
        applications = tuple(_read_application(plan, report) for report in status.applications)
        closed_at_s = to_epoch_s(status.closed_at) if status.closed_at else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Unreadable(name=name, reason=f"{error.title} {where}: {first['msg']}"[:300])
    except ValueError as error:
        return Unreadable(name=name, reason=str(error)[:300])
    if status.verdict is None and plan.hash != spec.plan_hash:
        return Unreadable(name=name, reason=f"its plan hashes to {plan.hash}, but {spec.plan_hash} was recorded")
    return StoredExperiment(
        experiment=Experiment(plan=plan, blocks=blocks, losses=losses, verdict=status.verdict),
        closed_at_s=closed_at_s,
        applications=applications,
        status=status,
        observation=spec.observation,
    )


def _find_spec(plan: Plan, name: str) -> BlockSpec:
    """The block of this name: one that the plan holds, or one drawn later from the plan's seed."""
    named = read_run(f"{plan.name}-{name}")
    if named is not None and named.stage is Stage.HOLDOUT:
        return holdout_block(plan.seed, named.number)
    for spec in plan.blocks:
        if spec.name == name:
            return spec
    raise ValueError(f"status.blocks names {name!r}, which the plan does not hold")


def _read_summary(plan: Plan, spec: BlockSpec, block: Block) -> tuple[BlockReport | None, str]:
    """The report of a kept summary, checked anew; or none, and why."""
    if block.summary is None:
        return None, block.failure or ""
    if block.run is None or read_run(block.run) != (plan.name, spec.stage, spec.check, spec.index):
        return None, f"the summary is of run {block.run!r}, expected {plan.run_name(spec)!r}"[:200]
    report = parse_block_summary(block.summary, block.run)
    return (None, report.reason[:200]) if isinstance(report, Malformed) else (report, block.failure or "")


def _read_application(plan: Plan, report: ApplicationReport) -> Application:
    return Application(
        job=plan.job,
        job_uid=plan.job_uid,
        fingerprint=report.fingerprint,
        at_s=to_epoch_s(report.at_time),
        kind=report.kind,
        experiment=plan.name,
        declared=report.declared,
        knobs=report.knobs,
        failing=report.failing,
    )


def _read_loss(report: LossReport) -> Loss:
    return Loss(
        run=report.run,
        started_at_s=to_epoch_s(report.started_at),
        held_device_s=report.held_device_s,
        why=report.why or "",
    )


def _json_bytes(block: Block) -> int:
    return len(json.dumps(to_wire(block), separators=(",", ":"), ensure_ascii=False).encode())

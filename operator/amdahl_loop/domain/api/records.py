"""How do the ledger's facts become Experiments, and how are they read back?

Lossless in both directions: the plan, its hash, every block, the verdict and the applications come back as they were.
What cannot be read is a value with a reason, never a guess.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from amdahl_loop.domain.api.experiment import (
    EXPERIMENT,
    MAX_APPLICATIONS,
    ApplicationReport,
    Block,
    ExperimentSpec,
    ExperimentStatus,
    PlannedBlock,
    PlannedChange,
    PlannedHypothesis,
)
from amdahl_loop.domain.api.kinds import GROUP, VERSION
from amdahl_loop.domain.api.parts import read_knob, write_knob
from amdahl_loop.domain.api.timestamps import to_epoch_s, to_timestamp
from amdahl_loop.domain.api.wire import from_wire, to_wire
from amdahl_loop.domain.assessment import percent
from amdahl_loop.domain.experiments import BlockRecord, BlockSpec, Change, Experiment, Hypothesis, Plan, Stage, Verdict
from amdahl_loop.domain.ledger import Application
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import BlockReport, Malformed, parse_block_summary
from amdahl_loop.domain.values import Frozen

MAX_EVIDENCE_BYTES = 100_000
"""All summaries of an Experiment together, quotes escaped: with plan, verdict and the rest it stays below 128 KiB."""

_OWN_WORDS = {"name", "hypothesis", "blocks"}
_SHARED = tuple(name for name in Plan.model_fields if name not in _OWN_WORDS)
"""Fields that plan and spec hold alike."""


class StoredExperiment(Frozen):
    """An Experiment as it was read."""

    experiment: Experiment
    closed_at_s: float | None = None
    applications: tuple[Application, ...] = ()
    status: ExperimentStatus = ExperimentStatus()


class Unreadable(Frozen):
    """An Experiment that cannot be used, and why."""

    name: str
    reason: str


def write_plan(plan: Plan) -> dict[str, Any]:
    """The Experiment object that records a plan; namespace and labels are the caller's."""
    shared = {name: getattr(plan, name) for name in _SHARED}
    spec = ExperimentSpec(
        plan_hash=plan.hash,
        hypothesis=PlannedHypothesis(
            changes=tuple(_plan_change(change) for change in plan.hypothesis.changes),
            **plan.hypothesis.model_dump(exclude={"changes"}),
        ),
        blocks=tuple(_plan_block(block) for block in plan.blocks),
        **shared,
    )
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": EXPERIMENT.name,
        "metadata": {"name": plan.name},
        "spec": to_wire(spec),
    }


def read_plan(name: str, spec: ExperimentSpec) -> Plan:
    """The plan that an Experiment of this name records."""
    shared = {field: getattr(spec, field) for field in _SHARED}
    hypothesis = Hypothesis(
        changes=tuple(
            Change(
                knob=change.knob,
                before=None if change.before is None else read_knob(change.before),
                after=read_knob(change.after),
            )
            for change in spec.hypothesis.changes
        ),
        **spec.hypothesis.model_dump(exclude={"changes"}),
    )
    return Plan(name=name, hypothesis=hypothesis, blocks=tuple(_read_block(block) for block in spec.blocks), **shared)


def add_block(status: ExperimentStatus, record: BlockRecord) -> ExperimentStatus:
    """The status with one more finished block; one that it holds already stays as it is.

    Where all summaries together would outgrow the object, this one is left out: missing data never becomes a win.
    """
    if any(block.name == record.spec.name for block in status.blocks):
        return status
    block = write_block(record)
    evidence = sum(_escaped_bytes(kept.summary) for kept in (*status.blocks, block))
    if evidence > MAX_EVIDENCE_BYTES:
        block = block.model_copy(update={"summary": None, "failure": "the Experiment has no room for another summary"})
    return status.model_copy(update={"blocks": (*status.blocks, block)})


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
    spec = next((planned for planned in plan.blocks if planned.name == block.name), None)
    if spec is None:
        raise ValueError(f"status.blocks names {block.name!r}, which the plan does not hold")
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
    saving = percent(verdict.effect) if verdict.effect is not None else None
    return status.model_copy(update={"verdict": verdict, "closed_at": to_timestamp(now_s), "saving": saving})


def add_application(status: ExperimentStatus, application: Application) -> ExperimentStatus:
    """The status with one more application; the same one twice is kept once, and only the newest sixteen stay."""
    written = ApplicationReport(
        at_time=to_timestamp(application.at_s),
        kind=application.kind,
        fingerprint=application.fingerprint,
        declared=application.declared,
        knobs=application.knobs,
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
        blocks = tuple(read_block(plan, block) for block in status.blocks)
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
        experiment=Experiment(plan=plan, blocks=blocks, verdict=status.verdict),
        closed_at_s=closed_at_s,
        applications=applications,
        status=status,
    )


def _plan_change(change: Change) -> PlannedChange:
    before = None if change.before is None else write_knob(change.before)
    return PlannedChange(knob=change.knob, before=before, after=write_knob(change.after))


def _plan_block(block: BlockSpec) -> PlannedBlock:
    labels = block.labels if block.labels != block.order else None
    same = block.model_dump(include={"stage", "order", "seeds", "offsets"})
    return PlannedBlock(name=block.name, labels=labels, **same)


_BLOCK_NAME = re.compile(r"^([a-z])(?:(\d+)-)?(\d+)$")


def _read_block(block: PlannedBlock) -> BlockSpec:
    """The planned block: its check and its index are in its name."""
    found = _BLOCK_NAME.match(block.name)
    if (
        found is None
        or found.group(1) != block.stage.value[0]
        or (found.group(2) is None) == (block.stage is Stage.REFUTE)
    ):
        raise ValueError(f"a {block.stage} block is named {block.name!r}")
    return BlockSpec(
        stage=block.stage,
        check=int(found.group(2) or 0),
        index=int(found.group(3)),
        order=block.order,
        labels=block.labels or block.order,
        seeds=block.seeds,
        offsets=block.offsets,
    )


def _read_summary(plan: Plan, spec: BlockSpec, block: Block) -> tuple[BlockReport | None, str]:
    """The report of a kept summary, checked anew; or none, and why."""
    if block.summary is None:
        return None, block.failure or ""
    planned = plan.run_name(spec)
    if block.run is None or not re.fullmatch(re.escape(planned) + r"(-t\d+)?", block.run):
        return None, f"the summary is of run {block.run!r}, expected {planned!r}"[:200]
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
    )


def _escaped_bytes(summary: str | None) -> int:
    """Bytes of a summary inside a JSON text: quotes and backslashes take two."""
    return 0 if summary is None else len(summary) + summary.count('"') + summary.count("\\")

"""How is an Experiment object made, changed and closed?"""

import json

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.domain.api.conditions import ConditionStatus, ExperimentCondition, ExperimentConditionType, report
from amdahl_loop.domain.api.experiment import MAX_EXPERIMENT_BYTES, Block, ExperimentStatus
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.api.training_job import ObservationReport
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.children import CLOSED_LABEL, FAMILY_LABEL, FINGERPRINT_LABEL, JOB_UID_LABEL
from amdahl_loop.domain.experiments import Plan

PAGE = 50
"""Experiments a page of a list: at most 6 MiB."""
NO_ROOM = "no room for its summary"
BARE_BLOCK_BYTES = 320
"""A block without evidence, and the server's record of who wrote it."""
OTHER_BYTES = 20 * 1024
"""Sixteen applications and thirty-two losses at their longest."""
CLOSED_BYTES = OTHER_BYTES + 10 * 1024
"""The same, and a verdict with all its votes and vetoes at their longest."""

_TYPES = frozenset(ExperimentConditionType)


def render(plan: Plan, namespace: str, observation: ObservationReport | None = None) -> Object:
    """The object that records a plan and the measurement it was made from. No owner: the ledger outlives the jobs."""
    body = write_plan(plan, observation)
    body["metadata"] |= {
        "namespace": namespace,
        "labels": {
            JOB_UID_LABEL: plan.job_uid,
            FINGERPRINT_LABEL: plan.fingerprint,
            FAMILY_LABEL: plan.family,
            CLOSED_LABEL: "false",
        },
    }
    return body


def diff(document: Object, before: ExperimentStatus, after: ExperimentStatus) -> Object:
    """The merge patch that leads from one status to the next, bound to the version that was read.

    Finished blocks are sent back letter for letter as they were read, since the server lets none of them change; so are
    other controllers' conditions.
    """
    present, old, new = document.get("status") or {}, to_wire(before), to_wire(after)
    patch = {name: new.get(name) for name in {**old, **new} if old.get(name) != new.get(name)}
    for name in {"blocks", "holdouts"}.intersection(patch):
        patch[name] = [*(present.get(name) or ()), *new[name][len(old[name]) :]]
    if "conditions" in patch:
        theirs = [c for c in present.get("conditions") or () if c.get("type") not in _TYPES]
        patch["conditions"] = [*(patch["conditions"] or ()), *theirs]
    return {"metadata": {"resourceVersion": document["metadata"]["resourceVersion"]}, "status": patch}


def fit(document: Object, stored: StoredExperiment, status: ExperimentStatus) -> ExperimentStatus:
    """The status, without the newest block's evidence where the object could otherwise outgrow its limit.

    Room is kept for what may still come: every block without evidence, verdict, losses, applications, and the server's
    own records of who wrote what. What a block held is always kept; missing evidence is never a win.
    """
    for name in ("blocks", "holdouts"):
        blocks: tuple[Block, ...] = getattr(status, name)
        if (
            len(blocks) > len(getattr(stored.status, name))
            and _size_later(document, stored, status) > MAX_EXPERIMENT_BYTES
        ):
            bare = blocks[-1].model_copy(update={"summary": None, "node": None, "failure": NO_ROOM})
            return status.model_copy(update={name: (*blocks[:-1], bare)})
    return status


def _size_later(document: Object, stored: StoredExperiment, status: ExperimentStatus) -> int:
    """Bytes that the object may come to have with this status."""
    now = json.dumps({**document, "status": to_wire(status)}, separators=(",", ":"), ensure_ascii=False)
    plan = stored.experiment.plan
    blocks = max(0, len(plan.blocks) - len(status.blocks)) if status.verdict is None else 0
    holdouts = max(0, plan.constants.holdout_blocks - len(status.holdouts))
    return (
        len(now.encode())
        + BARE_BLOCK_BYTES * (blocks + holdouts)
        + (CLOSED_BYTES if status.verdict is None else OTHER_BYTES)
    )


def is_try(experiment: str, block: Block, run: str) -> bool:
    """Whether a run is a try of a block."""
    name = f"{experiment}-{block.name}"
    return run == name or run.startswith(f"{name}-t")


def is_one(experiment: str, block: Block, run: str, started_at: str) -> bool:
    """Whether a run that was charged as stopped is the very one that a block records."""
    return block.started_at == started_at and is_try(experiment, block, run)


def say_closed(status: ExperimentStatus) -> ExperimentStatus:
    """A status with its verdict, told as condition and message too; nothing is set aside any more."""
    assert status.verdict is not None
    assert status.closed_at is not None
    complete = ExperimentCondition(
        type=ExperimentConditionType.COMPLETE,
        status=ConditionStatus.TRUE,
        reason=status.verdict.word.value,
        message=status.verdict.sentence,
        last_transition_time=status.closed_at,
        observed_generation=1,
    )
    return status.model_copy(
        update={
            "conditions": report(status.conditions, complete),
            "message": complete.message,
            "reserved": None,
        }
    )

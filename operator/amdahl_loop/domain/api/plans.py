"""How does a plan become an Experiment's spec, and how is it read back?

Lossless: every field comes back as it was, floats included, so the plan's hash is the same on both sides.
"""

from typing import Any

from amdahl_loop.domain.api.experiment import (
    EXPERIMENT,
    ExperimentSpec,
    PlannedBlock,
    PlannedChange,
    PlannedHypothesis,
)
from amdahl_loop.domain.api.kinds import GROUP, VERSION
from amdahl_loop.domain.api.parts import read_knob, write_knob
from amdahl_loop.domain.api.training_job import ObservationReport
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.blocks import BlockSpec
from amdahl_loop.domain.children import read_run
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis

_OWN_WORDS = {"name", "hypothesis", "blocks"}
_SHARED = tuple(name for name in Plan.model_fields if name not in _OWN_WORDS)
"""Fields that plan and spec hold alike."""


def write_plan(plan: Plan, observation: ObservationReport | None = None) -> dict[str, Any]:
    """The Experiment object that records a plan and what it was made from; namespace and labels are the caller's."""
    shared = {name: getattr(plan, name) for name in _SHARED}
    spec = ExperimentSpec(
        plan_hash=plan.hash,
        hypothesis=PlannedHypothesis(
            changes=tuple(_plan_change(change) for change in plan.hypothesis.changes),
            **plan.hypothesis.model_dump(exclude={"changes"}),
        ),
        observation=observation,
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
    return Plan(name=name, hypothesis=hypothesis, blocks=tuple(_read_planned(block) for block in spec.blocks), **shared)


def _plan_change(change: Change) -> PlannedChange:
    before = None if change.before is None else write_knob(change.before)
    return PlannedChange(knob=change.knob, before=before, after=write_knob(change.after))


def _plan_block(block: BlockSpec) -> PlannedBlock:
    labels = block.labels if block.labels != block.order else None
    same = block.model_dump(include={"stage", "order", "seeds", "offsets"})
    return PlannedBlock(name=block.name, labels=labels, **same)


def _read_planned(block: PlannedBlock) -> BlockSpec:
    """The planned block: its check and its index are in its name."""
    named = read_run(f"any-{block.name}")
    if named is None or named.stage is not block.stage:
        raise ValueError(f"a {block.stage} block is named {block.name!r}")
    return BlockSpec(
        stage=block.stage,
        check=named.check,
        index=named.number,
        order=block.order,
        labels=block.labels or block.order,
        seeds=block.seeds,
        offsets=block.offsets,
    )

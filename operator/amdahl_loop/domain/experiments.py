"""What is one experiment: its plan, the blocks that have finished, and its verdict?

A plan is complete before the first block runs, and nothing in it changes afterwards (design, sections 8 and 9).
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.hypotheses import Hypothesis
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.telemetry import Arm, BlockReport, Seconds
from amdahl_loop.domain.tuning import Objective
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import Verdict, VerdictWord


class Plan(Frozen):
    """The immutable intent of one experiment."""

    name: str
    job: str
    job_uid: str
    fingerprint: str
    family: str
    attempt: int = 0
    hypothesis: Hypothesis
    baseline: Knobs
    variant: Knobs
    objective: Objective
    max_slowdown: float
    constants: Constants
    live: bool
    replicas: int = 1
    skip_discovery: bool = False
    interruption_interval_s: Seconds
    interruptions_seen: int = 0
    exposure_s: Seconds = 0.0
    max_lost_work_s: Seconds
    restart_s: Seconds = 0.0
    device_hours_ahead: Seconds
    baseline_shares_ppk: tuple[int, ...] = ()
    mem_limit_mib: int | None = None
    seed: int
    blocks: tuple[BlockSpec, ...]

    @property
    def hash(self) -> str:
        """Content hash, 16 hex digits: a block is adopted only under the plan that launched it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def run_name(self, spec: BlockSpec, attempt: int = 0) -> str:
        """Deterministic name of a block's run: `worker_run_id`, known before anything is launched."""
        return f"{self.name}-{spec.name}" + (f"-t{attempt}" if attempt else "")

    def stage_blocks(self, stage: Stage, check: int | None = None) -> tuple[BlockSpec, ...]:
        """The planned blocks of a stage (of one check of it), in order."""
        return tuple(spec for spec in self.blocks if spec.stage is stage and (check is None or spec.check == check))


class BlockRecord(Frozen):
    """A finished block: what was planned, where and when it ran, what it reported. Never changed once written."""

    spec: BlockSpec
    node: str = ""
    started_at_s: float
    held_device_s: Seconds
    report: BlockReport | None
    failure: Annotated[str, Field(max_length=200)] = ""


MAX_WHY = 200


class Loss(Frozen):
    """A run that was stopped before its end: what it had held is charged, though it brought no evidence."""

    run: str
    """Name of the run."""
    started_at_s: float
    """When it began, in seconds since the epoch; where it found no place, when it was given up."""
    held_device_s: Seconds
    """Device-seconds that it had held; 0 where it had not begun."""
    why: Annotated[str, Field(max_length=MAX_WHY)] = ""
    """Why it found no place to run; empty where it was stopped for another reason."""


class Question(NamedTuple):
    """What verdicts are keyed by."""

    fingerprint: str
    change: str
    """Key of the hypothesis."""


class Abstract(NamedTuple):
    """What a memory of thousands of experiments asks of each of them, side by side: read with one look."""

    job_uid: str
    question: Question
    is_open: bool
    is_won: bool
    held_device_s: float


class Experiment(Frozen):
    """A plan, the blocks that have finished, what was stopped in between, and the verdict once there is one."""

    plan: Plan
    blocks: tuple[BlockRecord, ...] = ()
    losses: tuple[Loss, ...] = ()
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.plan.name

    @cached_property
    def question(self) -> Question:
        """What it asks, of which work: a verdict is never paid for twice."""
        return Question(self.plan.fingerprint, self.plan.hypothesis.key)

    @cached_property
    def is_won(self) -> bool:
        """Whether it ended with a win."""
        return self.verdict is not None and self.verdict.word is VerdictWord.WON

    @cached_property
    def held_device_s(self) -> float:
        """Device-seconds that the experiment has held: what the budget and the bank are charged."""
        recorded_s = sum(block.held_device_s for block in self.blocks)
        return recorded_s + sum(loss.held_device_s for loss in self.losses)

    @cached_property
    def abstract(self) -> Abstract:
        """What is asked of it again after every record."""
        return Abstract(self.plan.job_uid, self.question, self.verdict is None, self.is_won, self.held_device_s)

    def stage_records(self, stage: Stage, check: int | None = None) -> tuple[BlockRecord, ...]:
        """Finished blocks of a stage (of one check of it), in plan order."""
        found = [r for r in self.blocks if r.spec.stage is stage and (check is None or r.spec.check == check)]
        return tuple(sorted(found, key=lambda record: (record.spec.check, record.spec.index)))

    def with_block(self, record: BlockRecord) -> "Experiment":
        """The experiment with one more finished block."""
        return self.model_copy(update={"blocks": (*self.blocks, record)})

    def with_loss(self, loss: Loss) -> "Experiment":
        """The experiment with one more run that was stopped."""
        return self.model_copy(update={"losses": (*self.losses, loss)})

    def with_verdict(self, verdict: Verdict) -> "Experiment":
        """The experiment, closed."""
        return self.model_copy(update={"verdict": verdict})


def find_owner(run: str, experiments: Iterable[Experiment]) -> Experiment | None:
    """The experiment that must pay for a stopped run; None for observations, and for blocks that are recorded."""
    owners = [e for e in experiments if run.startswith(f"{e.name}-")]
    owner = max(owners, key=lambda experiment: len(experiment.name), default=None)
    if owner is None or any(owner.plan.run_name(record.spec) == run for record in owner.blocks):
        return None
    return owner


def name_experiment(job: str, job_uid: str, fingerprint: str, hypothesis: Hypothesis, attempt: int) -> str:
    """Deterministic name, at most 52 characters so that block suffixes fit into 63."""
    digest = hash_text(job_uid, fingerprint, hypothesis.key, str(attempt))[:10]
    return f"{job[:41].rstrip('-')}-{digest}"


def arm_knobs(plan: Plan, arm: Arm) -> Knobs:
    """The knob values that an arm runs with."""
    return plan.baseline if arm is Arm.BASELINE else plan.variant

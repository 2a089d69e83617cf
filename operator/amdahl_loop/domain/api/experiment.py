"""What does an Experiment in a cluster hold?

The spec is the plan, written before the first block runs and never changed. The status collects what was measured, and
ends with the verdict. Experiments outlive their jobs: together they are the ledger. At most 128 KiB each.
"""

from typing import Annotated

from pydantic import ConfigDict, Field

from amdahl_loop.domain.api.conditions import OTHERS, ExperimentCondition, ExperimentConditionType, only_of
from amdahl_loop.domain.api.kinds import AGE, Column, Kind, short_name
from amdahl_loop.domain.api.parts import Fingerprint, KnobText, ObjectName, Phrase, Reported, Sentence, Summary
from amdahl_loop.domain.api.timestamps import Timestamp
from amdahl_loop.domain.api.training_job import ObservationReport
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import MAX_WHY
from amdahl_loop.domain.hypotheses import Source
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import ApplicationKind
from amdahl_loop.domain.rules import ATOMIC, WHOLE, Rule, guarded_by, keyed_by, ruled
from amdahl_loop.domain.telemetry import Phase, Seconds
from amdahl_loop.domain.tuning import Objective
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import Verdict

MAX_EXPERIMENT_BYTES = 128 * 1024
MAX_BLOCKS = 64
"""More than any profile plans: `thorough` plans 55."""

MAX_HOLDOUTS = 64
MAX_LOSSES = 32
MAX_APPLICATIONS = 16
MAX_NAME = 52
"""Names of blocks are the experiment's with up to 11 characters more."""

Draw = Annotated[int, Field(ge=0, le=2**31 - 1)]
Order = Annotated[str, Field(pattern=r"^[AB]{2,4}$", max_length=4)]
BlockName = Annotated[str, Field(pattern=r"^([pdsnh]|r[0-9]{1,3}-)[0-9]{1,3}$", max_length=8)]
Changes = Field(min_length=1, max_length=4)


class PlannedChange(Frozen):
    """One knob from a value to another."""

    knob: KnobName
    """The knob."""
    before: KnobText | None = None
    """Its value in the baseline; absent where the job leaves the choice to its program."""
    after: KnobText
    """Its value in the variant."""


class PlannedHypothesis(Frozen):
    """What is believed to help."""

    changes: Annotated[tuple[PlannedChange, ...], Changes, ATOMIC]
    """What the variant changes; the first one names the hypothesis."""
    phase: Phase
    """Phase that the change is meant to shorten."""
    expected_gain: Annotated[float, Field(ge=0, lt=1)]
    """Share of the cost that the change is expected to save."""
    source: Source
    """Who proposed it: a rule, a win that was proven before, or Claude."""
    rationale: Annotated[str, Field(max_length=500)]
    """Why, in the proposer's words."""


class PlannedBlock(Frozen):
    """One block: windows of both arms, their order, and what is the same for both."""

    name: BlockName
    """Name within the experiment: the stage's letter, the check of a refute block, and a number."""
    stage: Stage
    """What the block is for."""
    order: Order
    """Which arm each window runs: A is the baseline, B the variant. Thrown before anything ran."""
    labels: Order | None = None
    """Which arm each window counts for, where it differs: in null blocks both arms run the baseline."""
    seeds: Annotated[tuple[Draw, ...], Field(max_length=4), ATOMIC]
    """Seed of each window."""
    offsets: Annotated[tuple[Draw, ...], Field(max_length=4), ATOMIC]
    """Position in the data at which each window starts."""


class ExperimentSpec(Frozen):
    """The plan of one experiment."""

    model_config = ConfigDict(
        json_schema_extra=guarded_by(
            Rule(
                holds="self == oldSelf",
                says="spec is the plan, recorded before its first block; it never changes, delete the object instead",
            )
        )
    )

    plan_hash: Fingerprint
    """Content hash of the plan, name included: a block is adopted only under the plan that launched it."""
    job: ObjectName
    """Name of the TrainingJob that the experiment is for."""
    job_uid: Annotated[str, Field(min_length=1, max_length=64)]
    """UID of that TrainingJob: another job of the same name is another job."""
    fingerprint: Fingerprint
    """Identity of the work: image, command, environment but for the knobs, device type, number of replicas."""
    family: Fingerprint
    """Looser kin, for which a win is worth trying: image repository and command."""
    attempt: Annotated[int, Field(ge=0, le=1000)] = 0
    """How often this question was asked before, of this work."""
    hypothesis: PlannedHypothesis
    """What is believed to help, and why."""
    baseline: Knobs
    """Knobs of arm A."""
    variant: Knobs
    """Knobs of arm B: the baseline with the hypothesis's changes."""
    objective: Objective
    """What a win saves: device-seconds per sample, or seconds per sample."""
    max_slowdown: float
    """Factor in wall time per sample that the variant may cost."""
    constants: Constants
    """Everything that the judge may use, by the judge's own names."""
    live: bool
    """Whether the arms are switched inside one running program, instead of relaunched."""
    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    """Pods of each block."""
    skip_discovery: bool = False
    """Whether the win was proven elsewhere: it goes straight to the refute checks."""
    interruption_interval_s: Annotated[Seconds, Field(alias="interruptionIntervalSeconds")]
    """Prior mean seconds between interruptions."""
    interruptions_seen: Annotated[int, Field(ge=0)] = 0
    """Interruptions that were observed when the plan was written."""
    exposure_s: Annotated[Seconds, Field(alias="exposureSeconds")] = 0.0
    """Seconds over which they were observed."""
    max_lost_work_s: Annotated[Seconds, Field(alias="maxLostWorkSeconds")]
    """Seconds of work that one interruption may cost."""
    restart_s: Annotated[Seconds, Field(alias="restartSeconds")] = 0.0
    """Seconds that a restart of the job takes."""
    device_hours_ahead: Seconds
    """Device-hours of work ahead when the plan was written."""
    baseline_shares_ppk: Annotated[tuple[int, ...], Field(max_length=9, alias="baselineSharesPerMille"), ATOMIC] = ()
    """Shares of the job's phases in parts per thousand, which the trial has to resemble: queue, startup, warmup, input,
    compute, comm, checkpoint, eval, other."""
    mem_limit_mib: Annotated[int | None, Field(ge=0, alias="memoryLimitMiB")] = None
    """Memory limit of the trainer container in MiB, where there is one."""
    seed: Annotated[int, Field(ge=0, le=2**53)]
    """Seed that every order, seed and offset of the blocks was drawn from."""
    observation: ObservationReport | None = None
    """Measurement of the job that the plan was made from: with it the plan can be derived anew when the job is gone."""
    blocks: Annotated[tuple[PlannedBlock, ...], Field(min_length=1, max_length=MAX_BLOCKS), keyed_by("name")]
    """Every block that may be needed, spares included."""


class Block(Reported):
    """A finished block: where and when it ran, and what it reported."""

    name: BlockName
    """Name of the planned block."""
    run: ObjectName | None = None
    """Name of the run that reported, where one did."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Node that it ran on."""
    started_at: Timestamp
    """When it started."""
    held_device_s: Annotated[Seconds, Field(alias="heldDeviceSeconds")]
    """Device-seconds that it held: what budget and bank are charged."""
    failure: Annotated[str, Field(max_length=200)] | None = None
    """Why there is no summary, or what went wrong beside it."""
    summary: Summary | None = None
    """What it measured, as reported; absent where nothing believable was reported."""


class LossReport(Reported):
    """A run that was stopped before its end."""

    run: ObjectName
    """Name of the run."""
    started_at: Timestamp
    """When it began."""
    held_device_s: Annotated[Seconds, Field(alias="heldDeviceSeconds")]
    """Device-seconds that it had held: charged, though it brought no evidence."""
    why: Annotated[str, Field(max_length=MAX_WHY)] | None = None
    """Why it found no place to run; absent where it was stopped for another reason."""


class Reservation(Reported):
    """Device-time set aside before a block is created, so that no crash overspends the budget."""

    run: ObjectName
    """Name of the run that it is set aside for."""
    device_s: Annotated[Seconds, Field(alias="deviceSeconds")]
    """Device-seconds that the run may hold at most."""


class ApplicationReport(Reported):
    """Knob values that took effect, and why."""

    at_time: Timestamp
    """When."""
    kind: ApplicationKind
    """applied: the win was put in force. rolledBack: it faded, or the job no longer ran. reverted: its owner took it
    back."""
    fingerprint: Fingerprint
    """Identity of the work at that time."""
    declared: Knobs
    """What the job's spec said at that time."""
    knobs: Knobs
    """Values in force from then on."""
    failing: Phrase = ""
    """What was reported of the job itself, where that is why the values were taken back."""


Finished = Annotated[
    Block, WHOLE, ruled(Rule(holds="self == oldSelf", says="a finished block never changes; leave it as it is"))
]


def _never_removed(blocks: str) -> Rule:
    """Entries of a list of blocks are only ever added."""
    return Rule(
        holds=f"!has(oldSelf.{blocks}) || (has(self.{blocks}) && "
        f"oldSelf.{blocks}.all(before, self.{blocks}.exists(now, now.name == before.name)))",
        says=f"a finished block is never removed; keep every entry of status.{blocks}",
        at=f".{blocks}",
    )


class ExperimentStatus(Reported):
    """What was measured and decided."""

    model_config = ConfigDict(
        json_schema_extra=guarded_by(
            Rule(holds="has(self.verdict) == has(self.closedAt)", says="verdict and closedAt come together; set both"),
            Rule(
                holds="!has(oldSelf.verdict) || has(self.verdict)",
                says="the verdict is final; leave it as it is",
                at=".verdict",
            ),
            _never_removed("blocks"),
            _never_removed("holdouts"),
        )
    )

    conditions: Annotated[
        tuple[ExperimentCondition, ...],
        Field(max_length=len(ExperimentConditionType) + OTHERS),
        only_of(ExperimentConditionType),
        keyed_by("type"),
    ] = ()
    """What holds at present, one entry a type. Complete is true once there is a verdict."""
    message: Sentence = ""
    """What happens next, or why nothing does."""
    blocks: Annotated[tuple[Finished, ...], Field(max_length=MAX_BLOCKS), keyed_by("name")] = ()
    """Finished blocks of the plan, oldest first; only ever added to."""
    holdouts: Annotated[tuple[Finished, ...], Field(max_length=MAX_HOLDOUTS), keyed_by("name")] = ()
    """Blocks that tested the win on after it was applied, oldest first; only ever added to."""
    losses: Annotated[tuple[LossReport, ...], Field(max_length=MAX_LOSSES), ATOMIC] = ()
    """Runs that were stopped before their end, oldest first; where there are too many, the oldest are added up."""
    reserved: Annotated[Reservation | None, WHOLE] = None
    """Device-time that is set aside for the block in flight."""
    verdict: Annotated[
        Verdict | None,
        WHOLE,
        ruled(Rule(holds="self == oldSelf", says="the verdict is final; leave it as it is")),
    ] = None
    """How the experiment ended; absent while it is open."""
    saving: Annotated[str, Field(max_length=16)] | None = None
    """What the variant saves of the cost per sample, for people; the verdict holds the exact figures."""
    closed_at: Timestamp | None = None
    """When the experiment ended."""
    applications: Annotated[tuple[ApplicationReport, ...], Field(max_length=MAX_APPLICATIONS), ATOMIC] = ()
    """When its values were applied, rolled back or reverted, oldest first; the newest sixteen."""


EXPERIMENT = Kind(
    name="Experiment",
    plural="experiments",
    short="alexp",
    text="One hypothesis about a TrainingJob, carried through paired blocks and refute checks to a verdict. Written by "
    "the operator alone; kept when the job is gone.",
    spec=ExperimentSpec,
    spec_text="The plan: complete before the first block runs, and never changed.",
    status=ExperimentStatus,
    status_text="What was measured and decided.",
    selectable=(".spec.job", ".spec.jobUid", ".spec.fingerprint", ".spec.family", ".status.verdict.word"),
    rules=(
        short_name(MAX_NAME, "names of its blocks are longer"),
        Rule(
            holds="!has(oldSelf.status) || has(self.status)",
            says="status holds what was measured and is never removed; leave it as it is",
            at=".status",
        ),
    ),
    columns=(
        Column(name="Job", path=".spec.job", text="The job that the experiment is for."),
        Column(name="Knob", path=".spec.hypothesis.changes[0].knob", text="The knob that is tried."),
        Column(name="From", path=".spec.hypothesis.changes[0].before", text="Its value in the baseline."),
        Column(name="To", path=".spec.hypothesis.changes[0].after", text="Its value in the variant."),
        Column(name="Verdict", path=".status.verdict.word", text="How the experiment ended; empty while it is open."),
        Column(name="Saving", path=".status.saving", text="What the variant saves of the cost per sample."),
        Column(name="Closed", path=".status.closedAt", type="date", text="Time since the experiment ended."),
        AGE,
        Column(name="Profile", path=".spec.constants.profile", text="How much evidence is bought.", wide=True),
        Column(name="Message", path=".status.message", text="What happens next, or why nothing.", wide=True),
        Column(name="Sentence", path=".status.verdict.sentence", text="Why it ended so.", wide=True),
    ),
)

"""What does a TrainingJob in a cluster report?

The spec is the declared job's (`domain/resources.py`), alike with and without a cluster. The status is written once a
tick by the operator, is at most 32 KiB, and holds, beside the latest measurement and the times without savings, nothing
that spec and Experiments do not.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, ValidationError

from amdahl_loop.domain.api.conditions import OTHERS, JobCondition, JobConditionType, only_of
from amdahl_loop.domain.api.kinds import AGE, Column, Kind, short_name
from amdahl_loop.domain.api.parts import Fingerprint, KnobText, ObjectName, Phrase, Reported, Sentence, Summary
from amdahl_loop.domain.api.timestamps import Timestamp, to_epoch_s, to_timestamp
from amdahl_loop.domain.api.wire import from_wire
from amdahl_loop.domain.diagnosis import Bottleneck
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob, TrainingJobSpec
from amdahl_loop.domain.rules import ATOMIC, WHOLE, keyed_by
from amdahl_loop.domain.standing_still import MAX_STANDSTILLS
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import Malformed, Seconds, parse_block_summary
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import VerdictWord

MAX_STATUS_BYTES = 32 * 1024
MAX_LAST_VERDICTS = 10

Share = Annotated[int, Field(ge=0, le=1000)]
DeviceHours = Annotated[float, Field(allow_inf_nan=False)]


class PhaseShares(Reported):
    """Share of each phase in the steady time of the slowest rank, in parts per thousand; they sum to 1000."""

    queue: Share = 0
    """Waiting for a place to run."""
    startup: Share = 0
    """From the start of the process to its first batch."""
    warmup: Share = 0
    """Compiling and the excess of the first steps."""
    input: Share = 0
    """Waiting for data."""
    compute: Share = 0
    """Computing: the only phase that produces anything."""
    comm: Share = 0
    """Waiting for other ranks."""
    checkpoint: Share = 0
    """Blocked by saving."""
    eval: Share = 0
    """Evaluating."""
    other: Share = 0
    """Everything else."""


class DiagnosisReport(Reported):
    """What holds the job back."""

    bottleneck: Annotated[Bottleneck, Field(alias="class")]
    """What holds the job back, in one word."""
    sentence: Sentence
    """The same in one sentence, with the numbers."""


class KnobSource(StrEnum):
    """Where an effective value comes from."""

    SPEC = "Spec"
    OVERLAY = "Overlay"


class EffectiveKnob(Reported):
    """A knob with the value that the job runs with."""

    name: KnobName
    """The knob."""
    value: KnobText
    """The value in force."""
    source: KnobSource
    """Spec: the value stands in spec.knobs. Overlay: it was proven, and the spec was left alone."""
    experiment: ObjectName | None = None
    """Experiment that proved the value; absent where its owner chose it."""


class BankReport(Reported):
    """What tuning has saved this job, and what it has cost, in device-hours."""

    gross_device_hours: DeviceHours
    """Saved so far by proven values, credited from refute checks alone, less what was clawed back."""
    spent_device_hours: DeviceHours
    """Held by every experiment so far, lost ones included."""
    net_device_hours: DeviceHours
    """Gross less spent: negative until the first win has run long enough."""


class StandstillReport(Reported):
    """A time in which the job did not run with its proven values, so that they saved nothing."""

    since: Timestamp
    """When it was seen to begin."""
    until: Timestamp | None = None
    """When it was seen to end; absent while it lasts."""


class ObservationReport(Reported):
    """The latest measurement of the job itself."""

    run: Annotated[str, Field(max_length=63)]
    """Name of the run that was measured."""
    at_time: Timestamp
    """When the measurement ended."""
    fingerprint: Fingerprint
    """Identity of the work that was measured."""
    knobs: Knobs
    """Values of the knobs while it was measured."""
    held_device_seconds: Seconds
    """Device-seconds that measuring held beyond what the job itself uses."""
    summary: Summary
    """Summary of the measurement as it was reported."""


class VerdictReport(Reported):
    """How one experiment of this job ended."""

    experiment: ObjectName
    """Name of the Experiment."""
    word: VerdictWord
    """How it ended."""
    change: Phrase
    """What was tried."""
    sentence: Sentence
    """Why, with the numbers."""
    closed_at: Timestamp
    """When it ended."""


class TrainingJobStatus(Reported):
    """What the operator has found out about a job."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the spec that this status describes."""
    conditions: Annotated[
        tuple[JobCondition, ...],
        Field(max_length=len(JobConditionType) + OTHERS),
        only_of(JobConditionType),
        keyed_by("type"),
    ] = ()
    """What holds at present, one entry a type. Ready, Reconciling and Stalled follow kstatus."""
    message: Sentence = ""
    """What the operator does next, or why it does nothing."""
    phase_shares: Annotated[PhaseShares | None, WHOLE] = None
    """Where the job's time goes, in parts per thousand of the slowest rank's steady time."""
    diagnosis: Annotated[DiagnosisReport | None, WHOLE] = None
    """What holds the job back."""
    wasted_device_hours_per_hour: DeviceHours | None = None
    """Devices that are held and do not compute; the fleet is ranked by it."""
    effective_knobs: Annotated[tuple[EffectiveKnob, ...], Field(max_length=len(KnobName)), keyed_by("name")] = ()
    """Every declared knob with the value that the job runs with."""
    bank: Annotated[BankReport | None, WHOLE] = None
    """What tuning has saved this job, and what it has cost."""
    standstills: Annotated[tuple[StandstillReport, ...], Field(max_length=MAX_STANDSTILLS), ATOMIC] = ()
    """Times in which the job did not run with its proven values, oldest first; the bank counts none of them."""
    observation: Annotated[ObservationReport | None, WHOLE] = None
    """The latest measurement of the job itself."""
    active_experiment: ObjectName | None = None
    """The Experiment that is open for this job."""
    last_verdicts: Annotated[tuple[VerdictReport, ...], Field(max_length=MAX_LAST_VERDICTS), ATOMIC] = ()
    """How the latest experiments ended, newest first."""


class StoredJob(Frozen):
    """A TrainingJob as it was read: what is declared, and what was reported last."""

    job: TrainingJob
    status: TrainingJobStatus


def read_training_job(document: Mapping[str, Any]) -> StoredJob:
    """The job that an object holds; ManifestError lists every field of its spec that is wrong.

    A status that this version cannot read counts as none: it is written anew with every pass.
    """
    try:
        status = from_wire(TrainingJobStatus, document.get("status") or {})
    except ValidationError:
        status = TrainingJobStatus()
    return StoredJob(job=parse_training_job(dict(document)), status=status)


def report_observation(observation: Observation) -> ObservationReport | None:
    """An observation as a status keeps it; None where its report is too long to keep."""
    summary = render_block_summary(observation.report)
    if summary is None:
        return None
    return ObservationReport(
        run=observation.run,
        at_time=to_timestamp(observation.at_s),
        fingerprint=observation.fingerprint,
        knobs=observation.knobs,
        held_device_seconds=observation.held_device_s,
        summary=summary,
    )


def read_observation(reported: ObservationReport, job: TrainingJob) -> Observation | Malformed:
    """The observation that a status keeps, of the job as it is declared now; or why it cannot be believed."""
    report = parse_block_summary(reported.summary, reported.run)
    if isinstance(report, Malformed):
        return report
    return Observation(
        run=reported.run,
        at_s=to_epoch_s(reported.at_time),
        fingerprint=reported.fingerprint,
        job=job.without_environment(),
        knobs=reported.knobs,
        report=report,
        held_device_s=reported.held_device_seconds,
    )


def _condition(type_name: JobConditionType, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{type_name}")].{field}'


TRAINING_JOB = Kind(
    name="TrainingJob",
    plural="trainingjobs",
    short="aljob",
    text="A training job that tunes itself: its time is accounted to phases, promising knobs are tried beside it, and "
    "only a win that survives attempts to refute it is put in force.",
    spec=TrainingJobSpec,
    spec_text="What to train, what may be changed, and under which rules.",
    status=TrainingJobStatus,
    status_text="What the operator has found out; written by the operator alone.",
    has_defaults=True,
    rules=(short_name(63, "host names and labels hold no more"),),
    columns=(
        Column(name="Ready", path=_condition(JobConditionType.READY), text="Whether the job is as it should be."),
        Column(name="Mode", path=".spec.tuning.mode", text="How far the loop may go."),
        Column(name="Bottleneck", path=".status.diagnosis.class", text="What holds the job back."),
        Column(name="Wasted", path=".status.wastedDeviceHoursPerHour", text="Devices held that do not compute."),
        Column(name="Tuned", path=_condition(JobConditionType.TUNED), text="Whether a proven value is in force."),
        Column(name="Experiment", path=".status.activeExperiment", text="The experiment that is open."),
        Column(name="Verdict", path=".status.lastVerdicts[0].word", text="How the latest experiment ended."),
        Column(name="Net", path=".status.bank.netDeviceHours", text="Device-hours saved, less every cost."),
        AGE,
        Column(name="Suspended", path=".spec.suspend", type="boolean", text="Whether it is stopped.", wide=True),
        Column(name="Spent", path=".status.bank.spentDeviceHours", text="Device-hours of experiments.", wide=True),
        Column(
            name="Reason", path=_condition(JobConditionType.READY, "reason"), text="Why it is ready or not.", wide=True
        ),
        Column(name="Message", path=".status.message", text="What happens next, or why nothing.", wide=True),
    ),
)

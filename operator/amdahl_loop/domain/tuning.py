"""What may the loop do for a job, and at what price?

The whole of `spec.tuning`: mode, objective, budget, bounds, trials and the moment at which proven values take effect.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from amdahl_loop.domain.knob_values import BoundsByKnob, KnobName
from amdahl_loop.domain.rules import SET, Rule, ruled
from amdahl_loop.domain.units import parse_duration_s
from amdahl_loop.domain.values import DecimalText, Duration, Frozen


class Budget(Frozen):
    """What experiments may cost; without a figure, a twentieth of the device-hours ahead."""

    device_hours: DecimalText | None = None
    """Device-hours that all experiments of this job may hold together; absent means a twentieth of the work ahead."""
    parallel_trials: Annotated[int, Field(ge=1, le=64)] = 1
    """How many trials of this job may run at the same time. One at a time runs, so a larger number changes nothing."""


class CheckpointPolicy(Frozen):
    """How much work the owner can bear to lose, and the prior interval between interruptions."""

    max_lost_work: Duration = "30m"
    """The most work that one interruption may cost: no cadence is tried that saves less often."""
    mean_time_between_interruptions: Duration = "24h"
    """How often the job is expected to be interrupted; what is observed later corrects it."""

    @property
    def max_lost_work_s(self) -> float:
        """Seconds of work that may be lost to one interruption."""
        return parse_duration_s(self.max_lost_work)

    @property
    def interruption_interval_s(self) -> float:
        """Prior mean seconds between interruptions of this job."""
        return parse_duration_s(self.mean_time_between_interruptions)


class Placement(StrEnum):
    """Where trials run: beside the job on spare devices, or in turn with it."""

    SPARE = "Spare"
    IN_TURN = "InTurn"


class Trial(Frozen):
    """How trials run."""

    placement: Placement = Placement.SPARE
    """Spare: beside the job, on free devices. InTurn: the job stops after a durable checkpoint, the trial runs on its
    node, the job resumes; the time lost is charged to the experiment."""
    isolated: bool = False
    """The owner's word that a copy of this job can write to nothing outside its pod, so that its secrets do no harm;
    without it no trial is started for a template with secrets or a workload identity."""
    scratch_paths: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], Field(max_length=16), SET
    ] = ()
    """Folders that the program writes to: a trial gets them empty, on storage of its own."""
    scratch_storage_class: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Storage class of the scratch folders; name the one that the job's own checkpoints use. How often to save is
    judged on storage of that class, never on emptyDir."""
    python: Annotated[str, Field(min_length=1, max_length=256)] = "python3"
    """Interpreter in the image that runs the supervisor of a trial."""


class ApplyWhen(StrEnum):
    """When a proven value takes effect on the running job."""

    LIVE = "Live"
    AFTER_CHECKPOINT = "AfterCheckpoint"
    NEXT_RESTART = "NextRestart"


class Apply(Frozen):
    """When proven values take effect."""

    when: ApplyWhen = ApplyWhen.LIVE
    """Live: at once where the program can switch, else after a checkpoint. AfterCheckpoint: by a restart from the next
    durable checkpoint. NextRestart: whenever the job is restarted for another reason."""


class Mode(StrEnum):
    """How far the loop may go."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"
    SPEC = "Spec"
    OVERLAY = "Overlay"


APPLYING = (Mode.AUTO, Mode.SPEC, Mode.OVERLAY)
"""Modes in which the loop changes values, and takes them back; in the others nothing of the loop's runs."""


class Objective(StrEnum):
    """What cost means: device-seconds per sample, or seconds per sample."""

    DEVICE_HOURS = "DeviceHours"
    WALL_TIME = "WallTime"


class ProfileName(StrEnum):
    """How much evidence is bought: window lengths, looks, refute checks, floor."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


def check_slowdown(text: str) -> str:
    """The text itself where the factor is at least 1; ValueError names it."""
    if float(text) < 1:
        raise ValueError(f"{text!r} is below 1, a demand to be faster; write the factor that may be lost, such as 1.05")
    return text


class Tuning(Frozen):
    """What the loop may do for this job, and at what price."""

    mode: Mode = Mode.AUTO
    """How far the loop may go. Observe: measure only. Recommend: run trials, change nothing. Spec: patch spec.knobs or
    do nothing. Overlay: never touch the spec, run the pods with the proven values. Auto: Spec, and Overlay where
    another tool manages the spec."""
    objective: Objective = Objective.DEVICE_HOURS
    """What a win saves: device-seconds per sample (DeviceHours) or seconds per sample (WallTime)."""
    max_slowdown: Annotated[
        DecimalText,
        AfterValidator(check_slowdown),
        ruled(
            Rule(
                holds="!self.matches('^[0-9]+([.][0-9]+)?$') || double(self) >= 1.0",
                says="must be at least 1: the factor in wall time that may be lost, such as '1.05'",
                shows="maxSlowdown '%s' is below 1; write the factor that may be lost, such as '1.05'",
                values=("self",),
            )
        ),
    ] = "1.05"
    """The price in wall time per sample that DeviceHours may pay, as a factor of the baseline's; otherwise a single
    device would always win."""
    knobs: BoundsByKnob = BoundsByKnob()
    """Limits that every value tried or applied stays within; absent means the catalogue's own."""
    budget: Budget = Budget()
    """What the experiments of this job may cost."""
    expected_device_hours: DecimalText | None = None
    """Device-hours of work ahead, which a win is weighed against; absent means 200, shown as an assumption."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """How much work may be lost, and how often the job is expected to be interrupted."""
    profile: ProfileName = ProfileName.STANDARD
    """How much evidence is bought: window lengths, number of blocks and refute checks, smallest win that counts."""
    pin: Annotated[tuple[KnobName, ...], Field(max_length=16), SET] = ()
    """Knobs that the loop never touches."""
    trial: Trial = Trial()
    """How trials run."""
    apply: Apply = Apply()
    """When proven values take effect."""

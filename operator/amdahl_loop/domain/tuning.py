"""What may the loop do for a job, and at what price?

The whole of `spec.tuning`: mode, objective, budget, bounds, trials and the moment at which proven values take effect.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from amdahl_loop.domain.knob_values import BoundsByKnob, KnobName
from amdahl_loop.domain.units import parse_duration_s
from amdahl_loop.domain.values import DecimalText, Frozen, check_duration


class Budget(Frozen):
    """What experiments may cost in all; without a figure, a twentieth of the device-hours ahead."""

    device_hours: DecimalText | None = None
    parallel_trials: Annotated[int, Field(ge=1, le=64)] = 1


class CheckpointPolicy(Frozen):
    """How much work the owner can bear to lose, and the prior interval between interruptions."""

    max_lost_work: Annotated[str, Field(max_length=20)] = "30m"
    mean_time_between_interruptions: Annotated[str, Field(max_length=20)] = "24h"

    _durations = field_validator("max_lost_work", "mean_time_between_interruptions")(check_duration)

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
    isolated: bool = False
    scratch_paths: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    python: Annotated[str, Field(max_length=256)] = "python3"


class ApplyWhen(StrEnum):
    """When a proven value takes effect on the running job."""

    LIVE = "Live"
    AFTER_CHECKPOINT = "AfterCheckpoint"
    NEXT_RESTART = "NextRestart"


class Apply(Frozen):
    """When proven values take effect."""

    when: ApplyWhen = ApplyWhen.LIVE


class Mode(StrEnum):
    """How far the loop may go."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"
    SPEC = "Spec"
    OVERLAY = "Overlay"


class Objective(StrEnum):
    """What cost means: device-seconds per sample, or seconds per sample."""

    DEVICE_HOURS = "DeviceHours"
    WALL_TIME = "WallTime"


class ProfileName(StrEnum):
    """How much evidence is bought: window lengths, looks, refute checks, floor."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


class Tuning(Frozen):
    """What the loop may do for this job, and at what price."""

    mode: Mode = Mode.AUTO
    objective: Objective = Objective.DEVICE_HOURS
    max_slowdown: DecimalText = "1.05"
    knobs: BoundsByKnob = BoundsByKnob()
    budget: Budget = Budget()
    expected_device_hours: DecimalText | None = None
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    profile: ProfileName = ProfileName.STANDARD
    pin: Annotated[tuple[KnobName, ...], Field(max_length=16)] = ()
    trial: Trial = Trial()
    apply: Apply = Apply()

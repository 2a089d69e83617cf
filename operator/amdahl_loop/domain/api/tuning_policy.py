"""How is a policy written as an object? Its meaning is `domain/policy.py`'s."""

from amdahl_loop.domain.api.kinds import AGE, Column, Kind, short_name
from amdahl_loop.domain.policy import TuningPolicySpec

TUNING_POLICY = Kind(
    name="TuningPolicy",
    plural="tuningpolicies",
    short="alpol",
    text="What an administrator allows tuning to do in this namespace. It holds for every TrainingJob here, and always "
    "wins over what the job says; of several policies the strictest word counts.",
    spec=TuningPolicySpec,
    spec_text="What tuning may do in this namespace.",
    has_defaults=True,
    rules=(short_name(63, "labels hold no more"),),
    columns=(
        Column(name="Paused", path=".spec.paused", type="boolean", text="Whether every experiment is stopped."),
        Column(name="Modes", path=".spec.modes", text="Modes that are allowed; empty allows all."),
        Column(name="Hours", path=".spec.budget.deviceHours", text="Device-hours that a job's experiments may hold."),
        Column(
            name="Parallel",
            path=".spec.budget.parallelTrials",
            type="integer",
            text="Trials that may run at once in the namespace.",
        ),
        AGE,
    ),
)

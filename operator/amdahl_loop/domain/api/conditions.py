"""Which conditions does a kind report, and when does one change?

Kubernetes' own shape, one entry a type, and kstatus' words: `Reconciling` and `Stalled` are true when something is
going on or wrong. There is no phase: a condition that does not apply is absent. Types are open, as the API conventions
ask: other controllers may report theirs beside ours.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from amdahl_loop.domain.api.parts import Reported, Sentence
from amdahl_loop.domain.api.timestamps import Timestamp


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


OTHERS = 4
"""So many conditions of other controllers have room beside ours."""

OPEN_TYPE = WithJsonSchema(
    {
        "type": "string",
        "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "maxLength": 128,
    }
)
"""What the server takes as a type: CamelCase, with a domain before it where it is not the kind's own."""


def only_of(types: type[StrEnum]) -> BeforeValidator:
    """Conditions of other types are somebody else's, and passed over."""
    known = frozenset(types)

    def pick(conditions: Any) -> Any:
        if not isinstance(conditions, list | tuple):
            return conditions
        return [c for c in conditions if not isinstance(c, dict) or c.get("type") in known]

    return BeforeValidator(pick)


class Condition(Reported):
    """One condition: its type, whether it holds, since when and why."""

    type: Annotated[StrEnum, OPEN_TYPE]
    """What is reported on."""
    status: ConditionStatus
    """Whether it holds: True, False, or Unknown."""
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=64)]
    """Why, in one CamelCase word, for machines."""
    message: Sentence = ""
    """Why, in one sentence, with the numbers and the way out."""
    last_transition_time: Timestamp
    """When the status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the spec that this was found for."""


class JobConditionType(StrEnum):
    """What a TrainingJob reports on."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    OBSERVED = "Observed"
    EXPERIMENTING = "Experimenting"
    TUNED = "Tuned"
    TRIALS_BLOCKED = "TrialsBlocked"
    APPLY_CONFLICT = "ApplyConflict"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    COMPLETE = "Complete"
    FAILED = "Failed"


class JobCondition(Condition):
    """A condition of a TrainingJob."""

    type: Annotated[JobConditionType, OPEN_TYPE]
    """What is reported on: Ready, Reconciling, Stalled, Suspended, Observed, Experimenting, Tuned, TrialsBlocked,
    ApplyConflict, BudgetExhausted, Complete or Failed, or what another controller reports."""


class ExperimentConditionType(StrEnum):
    """What an Experiment reports on."""

    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"


class ExperimentCondition(Condition):
    """A condition of an Experiment."""

    type: Annotated[ExperimentConditionType, OPEN_TYPE]
    """What is reported on: Reconciling, Stalled or Complete, or what another controller reports."""


AnyCondition = TypeVar("AnyCondition", bound=Condition)


def report(conditions: Sequence[AnyCondition], condition: AnyCondition) -> tuple[AnyCondition, ...]:
    """The conditions with this one in place of its type's last; its time moves only when its status does.

    The order is the vocabulary's, so that the same conditions are always the same list.
    """
    before = next((found for found in conditions if found.type is condition.type), None)
    if before is not None and before.status is condition.status:
        condition = condition.model_copy(update={"last_transition_time": before.last_transition_time})
    order = list(type(condition.type))
    return tuple(sorted((*withdraw(conditions, condition.type), condition), key=lambda found: order.index(found.type)))


def withdraw(conditions: Sequence[AnyCondition], type_name: StrEnum) -> tuple[AnyCondition, ...]:
    """The conditions without one that does not apply any more."""
    return tuple(condition for condition in conditions if condition.type is not type_name)

"""What does an experiment test: which knobs change from what to what, why, and by whose idea?"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.values import Frozen


class Source(StrEnum):
    """Who proposed a hypothesis."""

    RULE = "rule"
    PRIOR = "prior"
    CLAUDE = "claude"


class Change(Frozen):
    """One knob from a value to another; `before` is None where the job left the choice to its script."""

    knob: KnobName
    before: KnobValue | None
    after: KnobValue

    def __str__(self) -> str:
        """Text for sentences: `dataloaderWorkers 0 -> 2`."""
        return f"{self.knob} {self.before} -> {self.after}"


class Hypothesis(Frozen):
    """Change these knobs, because of this phase, and expect this relative saving of cost."""

    changes: Annotated[tuple[Change, ...], Field(min_length=1, max_length=4)]
    phase: Phase
    expected_gain: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    source: Source
    rationale: Annotated[str, Field(max_length=500)]

    @property
    def knob(self) -> KnobName:
        """The knob that names the hypothesis: the first one changed."""
        return self.changes[0].knob

    @cached_property
    def key(self) -> str:
        """The verdict key's part that is the hypothesis's own: every change, in order."""
        return ";".join(f"{change.knob}:{change.before}>{change.after}" for change in self.changes)

    def values(self) -> dict[KnobName, KnobValue]:
        """The variant's values of the changed knobs."""
        return {change.knob: change.after for change in self.changes}


def by_rule(changes: Sequence[Change], phase: Phase, gain: float, why: str) -> list[Hypothesis]:
    """A rule's hypothesis as a list of one; empty where nothing is expected to be won."""
    if gain <= 0:
        return []
    return [
        Hypothesis(
            changes=tuple(changes),
            phase=phase,
            expected_gain=min(gain, 0.99),
            source=Source.RULE,
            rationale=why[:500],
        )
    ]


Judged = Literal["windows", "cadence"]


def judged_by(hypothesis: Hypothesis) -> Judged:
    """Cadence knobs are judged by expected cost per useful sample, never by raw speed."""
    cadence = {KnobName.CHECKPOINT_EVERY_STEPS, KnobName.ASYNC_CHECKPOINT}
    return "cadence" if any(change.knob in cadence for change in hypothesis.changes) else "windows"

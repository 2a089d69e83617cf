"""Do the probe and the profiler agree? Shares of the same stretch, their difference, and what sampling leaves open.

The bar, for every phase above 5 % of the time by either of them: the probe's seconds differ from the profiler's by at
most 5 % of the profiler's, plus two standard errors of the profiler's count.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from stacks import Sampled

from amdahl_probe import records
from amdahl_probe.spans import PHASES

BAR = 0.05
JUDGED_SHARE = 0.05
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Told:
    """What the probe says of the steps after the first, in nanoseconds; losses and step count of all."""

    steps: int
    phases_ns: dict[str, int]
    losses: tuple[float | None, ...]

    @property
    def wall_ns(self) -> int:
        """The stretch from the end of the first step to the end of the last."""
        return sum(self.phases_ns.values())


@dataclass(frozen=True)
class Phase:
    """One line: shares of the stretch, and the standard error of the profiler's."""

    name: str
    probe: float
    profiler: float
    error: float

    @property
    def relative(self) -> float:
        """The difference over what the profiler says."""
        return (self.probe - self.profiler) / self.profiler if self.profiler else math.inf

    @property
    def is_judged(self) -> bool:
        """Whether the phase is large enough for the bar."""
        return max(self.probe, self.profiler) > JUDGED_SHARE

    @property
    def is_outright(self) -> bool:
        """Whether the two agree without any allowance for sampling."""
        return abs(self.probe - self.profiler) <= BAR * self.profiler

    @property
    def is_within(self) -> bool:
        """Whether the two agree."""
        return abs(self.probe - self.profiler) <= BAR * self.profiler + STANDARD_ERRORS * self.error


def read_told(path: Path) -> Told:
    """Sum the records of one rank. Raises ValueError when a line is none, or the probe switched itself off."""
    steps = []
    for line in path.read_bytes().splitlines():
        record = records.parse(line)
        if isinstance(record, (records.Refused, records.Disabled)):
            raise ValueError(f"{path}: {record}")  # noqa: TRY004 (text of a wrong value)
        if isinstance(record, records.Step):
            steps.append(record)
    if len(steps) < 2:
        raise ValueError(f"{path}: {len(steps)} steps, expected more")
    sums = (sum(step.phases_ns[at] for step in steps[1:]) for at in range(len(PHASES)))
    return Told(len(steps), dict(zip(PHASES, sums, strict=True)), tuple(step.loss for step in steps))


def compare(told: Told, sampled: Sampled) -> list[Phase]:
    """A line for each phase that either of them saw. The probe's own time is `other`: it is nobody's phase."""
    counts = dict(sampled.counts)
    counts["other"] = counts.get("other", 0) + counts.pop("probe", 0)
    lines = []
    for name in PHASES:
        share, ours = counts.get(name, 0) / sampled.total, told.phases_ns[name] / told.wall_ns
        if share or ours:
            lines.append(Phase(name, ours, share, math.sqrt(share * (1 - share) / sampled.total)))
    return lines

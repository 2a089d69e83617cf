"""What does a person see? The table at the start, a line now and then, and at the end where the time went. Plain text.

Everything here is made of values that are handed in; nothing is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

from amdahl_probe.spans import PHASES
from amdahl_trainer.flops import PerToken
from amdahl_trainer.goodput import CAUSES, USEFUL, Account
from amdahl_trainer.mesh import Degrees

#: Characters of the longest bar of the waterfall.
BAR = 40

#: A rank is called slow on a console line where the others waited this share of the time for it.
SLOW = 0.02

#: A run is called launch-bound where the device went at Python's pace for this share of the time.
PACED = 0.1

MIB = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What is known of a run before its first step."""

    device: str
    degrees: Degrees
    parameters: int
    rank_parameters: int
    expected_bytes: int
    step_rows: int
    step_slots: int
    micro_batches: int
    cost: PerToken
    peak_flops: float | None
    resumed_step: int
    last_step: int


def introduce(facts: Facts) -> str:
    """The table at the start, of rank 0."""
    degrees, cost = facts.degrees, facts.cost
    peak = "unknown, so no MFU; metrics.peak_tflops states one"
    if facts.peak_flops is not None:
        peak = f"{facts.peak_flops / 1e12:,.4g} TFLOP/s"
    flops = f"{cost.palm / 1e9:,.4g} G (palm), {cost.causal / 1e9:,.4g} G (causal), {cost.packed / 1e9:,.4g} G (packed)"
    rows = {
        "ranks": f"{degrees.world} = {degrees}, on {facts.device}",
        "parameters": f"{facts.parameters:,} in all, {facts.rank_parameters:,} on this rank",
        "memory": f"{facts.expected_bytes / MIB:,.0f} MiB of tensors expected on this rank",
        "step": f"{facts.step_slots:,} tokens: {facts.step_rows:,} rows over dp, {facts.micro_batches} passes a rank",
        "FLOPs a token": flops,
        "peak": peak,
        "steps": f"{facts.resumed_step:,} of {facts.last_step:,} done",
    }
    return "\n".join(f"  {name:<14} {text}" for name, text in rows.items())


class Straggler(NamedTuple):
    """The rank that the others waited for, and for how long: its busy time beyond the median rank's.

    `most_ns` and `least_ns` are the busy times of the slowest and of the fastest rank.
    """

    rank: int
    excess_ns: int
    most_ns: int
    least_ns: int


def find_straggler(busy_ns: Sequence[int]) -> Straggler:
    """The slowest of all ranks, by the time that each spent on anything but waiting for others."""
    ordered = sorted(busy_ns)
    most_ns, median_ns = ordered[-1], ordered[(len(ordered) - 1) // 2]  # of two in the middle the lower one
    return Straggler(busy_ns.index(most_ns), most_ns - median_ns, most_ns, ordered[0])


class Interval:
    """Averages between two console lines."""

    def __init__(self) -> None:
        self._spent = dict.fromkeys(PHASES, 0)
        self._busy_ns: list[int] = []
        self._launch_ns = 0
        self._steps = 0
        self._tokens = 0

    def add(self, phases: Mapping[str, int], tokens: int, launch_ns: int = 0) -> None:
        """A step of this rank, and how much of it was launch-bound; tokens are those of all ranks."""
        for phase, ns in phases.items():
            self._spent[phase] += ns
        self._launch_ns += launch_ns
        self._steps += 1
        self._tokens += tokens

    def add_busy(self, busy_ns: Sequence[int]) -> None:
        """What each rank was busy for since they last told."""
        self._busy_ns = [*map(add, self._busy_ns, busy_ns)] if self._busy_ns else [*busy_ns]

    @property
    def wall_ns(self) -> int:
        """Of all steps together."""
        return max(1, sum(self._spent.values()))

    @property
    def step_s(self) -> float:
        """Mean wall time of a step, seconds."""
        return self.wall_ns / max(1, self._steps) / 1e9

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks."""
        return self._tokens / self.wall_ns * 1e9

    def describe(self) -> str:
        """Speed, the phases that matter, and who is slow."""
        speed = f"{self.step_s * 1e3:7.1f} ms  {self.tokens_per_s / 1e3:6.1f}k tok/s"
        shares = "  ".join(
            f"{p} {ns / self.wall_ns:.0%}" for p, ns in self._spent.items() if ns >= 0.005 * self.wall_ns
        )
        paced = self._launch_ns / self.wall_ns
        launch = f"launch-bound {paced:.0%}" if paced >= PACED else ""
        return "  ".join(part for part in (speed, shares, launch, self._describe_straggler()) if part)

    def _describe_straggler(self) -> str:
        if len(self._busy_ns) < 2:
            return ""
        slow = find_straggler(self._busy_ns)
        if slow.excess_ns < SLOW * self.wall_ns:
            return ""
        return f"rank {slow.rank} slowest, by {slow.excess_ns / max(1, self._steps) / 1e6:.1f} ms a step"


def summarise(account: Account, facts: Facts, peak_bytes: int, *, is_resident: bool) -> str:
    """Where the time of a run went, over all its attempts, as a waterfall; and its memory."""
    held_ns = max(1, account.held_ns)
    spent = {USEFUL: account.useful_ns, **{cause: account.badput_ns.get(cause, 0) for cause in CAUSES}}
    lines, before_ns = [], 0
    for name, ns in spent.items():
        if ns:
            offset = round(BAR * before_ns / held_ns)
            bar = " " * offset + "#" * max(1, round(BAR * (before_ns + ns) / held_ns) - offset)
            lines.append(f"  {name:<10} {ns / 1e9:12.3f} s {ns / held_ns:7.1%}  {bar}")
            before_ns += ns
    kind, expected = "resident" if is_resident else "allocated", f"{facts.expected_bytes / MIB:,.0f} MiB expected"
    least = account.share - account.launch_share
    paced = f", {least:.1%} at least: launch-bound" if account.launch_ns else ""
    attempts = f" in {account.attempts} attempts" if account.attempts > 1 else ""
    return "\n".join(
        (
            f"where the time went{attempts}, device-seconds, {facts.degrees.world} rank(s) now",
            *lines,
            f"  {'held':<10} {account.held_ns / 1e9:12.3f} s   goodput {account.share:.1%}{paced}",
            f"  peak memory of rank 0 {peak_bytes / MIB:,.0f} MiB {kind}, {expected} in tensors",
        )
    )

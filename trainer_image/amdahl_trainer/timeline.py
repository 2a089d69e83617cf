"""Where did the device's time go between its own marks? A lap of its stream as work, waits and idle, to the nanosecond.

The host marks what it is about to issue, and the device says when it came to each mark. The intervals between marks
tile the device's time, from the end of one step to the end of the next. Where nothing was issued between two marks the
device idled, and what the host did meanwhile is the cause.

Between kernels no mark can look. Whether a device idles there for Python follows from two clocks: it does so at most
where it is never behind the host, which is possible only from a moment on at which it had nothing left to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

#: What nothing is issued in: between steps (but for evaluations), until the batch is in hand, until all ranks agree.
BETWEEN, INPUT, AGREE = "between", "input", "agree"

#: Phases of the host before a step that say what the device idled for.
BEFORE = ("eval", "checkpoint", "input")

#: What a step issues. A stage of a pipeline counts all that is no forward pass as backward.
ISSUED = ("h2d", "forward", "backward", "optimizer")

#: What a device spends its time on.
WORK = (*ISSUED[:3], "comm", ISSUED[3], "eval")

#: Marks with nothing between them are passed within a few microseconds of each other. Less than this is no idling.
GRAIN_NS = 20_000

#: A device that is behind the host by less than this part of what it just did has hardly any work in store.
NEAR = 0.1


class Mark(NamedTuple):
    """What begins with it, when the device came to it since the lap began, and when the host issued it."""

    phase: str
    device_ns: int
    host_ns: int


class Lap(NamedTuple):
    """A device's account of a step; `work_ns` and `idle_ns` sum to the time from the first mark to the last.

    Attributes:
        work_ns: by `WORK`, gaps between kernels included.
        idle_ns: by what the host did: `input`, `comm` (agreeing with the other ranks), `checkpoint`, `other`.
        launch_bound_ns: of the work that a step issues, what was done at Python's pace: at most so much of it idled.
        wall_ns: from the first mark to the last, by itself.
    """

    work_ns: Mapping[str, int]
    idle_ns: Mapping[str, int]
    launch_bound_ns: int
    wall_ns: int

    def bound_of(self, phases: Mapping[str, int]) -> int:
        """How much of the `compute` of a host's account was launch-bound: what compiled meanwhile is `warmup`."""
        return min(self.launch_bound_ns, phases.get("compute", 0))


def account(marks: Sequence[Mark], comm_ns: Mapping[str, int], before_ns: Mapping[str, int], wall_ns: int) -> Lap:
    """The account of a lap.

    Args:
        marks: in order; with the last one the lap ends.
        comm_ns: what the stream stood still for other ranks, by the phase that it was in.
        before_ns: what the host did since the step before, by `BEFORE`; what is missing is none.
        wall_ns: see `Lap`.
    """
    spent, passed = Counter[str](), Counter[str]()
    for mark, after in pairwise(marks):
        spent[mark.phase] += after.device_ns - mark.device_ns
        passed[mark.phase] += after.host_ns - mark.host_ns
    for phase, ns in comm_ns.items():
        waited_ns = min(ns, spent[phase])
        spent[phase] -= waited_ns
        spent["comm"] += waited_ns
    spent["eval"] = min(spent[BETWEEN], before_ns.get("eval", 0))
    saved_ns = min(spent[BETWEEN] - spent["eval"], before_ns.get("checkpoint", 0))
    late_ns = min(spent[INPUT], max(0, passed[INPUT] - before_ns.get("input", 0)))  # the batch was in hand by then
    other_ns = spent[BETWEEN] - spent["eval"] - saved_ns + late_ns
    return Lap(
        {phase: spent[phase] for phase in WORK},
        {"input": spent[INPUT] - late_ns, "comm": spent[AGREE], "checkpoint": saved_ns, "other": other_ns},
        min(sum(_find_paced(marks)), sum(spent[phase] for phase in ISSUED)),
        wall_ns,
    )


def _find_paced(marks: Sequence[Mark]) -> Iterable[int]:
    """Intervals of a step's work at whose end the device was not behind the host.

    The clocks are set by the mark before the step's first operation, if the device had nothing to do then. Did it still
    work off the step before, it is not launch-bound: the host is ahead of it by more than it does between steps.
    """
    asked = next(at for at, mark in enumerate(marks) if mark.phase == INPUT)
    first = next(at for at, mark in enumerate(marks) if at > asked and mark.phase not in (INPUT, AGREE))
    if marks[first].device_ns - marks[asked].device_ns < GRAIN_NS:
        return
    ahead_ns = marks[first].device_ns - marks[first].host_ns
    for mark, after in pairwise(marks[first:]):
        took_ns, behind_ns = after.device_ns - mark.device_ns, after.device_ns - after.host_ns - ahead_ns
        if mark.phase in ISSUED and behind_ns <= max(GRAIN_NS, NEAR * took_ns):
            yield took_ns

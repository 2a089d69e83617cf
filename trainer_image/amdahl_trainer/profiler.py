"""What happens inside one step? Now and then torch's profiler records a whole one, as a Chrome trace.

Recording makes a step slower, and writing the trace the lap after it: both carry the tag `profile`, so that whoever
judges steps may leave them out. From the kernels of a GPU follows what the cheap clocks only estimate: communication is
exposed where no kernel computes at the same time. (The definition is that of Holistic Trace Analysis.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amdahl_trainer.config import Config
from amdahl_trainer.peers import Place

#: What time on the device is measured in here: begin and end, nanoseconds.
Interval = tuple[int, int]


@dataclass(frozen=True)
class Profile:
    """What a recorded step showed. Times are None without a GPU."""

    step: int
    path: str
    compute_ns: int | None = None
    comm_ns: int | None = None
    exposed_comm_ns: int | None = None


class Profiler:
    """Records every n-th step, on the one rank that has a directory to write to."""

    def __init__(self, every: int, directory: Path | None, device: torch.device) -> None:
        """`every` 0 records never."""
        self._every = every
        self._directory = directory
        self._device = device

    def is_due(self, step: int) -> bool:
        """Whether the step of this number is one that some rank records."""
        return self._every > 0 and step % self._every == 0

    @contextmanager
    def record(self, step: int) -> Iterator[list[Profile]]:
        """Record the body. Afterwards the list holds what came of it, unless another rank writes."""
        found: list[Profile] = []
        if self._directory is None:
            yield found
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # One cycle: accumulating keeps nothing more, and torch 2.11 warns about a profile that does not.
        with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
            yield found
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"step-{step:08d}.json"
        recorded.export_chrome_trace(str(path))
        found.append(analyse(step, str(path), list(list_kernels(recorded.events()))))


def of_rank(config: Config, place: Place, device: torch.device) -> Profiler:
    """The first rank writes into the run's folder; the others only know which steps it records."""
    directory = Path(config.run.out_dir, "profiles") if place.rank == 0 else None
    return Profiler(config.metrics.profile_every_steps, directory, device)


def list_kernels(events: Iterable[Any]) -> Iterator[tuple[str, Interval]]:
    """Name and interval of everything that ran on the GPU; torch gives microseconds.

    Left out are ranges that the host named (`DistributedDataParallel.forward`, `Optimizer.step#AdamW.step`), which
    Kineto draws on the GPU's time line as well: from their first kernel to their last, with every gap between.
    """
    for event in events:
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            yield event.name, (int(event.time_range.start * 1000), int(event.time_range.end * 1000))


def analyse(step: int, path: str, kernels: list[tuple[str, Interval]]) -> Profile:
    """Sort kernels into those that communicate and those that compute, and measure where only the former ran."""
    if not kernels:
        return Profile(step, path)
    comm = union(interval for name, interval in kernels if name.startswith("nccl"))
    compute = union(interval for name, interval in kernels if not name.startswith("nccl"))
    both = length(union([*comm, *compute]))
    return Profile(step, path, length(compute), length(comm), both - length(compute))


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that do not meet, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def length(intervals: Iterable[Interval]) -> int:
    """How long intervals that do not meet are together."""
    return sum(end - begin for begin, end in intervals)

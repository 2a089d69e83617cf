"""What computes, and what does its own clock say? The reading of each step's scalars and device times.

On a GPU the host runs ahead of the device. Loss, gradient norm and the events between phases are therefore read when
the device has passed them, one or more steps late, and nothing here ever waits in the training loop. On a CPU host and
device are one, and a reading is there at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What became known of one step. Times are None where the host's ledger already says it all."""

    loss: float
    grad_norm: float
    refused: bool
    comm_tail_ns: int
    input_idle_ns: int | None


class Clock(Protocol):
    """Marks a step's edges and hands its reading back when it is known, steps in order."""

    def ask(self) -> None:
        """A batch is about to be asked for."""

    def begin(self) -> None:
        """The batch is in hand; the next kernel belongs to the step."""

    def gradient(self) -> None:
        """A local gradient is complete; the last such mark of a step counts."""

    def backward_done(self) -> None:
        """The backward pass and all reductions of gradients are issued."""

    def finish(self, scalars: Tensor) -> None:
        """The step's last operation is issued. `scalars` holds loss, gradient norm and refusal."""

    def ready(self, wait: bool = False) -> Iterator[Reading]:
        """Readings that are known by now; with `wait`, all of them."""


class HostClock:
    """A CPU: everything is finished when the call returns."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._last_gradient_ns = 0
        self._tail_ns = 0
        self._readings: deque[Reading] = deque()

    def ask(self) -> None:
        """The host's ledger says it all."""

    def begin(self) -> None:
        """Forget the last step's gradients."""
        self._last_gradient_ns = 0

    def gradient(self) -> None:
        """Stamp."""
        self._last_gradient_ns = self._now_ns()

    def backward_done(self) -> None:
        """What passed since the last local gradient was spent waiting for other ranks' gradients."""
        self._tail_ns = self._now_ns() - self._last_gradient_ns if self._last_gradient_ns else 0

    def finish(self, scalars: Tensor) -> None:
        """Read."""
        loss, norm, refused = scalars.tolist()
        self._readings.append(Reading(loss, norm, bool(refused), self._tail_ns, None))

    def ready(self, wait: bool = False) -> Iterator[Reading]:  # noqa: ARG002 (the protocol's; nothing to wait for)
        """The step just finished."""
        while self._readings:
            yield self._readings.popleft()


@dataclass
class _Marks:
    """The events of one step on the compute stream, and its scalars on their way to the host."""

    asked: torch.cuda.Event
    begin: torch.cuda.Event
    gradient: torch.cuda.Event
    backward_done: torch.cuda.Event
    end: torch.cuda.Event
    scalars: Tensor
    has_gradient: bool = False


class CudaClock:
    """A GPU: events on the compute stream, read once the device has passed them."""

    def __init__(self) -> None:
        self._open: _Marks | None = None
        self._closed: deque[_Marks] = deque()
        self._spare: list[_Marks] = []

    def ask(self) -> None:
        """An event behind all work issued so far: the device passes it when it runs out of work."""
        self._open = self._spare.pop() if self._spare else _new_marks()
        self._open.has_gradient = False
        self._open.asked.record()

    def begin(self) -> None:
        """An event before the step's first copy or kernel: an idle device passes it at once."""
        assert self._open is not None, "ask() comes first"
        self._open.begin.record()

    def gradient(self) -> None:
        """Recorded again for each gradient; the last stands."""
        assert self._open is not None, "ask() comes first"
        self._open.gradient.record()
        self._open.has_gradient = True

    def backward_done(self) -> None:
        """After DDP made the compute stream wait for its reductions."""
        assert self._open is not None, "ask() comes first"
        self._open.backward_done.record()

    def finish(self, scalars: Tensor) -> None:
        """Start copying the scalars, and mark the end behind the copy."""
        assert self._open is not None, "ask() comes first"
        self._open.scalars.copy_(scalars, non_blocking=True)
        self._open.end.record()
        self._closed.append(self._open)
        self._open = None

    def ready(self, wait: bool = False) -> Iterator[Reading]:
        """Readings of the steps that the device has finished."""
        while self._closed and (wait or _is_past(self._closed[0].end)):
            marks = self._closed.popleft()
            if wait:
                marks.end.synchronize()
            yield self._read(marks)

    def _read(self, marks: _Marks) -> Reading:
        loss, norm, refused = marks.scalars.tolist()
        tail_ns = _between_ns(marks.gradient, marks.backward_done) if marks.has_gradient else 0
        idle_ns = _between_ns(marks.asked, marks.begin)
        self._spare.append(marks)
        return Reading(loss, norm, bool(refused), tail_ns, idle_ns)


def _new_marks() -> _Marks:
    return _Marks(_event(), _event(), _event(), _event(), _event(), torch.empty(3, pin_memory=True))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch


def _is_past(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]  # untyped in torch


def _between_ns(earlier: torch.cuda.Event, later: torch.cuda.Event) -> int:
    return max(0, int(earlier.elapsed_time(later) * 1e6))


def attribute(phases: dict[str, int], reading: Reading) -> dict[str, int]:
    """Correct the host's account of a step by what its reading says; the sum stays exactly the same.

    The tail of the backward pass, in which only reductions run, is `comm`. A wait for input during which the device
    still had work cost nothing: only the part that it idled too stays `input`, the rest is `compute`.
    """
    corrected = dict(phases)
    tail_ns = min(reading.comm_tail_ns, corrected.get("compute", 0))
    if tail_ns:
        _move(corrected, "compute", "comm", tail_ns)
    if reading.input_idle_ns is not None:
        hidden_ns = max(0, corrected.get("input", 0) - reading.input_idle_ns)
        if hidden_ns:
            _move(corrected, "input", "compute", hidden_ns)
    return corrected


def _move(phases: dict[str, int], source: str, target: str, ns: int) -> None:
    phases[source] -= ns
    phases[target] = phases.get(target, 0) + ns


def choose(local_rank: int) -> torch.device:
    """The rank's own GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def name(device: torch.device) -> str:
    """`cpu` or `cuda:<name of the GPU>`, as the records say it."""
    return "cpu" if device.type == "cpu" else f"cuda:{torch.cuda.get_device_name(device)}"


def clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return HostClock() if device.type == "cpu" else CudaClock()

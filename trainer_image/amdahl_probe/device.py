"""Values that live on a CUDA device, read late: never a `synchronize`, never a wait.

A host wait wastes the device only while the device has run out of queued work. One event recorded when the wait
begins completes when that work is done, one recorded when it ends completes at once on an idle device: the time
between the two, on the device's own clock, is the part of the wait that the device idled too.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Tuple

#: (from, to, ns): time to be charged to another phase.
Move = Tuple[str, str, int]


class Wait(NamedTuple):
    """A stretch of the host's time charged to `phase`; the device says how much of it is really that phase."""

    phase: str
    host_ns: int
    begin: Any
    end: Any


class Tail(NamedTuple):
    """A stretch of the device's time, between two events, that was `phase` and not computing."""

    phase: str
    begin: Any
    end: Any


class Late:
    """What one step still has to learn from the device."""

    def __init__(self) -> None:
        self.waits: List[Wait] = []
        self.tails: List[Tail] = []
        self.losses: List[Any] = []
        self._events: List[Any] = []

    def add_loss(self, torch: Any, loss: Any) -> None:
        """Take a scalar loss: copied now, in the stream's order, and read when it has arrived."""
        if torch.cuda.is_current_stream_capturing():  # a copy would become part of the graph
            return
        host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        host.copy_(loss, non_blocking=True)
        self.losses.append(host)
        self._events.append(record_event(torch))

    def has_arrived(self) -> bool:
        """Whether everything can be read without waiting."""
        waits = [edge for wait in self.waits for edge in (wait.begin, wait.end)]
        tails = [edge for tail in self.tails for edge in (tail.begin, tail.end)]
        events = self._events + waits + tails
        return all(event.query() for event in events)

    def read_loss(self, before: Optional[float]) -> Optional[float]:
        """The sum of these losses and of those known `before`."""
        return sum(map(float, self.losses), before or 0.0) if self.losses else before

    def read_moves(self) -> List[Move]:
        """Waits during which the device was still computing, and tails during which it was not."""
        waits = [(wait.phase, "compute", wait.host_ns - _between_ns(wait.begin, wait.end)) for wait in self.waits]
        tails = [("compute", tail.phase, _between_ns(tail.begin, tail.end)) for tail in self.tails]
        return [move for move in waits + tails if move[2] > 0]


def _between_ns(begin: Any, end: Any) -> int:
    return int(begin.elapsed_time(end) * 1e6)


def record_event(torch: Any) -> Any:
    """A timing event on the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def is_used(torch: Any) -> bool:
    """Whether the script has put a CUDA device to work, and no graph is being captured (events would enter it)."""
    return bool(torch.cuda.is_initialized()) and not torch.cuda.is_current_stream_capturing()

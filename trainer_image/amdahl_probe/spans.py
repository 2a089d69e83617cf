"""Where did this thread's wall time go? A stack of exclusive spans whose sums are exact by construction.

Entering or leaving a span adds the nanoseconds since the last such moment to the span that was on top. Time is
therefore counted once, nested spans subtract from their parents by themselves, and the phases of a lap add up to its
wall time without any rounding.

Threads: a ledger belongs to one thread, the training thread. Calls from other threads do nothing, since a job is held
while its training thread waits, however busy its helpers are. `adopt` moves the ledger to the calling thread.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import Callable, Deque, Dict, Iterator, List, Optional, Tuple

PHASES = ("queue", "startup", "warmup", "input", "compute", "comm", "checkpoint", "eval", "other")

#: One closed span: phase, begin and end in nanoseconds of the ledger's clock.
Span = Tuple[str, int, int]

#: What `push` returns on a thread that does not own the ledger; `pop` ignores it.
NOT_MINE = -1


class Ledger:
    """Exclusive phase times of one thread.

    The bottom of the stack is never popped: it names what the thread does when no span is open, and `rest` changes it
    (`startup` until the first batch, `compute` from batch to optimizer step, `other` in between).
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.monotonic_ns,
        bottom: str = "startup",
        begin_ns: Optional[int] = None,
        trace: Optional[Deque[Span]] = None,
    ) -> None:
        """Start counting now, or at `begin_ns` of the same clock. Closed spans are appended to `trace` if given."""
        self._clock = clock
        self._owner = threading.get_ident()
        self._trace = trace
        #: Time of the last `take` (or the beginning), nanoseconds: where the present lap starts.
        self.mark_ns = clock() if begin_ns is None else begin_ns
        self._last_ns = self.mark_ns
        self._stack: List[str] = [bottom]
        self._begun: List[int] = [self.mark_ns]
        self._spent: Dict[str, int] = {}

    def push(self, phase: str) -> int:
        """Open a span and return its depth, to be handed to `pop`."""
        if threading.get_ident() != self._owner:
            return NOT_MINE
        now = self._count()
        self._stack.append(phase)
        self._begun.append(now)
        return len(self._stack) - 1

    def pop(self, depth: Optional[int] = None) -> None:
        """Close the span at `depth` and all that were left open above it; by default the one on top.

        The depth makes a span that an exception or an abandoned generator never closed harmless.
        """
        if depth == NOT_MINE or threading.get_ident() != self._owner:
            return
        keep = len(self._stack) - 1 if depth is None else depth
        if not 0 < keep < len(self._stack):
            return
        now = self._count()
        if self._trace is not None:
            self._trace.extend(
                (self._stack[at], self._begun[at], now) for at in range(len(self._stack) - 1, keep - 1, -1)
            )
        del self._stack[keep:], self._begun[keep:]

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """Count the body as `phase`, whatever it raises."""
        depth = self.push(phase)
        try:
            yield
        finally:
            self.pop(depth)

    def rest(self, phase: str) -> None:
        """Change the bottom of the stack: what time counts as when no span is open."""
        if threading.get_ident() != self._owner or self._stack[0] == phase:
            return
        now = self._count()
        if self._trace is not None:
            self._trace.append((self._stack[0], self._begun[0], now))
        self._stack[0], self._begun[0] = phase, now

    def take(self) -> Dict[str, int]:
        """End the lap: phase -> nanoseconds since the last `take`, summing exactly to the wall time between the two.

        Open spans stay open and go on in the next lap. The lap's end is `mark_ns` afterwards.
        """
        now = self._count()
        spent, self._spent = self._spent, {}
        self.mark_ns = now
        return {phase: spent[phase] for phase in PHASES if phase in spent} if spent else {self._stack[-1]: 0}

    def spent(self, phase: str) -> int:
        """Nanoseconds of `phase` in this lap until now."""
        self._count()
        return self._spent.get(phase, 0)

    def adopt(self) -> None:
        """Make the calling thread the one that counts."""
        self._owner = threading.get_ident()

    def is_mine(self) -> bool:
        """Whether the calling thread is the one that counts."""
        return threading.get_ident() == self._owner

    @property
    def bottom(self) -> str:
        """What time counts as when no span is open."""
        return self._stack[0]

    @property
    def depth(self) -> int:
        """Open spans above the bottom."""
        return len(self._stack) - 1

    def _count(self) -> int:
        now = self._clock()
        top = self._stack[-1]
        self._spent[top] = self._spent.get(top, 0) + now - self._last_ns
        self._last_ns = now
        return now

"""Where did this thread's wall time go? A stack of exclusive spans whose sums are exact by construction.

Entering or leaving a span adds the nanoseconds since the last such moment to the span that was on top. Time is
therefore counted once, nested spans subtract from their parents by themselves, and the phases of a lap add up to its
wall time without any rounding.

Threads: a ledger belongs to one thread, the training thread. Calls from other threads do nothing, since a job is held
while its training thread waits, however busy its helpers are. `adopt` moves the ledger to the calling thread.
"""

from __future__ import annotations

import time
from threading import get_ident
from typing import Callable, Deque, Dict, List, Optional, Tuple

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
        #: The thread that counts.
        self.owner = get_ident()
        self._trace = trace
        #: Time of the last `take` (or the beginning), nanoseconds: where the present lap starts.
        self.mark_ns = clock() if begin_ns is None else begin_ns
        self._last_ns = self.mark_ns
        #: What time counts as when no span is open; changed by `rest` alone.
        self.bottom = bottom
        self._stack: List[str] = [bottom]
        self._begun: List[int] = [self.mark_ns]
        self._spent: Dict[str, int] = {}

    def push(self, phase: str) -> int:
        """Open a span and return its depth, to be handed to `pop`."""
        if get_ident() != self.owner:
            return NOT_MINE
        stack, spent, now = self._stack, self._spent, self._clock()
        top = stack[-1]
        spent[top] = spent.get(top, 0) + now - self._last_ns
        self._last_ns = now
        stack.append(phase)
        if self._trace is not None:
            self._begun.append(now)
        return len(stack) - 1

    def pop(self, depth: Optional[int] = None, bottom: Optional[str] = None) -> None:
        """Close the span at `depth` and all that were left open above it; by default the one on top.

        The depth makes a span that an exception or an abandoned generator never closed harmless. `bottom`, if given, is
        what to `rest` at from the same moment on.
        """
        if depth == NOT_MINE or get_ident() != self.owner:
            return
        stack, spent, now = self._stack, self._spent, self._clock()
        top = stack[-1]
        spent[top] = spent.get(top, 0) + now - self._last_ns
        self._last_ns = now
        keep = len(stack) - 1 if depth is None else depth
        if 0 < keep < len(stack):
            if self._trace is not None:
                self._trace.extend((stack[at], self._begun[at], now) for at in range(len(stack) - 1, keep - 1, -1))
                del self._begun[keep:]
            del stack[keep:]
        if bottom is not None and bottom != stack[0]:
            self._settle(bottom, now)

    def span(self, phase: str) -> Opened:
        """Count the body as `phase`, whatever it raises: `with ledger.span("comm"):`."""
        return Opened(self, phase)

    def rest(self, phase: str) -> None:
        """Change the bottom of the stack: what time counts as when no span is open."""
        if get_ident() == self.owner and self.bottom != phase:
            self._settle(phase, self._count())

    def take(self, bottom: Optional[str] = None) -> Dict[str, int]:
        """End the lap: phase -> nanoseconds since the last `take`, summing exactly to the wall time between the two.

        Open spans stay open and go on in the next lap. The lap's end is `mark_ns` afterwards. `bottom`, if given, is
        what to `rest` at from the same moment on.
        """
        spent, now = self._spent, self._clock()
        top = self._stack[-1]
        spent[top] = spent.get(top, 0) + now - self._last_ns
        self.mark_ns = self._last_ns = now
        self._spent = {}
        if bottom is not None and bottom != self.bottom and get_ident() == self.owner:
            self._settle(bottom, now)
        return spent

    def spent(self, phase: str) -> int:
        """Nanoseconds of `phase` in this lap until now."""
        self._count()
        return self._spent.get(phase, 0)

    def adopt(self) -> None:
        """Make the calling thread the one that counts."""
        self.owner = get_ident()

    def is_mine(self) -> bool:
        """Whether the calling thread is the one that counts."""
        return get_ident() == self.owner

    @property
    def phase(self) -> str:
        """What time counts as now. Any thread may ask."""
        return self._stack[-1]

    @property
    def depth(self) -> int:
        """Open spans above the bottom."""
        return len(self._stack) - 1

    def _settle(self, bottom: str, now: int) -> None:
        """What was counted until now was the old bottom's."""
        if self._trace is not None:
            self._trace.append((self.bottom, self._begun[0], now))
            self._begun[0] = now
        self.bottom = self._stack[0] = bottom

    def _count(self) -> int:
        now = self._clock()
        top = self._stack[-1]
        self._spent[top] = self._spent.get(top, 0) + now - self._last_ns
        self._last_ns = now
        return now


class Opened:
    """A span as the context of a body. A generator in its place would take as long again as the span."""

    __slots__ = ("_depth", "_ledger", "_phase")

    def __init__(self, ledger: Ledger, phase: str) -> None:
        self._ledger, self._phase = ledger, phase
        self._depth = NOT_MINE

    def __enter__(self) -> None:
        self._depth = self._ledger.push(self._phase)

    def __exit__(self, *_: object) -> None:
        self._ledger.pop(self._depth)

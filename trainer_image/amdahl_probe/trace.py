"""What did the run look like on a time line? Spans as Chrome trace JSON, which Perfetto and chrome://tracing open.

Written while the run goes on, so that whatever ends it leaves a trace: an array of events, one a line. The format lets
its end be missing, and what reads it adds the bracket.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Callable, Deque

from amdahl_probe.spans import Span

#: Spans that wait for the next flush; of more, which take a second without a step, the newest are kept.
MAX_WAITING = 50_000

#: Events of one file, about 20 MB. A full one becomes the older of two: the newest of a run are kept.
MAX_EVENTS = 200_000

#: Shortest time between two flushes, nanoseconds.
FLUSH_EVERY_NS = 1_000_000_000

#: What the writing itself shows up as.
OWN_NAME = "probe"


class Trace:
    """The trace of one rank: `trace-<rank>.json` in a directory, and `trace-<rank>.older.json` where one is full."""

    def __init__(self, directory: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        #: Closed spans, appended by the ledger; names are those of the contract.
        self.spans: Deque[Span] = deque(maxlen=MAX_WAITING)
        self._directory = directory
        self._clock = clock
        self._flushed_ns = 0
        self._events = 0  # in the present file, its head included
        self._is_on = True

    def flush(self, rank: int) -> None:
        """Write the spans closed since the last flush, if that was a second ago. Call between steps.

        A disk that refuses ends the trace with one line on stderr.
        """
        begun_ns = self._clock()
        if self._is_on and (not self._events or begun_ns - self._flushed_ns >= FLUSH_EVERY_NS):
            self._write(rank, "")
            self._flushed_ns = self._clock()
            self.spans.append((OWN_NAME, begun_ns, self._flushed_ns))

    def close(self, rank: int) -> None:
        """Write what is left and end the array."""
        if self._is_on:
            self._write(
                rank, f'{{"name":"process_sort_index","ph":"M","pid":{rank},"args":{{"sort_index":{rank}}}}}\n]\n'
            )
            self._is_on = False

    def _write(self, rank: int, end: str) -> None:
        """Append to the file of this rank, or begin it."""
        lines = [_render(span, rank) for span in self.spans]
        self.spans.clear()
        path = self._directory / f"trace-{rank}.json"
        older = path.with_suffix(".older.json")
        try:
            if not self._events:
                older.unlink(missing_ok=True)  # of an earlier run
            elif self._events + len(lines) > MAX_EVENTS:
                path.replace(older)
                self._events = 0
            head = "" if self._events else _render_head(rank)
            with path.open("a" if self._events else "w") as file:
                file.write(head + "".join(lines) + end)
            self._events += 1 + len(lines)
        except OSError as error:
            self._is_on = False
            sys.stderr.write(f"amdahl_probe: the trace ends here: {error}\n")


def _render(span: Span, rank: int) -> str:
    """One complete event ("ph": "X") in microseconds; the names need no escape."""
    name, begin_ns, end_ns = span
    times = f'"ts":{begin_ns / 1000:.3f},"dur":{(end_ns - begin_ns) / 1000:.3f}'
    return f'{{"name":"{name}","cat":"phase","ph":"X","pid":{rank},"tid":0,{times}}},\n'


def _render_head(rank: int) -> str:
    return f'[\n{{"name":"process_name","ph":"M","pid":{rank},"tid":0,"args":{{"name":"rank {rank}"}}}},\n'

"""What did the run look like on a time line? Spans as Chrome trace JSON, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable

from amdahl_probe.spans import Span


def write(path: Path, spans: Iterable[Span], rank: int) -> None:
    """Write complete events ("ph": "X"), microseconds, one process row a rank."""
    with path.open("w") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        name = {"name": "process_name", "ph": "M", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
        file.write(json.dumps(name))
        for phase, begin_ns, end_ns in spans:
            event = {"name": phase, "cat": "phase", "ph": "X", "pid": rank, "tid": 0}
            file.write(",\n" + json.dumps({**event, "ts": begin_ns / 1000, "dur": (end_ns - begin_ns) / 1000}))
        file.write("\n]}\n")

"""The whole story, once for all tools and modes: applied, proven, applied again and again, handed over, taken over.

Every step is waited for by what the server says, never by the clock. Who wrote how often is read from the API server's
audit log when all is over.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gitops.expected import EXPECTED, ROUNDS, Phase, State, modes_of
from gitops.jobs import Job, Source, read_job
from gitops.tools import Tool
from testbed.access import Access
from testbed.audit import read_requests

TIMEOUT_S = 1800.0
"""A bound on hanging; what has not come by then is not waited for again."""
POLL_S = 1.0
QUIET_S = 15.0
"""How long nothing may change before writes are counted: three looks of the operator at a job that rests."""


class Writes(NamedTuple):
    """Writes to one TrainingJob that the server took, its status aside."""

    ours: int = 0
    theirs: int = 0


@dataclass
class Row:
    """What happened to one job."""

    tool: str
    mode: str
    seen: dict[Phase, Job] = field(default_factory=dict)
    refused: dict[Phase, list[str]] = field(default_factory=dict)
    """What the tool was told instead, once for each time."""
    written: dict[Phase, Writes] = field(default_factory=dict)
    """By the end of each step."""

    def state(self, phase: Phase) -> State:
        """What is compared with what was expected."""
        job = self.seen[phase]
        return State(job.workers, job.runs_with, job.conflict, job.tuned)


@dataclass(frozen=True)
class Matrix:
    """Tools with their namespaces, and what was seen of their jobs."""

    access: Access
    audit_log: Path
    tools: Mapping[str, Tool]
    rows: dict[tuple[str, str], Row]
    lost: set[tuple[str, str]] = field(default_factory=set)
    """Jobs that did not get where they should."""

    @classmethod
    def of(cls, access: Access, audit_log: Path, tools: Sequence[Tool]) -> "Matrix":
        """Nothing has happened yet."""
        rows = {(tool.name, mode): Row(tool.name, mode) for tool in tools for mode in modes_of(tool.name)}
        return cls(access, audit_log, {tool.name: tool for tool in tools}, rows)

    def put(self, phase: Phase, sources: Mapping[str, Sequence[Source]]) -> None:
        """Each tool brings its source to the cluster."""
        for name, tool in self.tools.items():
            refusals = tool.put(sources[name])
            for source in sources[name]:
                if source.name in refusals:
                    self.rows[name, source.mode].refused.setdefault(phase, []).append(refusals[source.name])

    def put_again(self, phase: Phase, sources: Mapping[str, Sequence[Source]]) -> None:
        """The same sources round after round, each time with another commit that has nothing to do with the knobs."""
        for number in range(ROUNDS):
            commit = {"example.com/commit": f"{phase} {number}"}
            self.put(phase, {name: [source.mark(commit) for source in some] for name, some in sources.items()})
            self.settle(phase)
        self.rest(phase)

    def settle(self, phase: Phase) -> None:
        """Wait until every job is as expected, or for so long that it never will be; then note what there is."""
        deadline_s = time.monotonic() + TIMEOUT_S
        waiting = set(self.rows) - self.lost
        while waiting and time.monotonic() < deadline_s:
            for key in sorted(waiting):
                row = self.rows[key]
                row.seen[phase] = self._read(row)
                if row.seen[phase].is_reported and row.state(phase) == EXPECTED[key][phase]:
                    waiting.discard(key)
            if waiting:
                time.sleep(POLL_S)
        self.lost.update(waiting)

    def rest(self, phase: Phase) -> None:
        """Wait until nobody writes any more, at most for a few rounds of that; then count who wrote how often."""
        for _ in range(4):
            before = {key: self._read(row).version for key, row in self.rows.items()}
            time.sleep(QUIET_S)
            if before == {key: self._read(row).version for key, row in self.rows.items()}:
                break
        for key, writes in self._count().items():
            self.rows[key].written[phase] = writes
            self.rows[key].seen[phase] = self._read(self.rows[key])

    def _read(self, row: Row) -> Job:
        return read_job(self.access, self.tools[row.tool].namespace, row.mode.lower())

    def _count(self) -> dict[tuple[str, str], Writes]:
        places = {tool.namespace: name for name, tool in self.tools.items()}
        counts = dict.fromkeys(self.rows, Writes())
        for request in read_requests(self.audit_log):
            key = places.get(request.namespace, ""), request.name.capitalize()
            is_taken = request.verb in ("create", "update", "patch") and request.status in (200, 201)
            if key in counts and request.resource == "trainingjobs" and is_taken and not request.is_dry_run:
                is_ours = request.user_agent.startswith("amdahl-loop/")
                counts[key] = Writes(counts[key].ours + is_ours, counts[key].theirs + (not is_ours))
        return counts

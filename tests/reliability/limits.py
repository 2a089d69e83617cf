"""How is an operator held to what its container may use? By a cgroup of its own, as a kubelet does; this needs root."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed import cgroups

PERIOD_US = 100_000
_NUMBERS = itertools.count()


@dataclass
class Limits:
    """One cgroup: processes are put into it, and it lets them have so much."""

    path: str

    def put(self, pid: int) -> None:
        """From now on a process with all its threads, and what it allocates anew, counts here."""
        for folder in self._folders():
            (folder / "cgroup.procs").write_text(str(pid))

    def set_cpu(self, millicores: int) -> None:
        """At most so much of a core: `50` is `cpu: 50m`."""
        quota_us = PERIOD_US * millicores // 1000
        self._write({"cpu.max": f"{quota_us} {PERIOD_US}", "cpu.cfs_quota_us": f"{quota_us}"})

    def set_memory(self, mebibytes: int) -> None:
        """The kernel kills what needs more."""
        self._write({"memory.max": f"{mebibytes << 20}", "memory.limit_in_bytes": f"{mebibytes << 20}"})

    @property
    def kills(self) -> int:
        """How often the kernel has killed for memory."""
        for folder in self._folders():
            for name in ("memory.events", "memory.oom_control"):
                if (folder / name).exists():
                    counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                    return int(counts["oom_kill"])
        raise AssertionError("no memory controller")

    def _folders(self) -> Iterator[Path]:
        """Where it is: one folder with cgroup v2, one per controller with v1."""
        for root in (cgroups.ROOT, cgroups.ROOT / "cpu", cgroups.ROOT / "memory"):
            if (root / self.path / "cgroup.procs").exists():
                yield root / self.path

    def _write(self, values: dict[str, str]) -> None:
        written = 0
        for folder in self._folders():
            for name, value in values.items():
                if (folder / name).exists():
                    (folder / name).write_text(value)
                    written += 1
        assert written == 1, f"{values} was written {written} times"


@contextmanager
def open_limits() -> Iterator[Limits]:
    """A cgroup for as long as the context lasts; whatever is in it must have ended by then."""
    limits = Limits(f"amdahl-reliability-{os.getpid()}-{next(_NUMBERS)}")
    cgroups.create(limits.path)
    try:
        yield limits
    finally:
        cgroups.remove(limits.path)

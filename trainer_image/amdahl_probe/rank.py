"""Is this process a rank of the job, and where does it write?

A process becomes a *rank* at its first training event; until then, and for ever in processes that do not train, nothing
is written. The rank holds a lock on its number, so a script's helper processes, which are nobody's rank, stay silent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional

from amdahl_probe import metrics, place
from amdahl_probe.emit import Recorder
from amdahl_probe.settings import Settings

#: Records that may wait for the process to become a rank.
MAX_EARLY = 64


class Rank:
    """What this process is, and its recorder when it is a rank."""

    def __init__(self, torch: Any, settings: Settings, begun_ns: int) -> None:
        self._torch = torch
        self._settings = settings
        self._begun_ns = begun_ns
        #: Whether this process trains; None until it is asked.
        self.trains: Optional[bool] = None
        self.recorder: Optional[Recorder] = None
        self._early: List[Callable[[Recorder], None]] = []
        self._lock: Optional[int] = None

    def decide(self) -> bool:
        """Become a rank, unless this is a loader's worker, another process is that rank, or nobody reads."""
        in_worker = self._torch.utils.data.get_worker_info() is not None
        self.trains = self._settings.is_recording and not in_worker and self._become()
        return self.trains

    def _become(self) -> bool:
        settings = self._settings
        rank, world, is_first = place.find(self._torch.distributed, os.environ)
        if settings.directory:
            try:
                self._lock = place.take_lock(Path(settings.directory), rank)
            except BlockingIOError:  # another process of this job is that rank
                return False
        is_serving = settings.port is not None and is_first
        counters = metrics.Metrics({"run": settings.run}) if is_serving else None
        self.recorder = recorder = Recorder(settings.directory, rank, world, counters)
        cuda = self._torch.cuda
        name = f"cuda:{cuda.get_device_name()}" if cuda.is_initialized() else "cpu"
        recorder.start(name, live=False, by="probe", t0_ns=self._begun_ns)
        for write in self._early:
            write(recorder)
        if counters is not None and settings.port is not None:
            try:
                metrics.serve(counters, settings.port, settings.host, settings.directory)
            except OSError as error:  # a taken port costs the port, not the records
                sys.stderr.write(f"amdahl_probe: no /metrics on port {settings.port}: {error}\n")
        return True

    def write(self, write: Callable[[Recorder], None]) -> None:
        """Write a record now, or first thing once this process is a rank."""
        if self.recorder is not None:
            write(self.recorder)
        elif self.trains is None and len(self._early) < MAX_EARLY:
            self._early.append(write)

    def release(self) -> None:
        """In a forked child: let go of the parent's lock."""
        if self._lock is not None:
            os.close(self._lock)

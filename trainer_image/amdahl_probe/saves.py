"""Which checkpoints did a rank write? Files written by the training thread with no step in between are one."""

from __future__ import annotations

import time
from typing import Callable, Optional, Tuple

from amdahl_probe.rank import Rank


class Saves:
    """The checkpoints of one rank; without a recorder there are none."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        #: Of the checkpoint since the last step: nanoseconds blocked, steps before it, when its last file was written.
        self.open: Optional[Tuple[int, int, int]] = None

    @property
    def is_open(self) -> bool:
        """Whether the training thread has written a file since the last step."""
        return self._rank.recorder is not None and self.open is not None

    def add(self, block_ns: int, in_training_thread: bool, step: int) -> None:
        """A file has been written after `step` steps: by the training thread, or behind its back."""
        recorder = self._rank.recorder
        if recorder is None:
            return
        if not in_training_thread:
            recorder.save(0, True, step)
            recorder.durable(0, True, step, block_ns)
            return
        before_ns = self.open[0] if self.open is not None else 0
        self.open = (before_ns + block_ns, step, time.monotonic_ns())

    def add_async(self, block_ns: int, step: int) -> Optional[Callable[[int], None]]:
        """An asynchronous save was handed over; call the result with the total nanoseconds when it is durable."""
        recorder = self._rank.recorder
        if recorder is None:
            return None
        recorder.save(block_ns, True, step)
        return lambda total_ns: recorder.durable(block_ns, True, step, total_ns)

    def flush(self) -> None:
        """A step has ended, or the run: the files since the last one are a whole checkpoint."""
        if self.open is not None and self._rank.recorder is not None:
            block_ns, step, end_ns = self.open
            self.open = None
            self._rank.recorder.save(block_ns, False, step, end_ns)
            self._rank.recorder.durable(block_ns, False, step, block_ns, end_ns)

"""When does a step end, and when can it be written? The first optimizer seen marks the steps.

A step waits for what the device has yet to say about it, but not for long.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from typing import Any, Deque, Optional

from amdahl_probe.draft import Draft
from amdahl_probe.emit import Recorder
from amdahl_probe.spans import Ledger

#: Steps that may wait for their device values; an older one is written without its loss.
MAX_LATE_STEPS = 8


class Steps:
    """The steps of one process."""

    def __init__(self) -> None:
        #: Steps ended so far.
        self.count = 0
        #: The step in the making.
        self.draft = Draft()
        self._late: Deque[Draft] = deque()
        self._optimizer: Any = None
        self._compiled = 0

    def are_marked_by(self, optimizer: Any) -> bool:
        """Whether this optimizer's steps are the training's: the first one's, or its successor's when it is gone."""
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        return self._optimizer() is optimizer

    def end(self, ledger: Ledger) -> None:
        """The optimizer has stepped: the lap that ends here was its step's, and the next one begins."""
        draft, self.draft = self.draft, Draft()
        phases = ledger.take()
        if self._has_compiled() or self.count == 0:
            draft.tags.append("warmup")
        draft.close(self.count, ledger.mark_ns, phases)
        self.count += 1
        self._late.append(draft)

    def write(self, recorder: Optional[Recorder], is_last: bool = False) -> None:
        """Write the steps that the device has said all about, have waited too long, or (`is_last`) are left."""
        while self._late and (is_last or self._late[0].has_arrived() or len(self._late) > MAX_LATE_STEPS):
            assert recorder is not None
            recorder.step(self._late.popleft().to_record())

    def note_collection(self) -> None:
        """Python has begun a full garbage collection, which is worth a tag."""
        if "gc" not in self.draft.tags:
            self.draft.tags.append("gc")

    def _has_compiled(self) -> bool:
        """Whether torch's compiler has made new code since the last step."""
        dynamo: Any = sys.modules.get("torch._dynamo.utils")
        counters = getattr(dynamo, "counters", None)
        if not counters:
            return False
        before, self._compiled = self._compiled, counters["frames"]["ok"]
        return bool(self._compiled != before)

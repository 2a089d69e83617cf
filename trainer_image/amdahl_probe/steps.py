"""When does a step end, and when can it be written? The first optimizer seen marks the steps.

A step waits for what the device has yet to say about it, but not for long.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from typing import Any, Callable, Deque, Optional

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
        self._optimizer: Callable[[], Any] = lambda: None
        self._counters: Any = None
        self._compiled = 0

    def are_marked_by(self, optimizer: Any) -> bool:
        """Whether this optimizer's steps are the training's: the first one's, or its successor's when it is gone."""
        marking = self._optimizer()
        if marking is None:
            self._optimizer = weakref.ref(optimizer)
            return True
        return marking is optimizer

    def end(self, ledger: Ledger, bottom: Optional[str]) -> None:
        """The optimizer has stepped: the lap that ends here was its step's, and the next one begins, at `bottom`."""
        draft, self.draft = self.draft, Draft()
        phases = ledger.take(bottom)
        if self._has_compiled() or self.count == 0:
            draft.tags += ("warmup",)
        draft.close(self.count, ledger.mark_ns, phases)
        self.count += 1
        self._late.append(draft)

    def write(self, recorder: Recorder, is_last: bool = False) -> None:
        """Write the steps that the device has said all about, have waited too long, or (`is_last`) are left."""
        late = self._late
        while late and (is_last or late[0].late is None or late[0].late.has_arrived() or len(late) > MAX_LATE_STEPS):
            late.popleft().write(recorder)

    def note_collection(self) -> None:
        """Python has begun a full garbage collection, which is worth a tag."""
        if "gc" not in self.draft.tags:
            self.draft.tags += ("gc",)

    def _has_compiled(self) -> bool:
        """Whether torch's compiler has made new code since the last step."""
        if self._counters is None and "torch._dynamo.utils" in sys.modules:
            self._counters = getattr(sys.modules["torch._dynamo.utils"], "counters", None)
        if not self._counters:
            return False
        before, self._compiled = self._compiled, self._counters["frames"]["ok"]
        return bool(self._compiled != before)

"""How long did it take until the training began, and what took it? From the start of the process to its first batch."""

from __future__ import annotations

import time
from typing import Dict, Optional

from amdahl_probe.rank import Rank
from amdahl_probe.spans import Ledger


class Startup:
    """The startup of one process. A forked child takes over the parts that its parent knew."""

    def __init__(self, begun_ns: int, parts: Dict[str, int]) -> None:
        self.begun_ns = begun_ns
        self.parts = parts
        self.is_over = False
        self._asked_ns: Optional[int] = None

    def add(self, part: str, ns: int) -> None:
        """Part of it took `ns`; ignored afterwards."""
        if not self.is_over:
            self.parts[part] = self.parts.get(part, 0) + ns

    def ask_first(self, ledger: Ledger) -> None:
        """The first training batch is being asked for: the first step's wall begins here."""
        if self._asked_ns is None:
            ledger.take()
            self._asked_ns = ledger.mark_ns

    def end(self, rank: Rank) -> None:
        """The first batch is in hand, or the training has begun without one; said once."""
        if self.is_over:
            return
        self.is_over = True
        now_ns = time.monotonic_ns()
        took_ns, parts = now_ns - self.begun_ns, dict(self.parts)
        if self._asked_ns is not None:
            parts["data"] = now_ns - self._asked_ns
        rank.write(lambda recorder: recorder.startup(took_ns, parts))

"""A step in the making: what was consumed, what it cost, and what the device has yet to say. Then its record."""

from __future__ import annotations

from typing import Dict, List

from amdahl_probe import device, digests
from amdahl_probe.digests import BatchDigest
from amdahl_probe.emit import Batches, StepRecord


class Draft:
    """One step, until it can be written."""

    def __init__(self) -> None:
        self.batches: List[BatchDigest] = []
        self.loader = Batches()
        self.late = device.Late()
        self.tags: List[str] = []
        self.moves: List[device.Move] = []
        self.index = self.end_ns = 0
        self.phases: Dict[str, int] = {}

    def close(self, index: int, end_ns: int, phases: Dict[str, int]) -> None:
        """The optimizer has stepped: `phases` is what the ledger counted, sums are kept by every move."""
        self.index, self.end_ns, self.phases = index, end_ns, phases
        self._apply(self.moves)
        named = (("ckpt", "checkpoint"), ("eval", "eval"))
        self.tags += [tag for tag, phase in named if phases.get(phase)]

    def to_record(self) -> StepRecord:
        """The record, with what the device has said by now."""
        is_known = self.late.has_arrived()
        if is_known:
            self._apply(self.late.read_moves())
        work = digests.combine(self.batches)
        return StepRecord(
            step=self.index,
            end_ns=self.end_ns,
            phases=self.phases,
            samples=work.samples,
            elements=work.elements,
            sig=digests.to_hex(work.sig),
            shape=digests.to_hex(work.shape),
            ids=digests.to_hex(work.ids),
            loss=self.late.read_loss() if is_known else None,
            loader=self.loader,
            tags=self.tags,
        )

    def _apply(self, moves: List[device.Move]) -> None:
        for source, target, ns in moves:
            moved = max(0, min(ns, self.phases.get(source, 0)))
            self.phases[source] = self.phases.get(source, 0) - moved
            self.phases[target] = self.phases.get(target, 0) + moved

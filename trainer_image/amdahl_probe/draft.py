"""A step in the making: what was consumed, what it cost, and what the device has yet to say. Then its record."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from amdahl_probe import device, digests
from amdahl_probe.digests import BatchDigest
from amdahl_probe.emit import Batches, StepRecord

NO_BATCHES = Batches()


class Draft:
    """One step, until it can be written."""

    __slots__ = ("_late", "batches", "end_ns", "index", "loader", "loss", "moves", "phases", "tags")

    def __init__(self) -> None:
        self.batches: List[BatchDigest] = []
        self.loader = NO_BATCHES
        #: Sum of the losses whose gradients make up the step (micro-batches divide by their number first).
        self.loss: Optional[float] = None
        self.tags: List[str] = []
        self.moves: List[device.Move] = []
        self._late: Optional[device.Late] = None
        self.index = self.end_ns = 0
        self.phases: Dict[str, int] = {}

    @property
    def late(self) -> device.Late:
        """What the device has yet to say; made when it is first asked for, which a CPU never does."""
        if self._late is None:
            self._late = device.Late()
        return self._late

    def add_batch(self, batch: BatchDigest, took_ns: Optional[int]) -> None:
        """A batch was consumed, for which the loader took `took_ns` (None if it did not say)."""
        self.batches.append(batch)
        if took_ns is not None:
            self.loader = self.loader.plus(took_ns)

    def add_loss(self, torch: Any, loss: Any) -> None:
        """Take a scalar loss on the CPU, or on a device, which will say it late."""
        if loss.is_cpu:
            self.loss = loss.item() if self.loss is None else self.loss + loss.item()
        else:
            self.late.add_loss(torch, loss.detach())

    def close(self, index: int, end_ns: int, phases: Dict[str, int]) -> None:
        """The optimizer has stepped: `phases` is what the ledger counted, sums are kept by every move."""
        self.index, self.end_ns, self.phases = index, end_ns, phases
        if self.moves:
            self._apply(self.moves)
        if phases.get("checkpoint"):
            self.tags.append("ckpt")
        if phases.get("eval"):
            self.tags.append("eval")

    def has_arrived(self) -> bool:
        """Whether the device has said everything."""
        return self._late is None or self._late.has_arrived()

    def to_record(self) -> StepRecord:
        """The record, with what the device has said by now."""
        loss = self.loss
        if self._late is not None and self._late.has_arrived():
            self._apply(self._late.read_moves())
            loss = self._late.read_loss(loss)
        work = digests.combine(self.batches)
        return StepRecord(
            self.index,
            self.end_ns,
            self.phases,
            work.samples,
            work.elements,
            digests.to_hex(work.sig),
            digests.to_hex(work.shape),
            digests.to_hex(work.ids),
            loss,
            0,
            self.loader,
            self.tags,
        )

    def _apply(self, moves: List[device.Move]) -> None:
        for source, target, ns in moves:
            moved = max(0, min(ns, self.phases.get(source, 0)))
            self.phases[source] = self.phases.get(source, 0) - moved
            self.phases[target] = self.phases.get(target, 0) + moved

"""A step in the making: what was consumed, what it cost, and what the device has yet to say. Then its record."""

from __future__ import annotations

from typing import Dict, Iterable, Optional, Tuple

from amdahl_probe import device
from amdahl_probe.digests import BatchDigest, combine
from amdahl_probe.emit import Recorder


class Draft:
    """One step, until it can be written. What a step does not have, its class says."""

    index: int
    end_ns: int
    phases: Dict[str, int]
    batches: Tuple[BatchDigest, ...] = ()
    #: How long the loader took for each, where it said so.
    took_ns: Tuple[int, ...] = ()
    #: Sum of the losses whose gradients make up the step (micro-batches divide by their number first).
    loss: Optional[float] = None
    tags: Tuple[str, ...] = ()
    moves: Tuple[device.Move, ...] = ()
    #: What the device has yet to say; a CPU never does.
    late: Optional[device.Late] = None

    def await_device(self) -> device.Late:
        """`late`, made when it is first asked for."""
        if self.late is None:
            self.late = device.Late()
        return self.late

    def close(self, index: int, end_ns: int, phases: Dict[str, int]) -> None:
        """The optimizer has stepped: `phases` is what the ledger counted, sums are kept by every move."""
        self.index, self.end_ns, self.phases = index, end_ns, phases
        if self.moves:
            self._apply(self.moves)
        if phases.get("checkpoint"):
            self.tags += ("ckpt",)
        if phases.get("eval"):
            self.tags += ("eval",)

    def write(self, recorder: Recorder) -> None:
        """Write the record, with what the device has said by now."""
        loss, batches, took_ns = self.loss, self.batches, self.took_ns
        if self.late is not None and self.late.has_arrived():
            self._apply(self.late.read_moves())
            loss = self.late.read_loss(loss)
        samples, elements, sig, shape, ids = batches[0] if len(batches) == 1 else combine(batches)
        squares_us2 = 0
        for ns in took_ns:
            squares_us2 += (ns // 1000) ** 2
        loader = (len(took_ns), sum(took_ns), squares_us2)
        recorder.write_step(
            self.index, self.end_ns, self.phases, samples, elements, (sig, shape, ids), loss, 0, loader, self.tags
        )

    def _apply(self, moves: Iterable[device.Move]) -> None:
        for source, target, ns in moves:
            moved = max(0, min(ns, self.phases.get(source, 0)))
            self.phases[source] = self.phases.get(source, 0) - moved
            self.phases[target] = self.phases.get(target, 0) + moved

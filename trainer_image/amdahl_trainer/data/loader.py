"""How do rows reach the training process in time? torch's DataLoader over positions, rebuilt from one at any step.

One batch is a rank's share of one optimizer step. The time it took to make is measured where it is made and travels
with it, so the trainer knows what a worker costs without asking. A loader never ends: it has no epochs, only positions.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.data.rows import Rows
from amdahl_trainer.errors import DataError


class Batch(NamedTuple):
    """A rank's rows of one step, `packed` as (3, rows, seq) int64, their sample numbers, and what they cost to make."""

    packed: Tensor
    samples: list[int]
    valid: int
    cost_ns: int

    @property
    def inputs(self) -> Tensor:
        """(rows, seq) token ids."""
        return self.packed[0]

    @property
    def targets(self) -> Tensor:
        """(rows, seq) token ids, `loss.IGNORED` where padded."""
        return self.packed[1]

    @property
    def segments(self) -> Tensor:
        """(rows, seq) number of the document within the row, 0 where padded."""
        return self.packed[2]


@dataclass(frozen=True)
class Made:
    """A batch as it leaves the worker: an array, not a tensor.

    A tensor would travel in shared memory, whose handle the receiver must ask a thread of the worker for; that thread
    waits up to 5 ms for Python's lock while the worker makes its next batch.
    """

    packed: npt.NDArray[np.int64]
    samples: list[int]
    valid: int
    cost_ns: int

    def to_batch(self) -> Batch:
        """The same, as a tensor."""
        return Batch(torch.from_numpy(self.packed), self.samples, self.valid, self.cost_ns)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory: what the DataLoader's pinning thread calls."""
        batch = self.to_batch()
        return batch._replace(packed=batch.packed.pin_memory())


@dataclass(frozen=True)
class Settings:
    """What the loader knobs set. None of it changes which samples come when."""

    workers: int
    prefetch_factor: int
    pin_memory: bool


class RowsByPosition(Dataset[Made]):
    """Batches of rows, asked for by position."""

    def __init__(self, rows: Rows, order: Order) -> None:
        self._rows = rows
        self._order = order

    def __getitems__(self, positions: Sequence[int]) -> Made:
        """Make the batch of these positions."""
        begun_ns = time.monotonic_ns()
        samples = [self._order.sample(position) for position in positions]
        made = [self._rows.row(sample) for sample in samples]
        packed = np.stack([np.stack(part) for part in zip(*made, strict=True)])
        valid = int((packed[2] > 0).sum())
        return Made(packed, samples, valid, time.monotonic_ns() - begun_ns)


class Loader:
    """Batches of one rank from a position on."""

    def __init__(self, rows: Rows, order: Order, share: Share, settings: Settings) -> None:
        self._rows = rows
        self._share = share
        self.order = order
        self.settings = settings
        self.position = 0
        self._batches: Iterator[Made | Batch] | None = None
        self._workers: list[BaseProcess] = []

    def open(self, position: int, settings: Settings | None = None) -> None:
        """Go to a position, with other settings if given, in the present order. Workers are started anew."""
        self.close()
        self.settings = settings or self.settings
        self.position = position
        self._batches = self._start()

    def next(self) -> Batch:
        """The rank's batch at `position`, which moves on. A loader that fails is started once more.

        Raises:
            DataError: it failed twice at one position.
        """
        batch = self._attempt()
        if isinstance(batch, str):
            print(f"loader failed at position {self.position} ({batch}); starting it again", flush=True)
            self.open(self.position)
            batch = self._attempt()
        if isinstance(batch, str):
            raise DataError(f"loader failed twice at position {self.position}: {batch}")
        self.position += self._share.global_batch
        return batch

    def _attempt(self) -> Batch | str:
        """The next batch, or why there is none. The exception ends here: its traceback would keep the workers."""
        assert self._batches is not None, "open() comes first"
        try:
            made = next(self._batches)
        except Exception as error:  # noqa: BLE001 (a worker hands over whatever its data raised)
            return f"{type(error).__name__}: {error}".strip().splitlines()[-1]
        return made.to_batch() if isinstance(made, Made) else made

    def close(self) -> None:
        """Stop the workers. Batches they had ready are dropped and made again after `open`."""
        self._batches = None  # the iterator's finaliser tells its workers to end
        for worker in self._workers:
            worker.join(timeout=1.0)
            if worker.is_alive():  # the traceback of a failure may still hold the iterator
                worker.kill()
                worker.join()
        self._workers = []

    def worker_pids(self) -> list[int]:
        """The loader processes of this rank that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None and worker.is_alive()]

    def _start(self) -> Iterator[Made | Batch]:
        workers = self.settings.workers
        loader = DataLoader(
            RowsByPosition(self._rows, self.order),
            batch_sampler=_Positions(self._share, self.position),
            collate_fn=_as_is,
            num_workers=workers,
            prefetch_factor=self.settings.prefetch_factor if workers else None,
            pin_memory=self.settings.pin_memory and torch.cuda.is_available(),
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if workers else None,  # a live switch must not import torch again
            generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the training's
        )
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        # torch's SIGCHLD handler raises in whatever the training thread does when a worker dies. Without it the death
        # is noticed in `next`, where it can be handled.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


@dataclass(frozen=True)
class _Positions:
    """The endless batch sampler."""

    share: Share
    begin: int

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.share.batches(self.begin))


def _as_is(batch: Any) -> Any:
    """The data set has made the batch already."""
    return batch


def _begin_worker(_: int) -> None:
    """Outlive a SIGTERM to the process group: the training process still needs batches to reach its checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

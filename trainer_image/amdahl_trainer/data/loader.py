"""How do rows reach the training process in time? torch's DataLoader over positions, rebuilt from one at any step.

One batch is a rank's share of one optimizer step. What it took to make is measured where it is made and travels with
it, so the trainer knows what a worker costs without asking. A loader never ends: it has no epochs, only positions.

A worker that dies is noticed at once, also in the middle of handing over a batch, and all workers are started anew at
the position of the batch that did not come: nothing is lost, nothing comes twice.
"""

from __future__ import annotations

import mmap
import multiprocessing
import signal
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amdahl_probe import process_tree
from amdahl_probe.digests import STRIDED, BatchDigest, combine, digest_ids
from amdahl_trainer.data import order as orders
from amdahl_trainer.data.counts import Bad, Counts, Meter
from amdahl_trainer.data.order import Share
from amdahl_trainer.data.rows import Rows
from amdahl_trainer.ends import describe_end
from amdahl_trainer.errors import BadSamplesError, DataError

#: Of nothing.
NO_BATCH = combine(())


class Batch(NamedTuple):
    """A rank's rows of one step, `packed` as (3, rows, seq) int64, their sample numbers, and what they cost to make.

    `row_squares` is of the tokens of each row, squared and summed; `counts.sum_len_sq` of those of each document.
    `digest` tells whether two batches are the same work.
    """

    packed: Tensor
    samples: list[int]
    valid: int
    cost_ns: int
    counts: Counts = Counts()
    row_squares: int = 0
    digest: BatchDigest = NO_BATCH

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
    cost_ns: int
    counts: Counts
    row_squares: int
    digest: BatchDigest
    bad: tuple[Bad, ...]

    def to_batch(self, is_pinned: bool) -> Batch:
        """The same, as a tensor, in page-locked memory if copies to a GPU shall not wait."""
        packed = torch.from_numpy(self.packed)
        packed = packed.pin_memory() if is_pinned else packed
        told = self.counts.tokens, self.cost_ns, self.counts, self.row_squares, self.digest
        return Batch(packed, self.samples, *told)


@dataclass(frozen=True)
class Settings:
    """What the loader knobs set. None of it changes which samples come when."""

    workers: int
    prefetch_factor: int
    pin_memory: bool


@dataclass(frozen=True)
class Patience:
    """What a loader puts up with before it ends the run: new starts."""

    restarts: int = 3


class RowsByPosition(Dataset[Made]):
    """Batches of rows, asked for by position."""

    def __init__(self, rows: Rows, order: orders.Sequence) -> None:
        self._rows = rows
        self._order = order

    def __getitems__(self, positions: Sequence[int]) -> Made:
        """Make the batch of these positions."""
        meter = Meter()
        samples = [self._order.sample(position) for position in positions]
        packed = np.empty((3, len(samples), self._rows.seq_len), dtype=np.int64)
        for row, sample in enumerate(samples):
            self._rows.fill(packed[:, row], sample, meter)
        tokens, digest = np.count_nonzero(packed[2], axis=1), digest_rows(packed, samples)
        meter.end("pack_ns")
        counts = meter.counts(len(samples), packed[2].size, int(tokens.sum()))
        return Made(packed, samples, meter.total_ns, counts, int(tokens @ tokens), digest, tuple(meter.bad))


def digest_rows(packed: npt.NDArray[np.int64], samples: Sequence[int]) -> BatchDigest:
    """What `amdahl_probe.digests` says of a batch, of (3, rows, seq): a few input tokens, the shape, the samples.

    Where rows are made, so that the training thread need not.
    """
    inputs = packed[0].reshape(-1)
    few = inputs[:: max(1, inputs.size // STRIDED - 1)][:STRIDED]  # not whole rows, which all begin alike
    sig = zlib.crc32(few.tobytes(), zlib.crc32(b"%d %d %d" % packed.shape))
    shape = zlib.crc32(b"%d" % packed.shape[2])
    return BatchDigest(len(samples), packed.size, sig, shape, digest_ids(samples))


class _Failure(NamedTuple):
    """Why there is no batch, and whether trying again could help."""

    why: str
    is_final: bool = False


class _WorkerEndedError(Exception):
    """A worker is no more."""


class _Ends:
    """Notices when a process that this one has started ends, and tells who waits for one.

    torch looks after its workers only between two reads of their pipe. One that is killed while it writes a batch
    leaves half of it, and the read of the other half would never end. torch's own handler of SIGCHLD would raise in
    whatever the training thread does; this one raises only where a batch is asked for. Setting a handler anew for each
    batch would take as long as all other accounts of a loader, so it stays, and calls one that it finds in its place.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tell: Callable[[], None] | None = None  #: called within the handler
        self._own = self._note
        self._other: Any = None

    def take_over(self) -> None:
        """From torch's handler, which is not called any more."""
        self._other = None
        signal.signal(signal.SIGCHLD, self._own)

    def ensure(self) -> None:
        """See to it that the handler is in force."""
        found = signal.getsignal(signal.SIGCHLD)
        if found is not self._own:
            self._other = found if callable(found) else None
            signal.signal(signal.SIGCHLD, self._own)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._other is not None:
            self._other(number, frame)
        tell, self.tell = self.tell, None
        if tell is not None:
            tell()  # raises, and then nobody waits any more
            self.tell = tell


#: A process has one handler, however many loaders.
_ends = _Ends()


class Flag:
    """Is set once, and seen by the processes forked from this one.

    `multiprocessing.Event` takes a lock to look at itself, and a process that is killed meanwhile keeps it for ever:
    whoever sets the event then waits for a process that is no more.
    """

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        """For all of them, without waiting for any."""
        self._byte[0] = 1

    def is_set(self) -> bool:
        """Whether any of them has."""
        return self._byte[0] == 1


class _Fork(ForkContext):
    """How workers are made: forked, since a live switch must not import torch again; any may be killed at any time."""

    def Event(self) -> Flag:  # type: ignore[override]  # noqa: N802  # torch sets it and looks at it, no more
        return Flag()


class Loader:
    """Batches of one rank from a position on."""

    def __init__(
        self,
        rows: Rows,
        order: orders.Sequence,
        share: Share,
        settings: Settings,
        patience: Patience = Patience(),
    ) -> None:
        self._rows = rows
        self._share = share
        self._patience = patience
        self.order = order
        self.settings = settings
        self.position = 0
        self.restarts = 0
        self.totals = Counts()  #: of the batches consumed
        self.bad: set[Bad] = set()  #: left out of the batches consumed
        self._untold: list[Bad] = []
        self._batches: Iterator[Made] | None = None
        self._workers: list[BaseProcess] = []
        self._ends_seen = -1

    def open(self, position: int, settings: Settings | None = None) -> None:
        """Go to a position, with other settings if given, in the present order. Workers are started anew."""
        self.close()
        self.settings = settings or self.settings
        self.position = position
        self._batches = self._start()

    def next(self) -> Batch:
        """The rank's batch at `position`, which moves on. A loader that fails is started again there.

        Raises:
            DataError: it failed for good, or more often than is put up with.
        """
        while isinstance(outcome := self._attempt(), _Failure):
            where = f"loader failed at position {self.position}"
            if outcome.is_final:
                raise DataError(f"{where}: {outcome.why}")
            if self.restarts >= self._patience.restarts:
                raise DataError(
                    f"{where} after {self.restarts} restarts on this rank: {outcome.why}; look at its memory and its "
                    "files, or raise data.max_restarts, which counts for each rank"
                )
            self.restarts += 1
            limit = self._patience.restarts
            print(f"{where} ({outcome.why}); starting it again ({self.restarts} of {limit})", flush=True)
            for worker in self._workers:
                worker.kill()  # what they have made is made again
            self.open(self.position)
        self._note(outcome)
        self.position += self._share.global_batch
        return outcome.to_batch(self.settings.pin_memory and torch.cuda.is_available())

    def _note(self, made: Made) -> None:
        """Count what is consumed, so that a batch made twice or for nothing counts once or not at all."""
        self.totals = self.totals.plus(made.counts)
        for bad in made.bad:
            if bad in self.bad:
                continue  # it was met in the epoch before
            self.bad.add(bad)
            self._untold.append(bad)
            print(f"left out: {bad}", flush=True)

    def take_bad(self) -> list[Bad]:
        """Those left out for the first time since this was last asked."""
        untold, self._untold = self._untold, []
        return untold

    def _attempt(self) -> Made | _Failure:
        """The next batch, or why there is none. The exception ends here: its traceback would keep the workers."""
        assert self._batches is not None, "open() comes first"
        try:
            return self._take(self._batches)
        except _WorkerEndedError:
            return _Failure("; ".join(map(_describe_end, self._ended())))
        except Exception as error:  # noqa: BLE001 (a worker hands over whatever its data raised)
            if ended := self._ended():
                return _Failure("; ".join(map(_describe_end, ended)))
            text = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
            is_final = isinstance(error, DataError)
            return _Failure(text.rpartition("DataError: ")[2] if is_final else text, is_final)

    def _take(self, batches: Iterator[Made]) -> Made:
        """The next batch. The death of a worker, meanwhile or before, breaks the wait for it off."""
        if not self._workers:
            return next(batches)
        _ends.ensure()
        _ends.tell = self._raise_if_ended
        try:
            if _ends.count != self._ends_seen:
                self._raise_if_ended()
            return next(batches)
        finally:
            _ends.tell = None

    def _raise_if_ended(self) -> None:
        seen = _ends.count
        if self._ended():
            raise _WorkerEndedError
        self._ends_seen = seen

    def _ended(self) -> list[BaseProcess]:
        return [worker for worker in self._workers if not worker.is_alive()]

    def close(self) -> None:
        """Stop the workers. Batches they had ready are dropped and made again after `open`."""
        self._batches = None  # the iterator's finaliser tells its workers to end
        for worker in self._workers:
            worker.join(timeout=1.0)
            if worker.is_alive():  # the traceback of a failure may still hold the iterator
                worker.kill()
                worker.join()
        self._workers = []

    def describe(self) -> str:
        """What was consumed and what it took, how often each source was read, and what went wrong."""
        epochs = ", ".join(f"{count:.2f} epochs {name}".strip() for name, count in self._epochs())
        return f"{self.totals.describe()}; {epochs}; {len(self.bad)} bad samples left out, {self.restarts} restarts"

    def _epochs(self) -> list[tuple[str, float]]:
        return [(f"of {name}" if name else "", count) for name, count in self.order.epochs(self.position).items()]

    def worker_pids(self) -> list[int]:
        """The loader processes of this rank that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None and worker.is_alive()]

    def _start(self) -> Iterator[Made]:
        workers = self.settings.workers
        loader = DataLoader(
            RowsByPosition(self._rows, self.order),
            batch_sampler=_Positions(self._share, self.position),
            collate_fn=_as_is,
            num_workers=workers,
            prefetch_factor=self.settings.prefetch_factor if workers else None,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_Fork() if workers else None,
            generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the training's
        )
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        if self._workers:
            self._ends_seen = -1  # one may have ended already
            _ends.take_over()
        return batches


@dataclass(frozen=True)
class _Positions:
    """The endless batch sampler."""

    share: Share
    begin: int

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.share.batches(self.begin))


def check_bad(left_out: Collection[Bad], limit: int) -> None:
    """Refuse to go on over more samples left out by all ranks than may be. Raises BadSamplesError."""
    if len(left_out) > limit:
        raise BadSamplesError(
            f"all ranks together have left out {len(left_out)} bad samples, and data.max_bad_samples is {limit}; lines "
            "that begin with `left out` name each; mend the data, or raise data.max_bad_samples"
        )


def _as_is(batch: Any) -> Any:
    """The data set has made the batch already."""
    return batch


def _begin_worker(_: int) -> None:
    """Outlive a SIGTERM to the process group: the training process still needs batches to reach its checkpoint.

    But not the training process: a worker that blocks on a full pipe, whose read end it has as well, would stay.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process_tree.die_with_parent()


def _describe_end(worker: BaseProcess) -> str:
    """Which worker ended, and how."""
    return f"worker {worker.pid} {describe_end(worker.exitcode or 0)}"

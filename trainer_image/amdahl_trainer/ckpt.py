"""How does a run survive its end? It saves, knows which step is durable, and goes on from there on any layout.

One object a rank; all ranks call it alike. What is kept is in `ckpt_state`, how it is written in `ckpt_dcp`, what lies
on the disk in `ckpt_folder`. Only one save is under way at a time: one that comes before the last has ended waits for
it, so that the cadence stays what was asked for and the memory for one copy is enough. The wait is part of the time
that training is blocked, and is counted.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from amdahl_trainer import ckpt_dcp, ckpt_folder, ckpt_state
from amdahl_trainer import config as configs
from amdahl_trainer.blame import failure_of
from amdahl_trainer.ckpt_dcp import Behind, Reader, Writer
from amdahl_trainer.ckpt_folder import CheckpointError, Meta
from amdahl_trainer.ckpt_state import State
from amdahl_trainer.config import Config
from amdahl_trainer.errors import SaveError

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Where a run is: optimizer steps done and samples consumed by all ranks, over every restart."""

    step: int = 0
    position: int = 0


@dataclass(frozen=True)
class Written:
    """A checkpoint written in the background that is now wholly on disk."""

    step: int
    block_ns: int
    total_ns: int


@dataclass
class _Flight:
    """A save under way."""

    step: int
    begun_ns: int
    block_ns: int
    needed_bytes: int
    draft: Path
    future: Future[Any]
    ended_ns: int = 0

    def __post_init__(self) -> None:
        self.future.add_done_callback(self._note_end)

    def _note_end(self, _: object) -> None:
        self.ended_ns = time.monotonic_ns()


class Checkpoints:
    """The checkpoints of one output directory, as one rank sees them."""

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        """Join the other ranks, and sweep drafts that a killed process left behind."""
        self.home = directory(config)
        self.durable: int | None = None  #: the newest step known to be wholly on the disk
        self.waits = 0  #: saves that had to wait for the one before
        self._config = config
        self._rank, self._world = rank, world
        self._group = ckpt_dcp.open_group(_mode(config), world, config.limits.comm_timeout_s)
        self._behind: Behind | None = None
        self._flight: _Flight | None = None
        self._written: list[Written] = []
        if rank == 0:
            ckpt_folder.sweep(self.home)
        self._writer = self._from_first(lambda: secrets.token_hex(4))  # so that no two runs share a draft

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Path, Progress] | None:
        """Load the checkpoint that `checkpoint.resume` asks for, whatever ranks and layout wrote it.

        Returns:
            Where it was and how far it is; None where there is none.

        Raises:
            CheckpointError: on all ranks alike, with what is wrong and what to do.
        """
        path = self._from_first(lambda: ckpt_folder.find(self.home, self._config.checkpoint.resume))
        if path is None:
            return None
        meta = self._everyone(lambda: self._check(path))[0]
        reader = Reader(path)
        state = self._fitting(meta, reader, model, optimizer)
        try:
            ckpt_dcp.load(state, reader, self._group)
        except CheckpointException as error:
            raise CheckpointError(f"{path} cannot be read: {_cause(error)}; {ckpt_folder.REMEDY}") from error
        ckpt_state.restore(state, model, optimizer, self._rank)
        self.durable = meta.step
        return path, Progress(meta.step, meta.position)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, asynchronous: bool) -> None:
        """Save; on return training may go on. `finished` says when an asynchronous save is durable.

        Raises:
            SaveError: writing failed, this time or the time before.
        """
        begun_ns = time.monotonic_ns()
        if self._flight is not None and not self._flight.future.done():
            self.waits += 1
        self._land(waiting=True)
        state = ckpt_state.collect(model, optimizer, self._rank)
        draft = ckpt_folder.draft(self.home, progress.step, self._writer)
        meta = describe(self._config, progress, self._world)
        writer = Writer(draft, meta, self._config.checkpoint.keep, staged=asynchronous)
        if asynchronous:
            future = self._behind_for(state).save(state, writer)
            block_ns = time.monotonic_ns() - begun_ns
            size = ckpt_state.size_bytes(state)
            self._flight = _Flight(progress.step, begun_ns, block_ns, size, draft, future)
            return
        try:
            ckpt_dcp.save(state, writer, self._group)
        except CheckpointException as error:
            raise self._failure(progress.step, draft, ckpt_state.size_bytes(state), error) from error
        self.durable = progress.step

    def finished(self, waiting: bool = False) -> list[Written]:
        """The checkpoints written in the background that became durable since the last call, in order.

        Raises:
            SaveError: writing failed.
        """
        self._land(waiting)
        written, self._written = self._written, []
        return written

    def close(self) -> None:
        """Nothing more will be saved: end the process that writes, if there is one and it has nothing to do."""
        if self._behind is not None and (self._flight is None or self._flight.future.done()):
            self._behind.close()

    def _land(self, waiting: bool) -> None:
        """Take note of a save that has ended."""
        flight = self._flight
        if flight is None or not (waiting or flight.future.done()):
            return
        wait([flight.future])
        error = flight.future.exception()
        is_lost = failure_of(error) is not None  # another rank's writer, which that rank knows more of
        if is_lost and not waiting:
            return  # that rank says it within a step, and the others name it; where none does, the next save will
        self._flight = None
        if error is not None:
            fate = None if is_lost or self._behind is None else self._behind.fate(error)
            raise self._failure(flight.step, flight.draft, flight.needed_bytes, error, fate) from error
        self.durable = flight.step
        self._written.append(Written(flight.step, flight.block_ns, flight.ended_ns - flight.begun_ns))

    def _behind_for(self, state: State) -> Behind:
        if self._behind is None:
            on_gpu = any(tensor.device.type == "cuda" for tensor in state.values())
            self._behind = Behind(_mode(self._config), torch.device("cuda" if on_gpu else "cpu"), self._group)
        return self._behind

    def _check(self, path: Path) -> Meta:
        """A checkpoint's description, once it is known to be whole and of the same training."""
        meta = ckpt_folder.read_meta(path)
        check_semantics(path, meta, self._config)
        found = ckpt_folder.damage(path, meta, self._rank, self._world)
        if found is not None:
            raise CheckpointError(found)
        return meta

    def _fitting(self, meta: Meta, reader: Reader, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """The tensors to fill, all of which the checkpoint has in the right shape. Raises CheckpointError."""

        def compare() -> tuple[set[str], list[str]]:
            misfits = ckpt_state.misfits({name: tuple(value.shape) for name, value in state.items()}, kept)
            return set(state), misfits

        kept = reader.shapes()
        whole_run = "optim" in meta.holds
        state = ckpt_state.collect(model, optimizer, self._rank) if whole_run else ckpt_state.weights(model)
        state = {name: value for name, value in state.items() if not name.startswith(ckpt_state.RNG) or name in kept}
        told = self._everyone(compare)
        asked = set().union(*(names for names, _ in told))
        wrong = [text for _, misfits in told for text in misfits] + ckpt_state.strangers(kept, asked)
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise CheckpointError(f"{reader.path} does not fit this model: {wrong[0]}{more}; set another run.out_dir")
        return state

    def _failure(self, step: int, draft: Path, needed: int, error: BaseException, fate: str | None = None) -> SaveError:
        """What to tell the person whose disk refused, or whose writer ended by `fate`; the draft is taken away."""
        if self._rank == 0:
            ckpt_folder.drop(draft)
        last = next(iter(ckpt_folder.whole(self.home)), None)
        newest = "there is no other" if last is None else f"the newest whole one is of step {last.step}"
        what = f"checkpoint of step {step} could not be written to {self.home}"
        if fate is not None:
            return SaveError(
                f"{what}: the writer of rank {self._rank}, {fate}; {newest}; start again to go on from there; where "
                "memory ran out, checkpoint.async_mode thread needs no such process and no shared memory"
            )
        room = ""
        if self.home.is_dir():
            room = f"; it takes {needed} bytes and {shutil.disk_usage(self.home).free} are free"
        return SaveError(
            f"{what}: {_cause(error)}{room}; {newest}; "
            f"make room, or set a smaller checkpoint.keep (now {self._config.checkpoint.keep})"
        )

    def _everyone(self, work: Callable[[], T]) -> list[T]:
        """What each rank gets. Raises CheckpointError on all of them if one has to."""
        mine: tuple[T | None, str | None]
        try:
            mine = (work(), None)
        except CheckpointError as error:
            mine = (None, str(error))
        told: list[Any] = [mine]
        if self._group is not None:
            told = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(told, mine, group=self._group)
        for _, wrong in told:
            if wrong is not None:
                raise CheckpointError(wrong)
        return [value for value, _ in told]

    def _from_first(self, work: Callable[[], T]) -> T:
        """What the first rank gets, on all ranks."""
        return self._everyone(lambda: work() if self._rank == 0 else None)[0]  # type: ignore[return-value]


def directory(config: Config) -> Path:
    """Where a run's checkpoints are."""
    return Path(config.run.out_dir) / "checkpoints"


def describe(config: Config, progress: Progress, world: int, holds: tuple[str, ...] = ("model", "optim")) -> Meta:
    """The description of a checkpoint whose files are not written yet."""
    return Meta(
        number=0,
        step=progress.step,
        position=progress.position,
        world=world,
        holds=holds,
        semantics_hash=configs.semantics_hash(config),
        semantics=configs.semantics(config),
        config=configs.flatten(config),
        files={},
    )


def check_semantics(path: Path, meta: Meta, config: Config) -> None:
    """Refuse a checkpoint that was trained differently. A key it does not know had its default.

    One that was not trained (imported weights), or was when data had no digest, says nothing of its data.
    """
    changed = {
        name: (theirs, value)
        for name, value in configs.semantics(config).items()
        if (theirs := meta.semantics.get(name, configs.declared(name).default)) != value
        and not (name == "data.digest" and "" in (theirs, value))
    }
    if changed and not config.checkpoint.allow_semantics_change:
        told = ", ".join(f"{name} {theirs!r} -> {value!r}" for name, (theirs, value) in list(changed.items())[:5])
        is_longer = "optim.decay_steps" in changed and "optim.schedule" not in changed
        keep = f"--optim.decay_steps {changed['optim.decay_steps'][0]} to keep its schedule, " if is_longer else ""
        raise CheckpointError(
            f"{path} was trained differently: {told}; set {keep}another run.out_dir, or "
            "checkpoint.allow_semantics_change to go on regardless"
        )


def _mode(config: Config) -> ckpt_dcp.Mode:
    return "process" if config.checkpoint.async_mode == "process" else "thread"


def _cause(error: BaseException) -> str:
    """The first reason of a failure, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_cause(cause)}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]

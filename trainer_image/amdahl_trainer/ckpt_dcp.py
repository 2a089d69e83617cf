"""How do the tensors of all ranks get to the disk and back? Through torch.distributed.checkpoint, in three modes.

`sync` writes before it returns. `thread` and `process` copy the tensors to the host and write behind the training, in
a thread of it or in a process of their own. In each, every rank writes its shards, and the first rank commits when it
has heard that all have been forced to the disk. A checkpoint is data: nothing in it is executed by reading it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.storage import WriteResult
from torch.torch_version import TorchVersion

from amdahl_trainer import ckpt_folder as folder
from amdahl_trainer.ckpt_folder import CheckpointError, FileSum, Meta
from amdahl_trainer.ckpt_state import State, by_part
from amdahl_trainer.ends import describe_end

Mode = Literal["thread", "process"]

#: Signals that end a process group. The process that writes must outlive them as long as the trainer does.
_ENDING = {signal.SIGTERM, signal.SIGINT}

#: Longest time from the end of a process's connections to its exit code, seconds.
_DYING_S = 5.0


@dataclass(frozen=True)
class _Summed(WriteResult):
    """A whole file that a rank has written, told to the first rank beside what lies in it."""

    sum: FileSum


class Writer(FileSystemWriter):
    """Writes one checkpoint: shards into a draft, sums of them, and the commit on the first rank."""

    def __init__(self, draft: Path, meta: Meta, keep: int, *, staged: bool) -> None:
        # A staged state is on the host already: copying ahead from a GPU would only open a CUDA context for nothing.
        super().__init__(draft, per_thread_copy_ahead=0 if staged else 10_000_000, overwrite=False)
        self._draft, self._meta, self._keep = draft, meta, keep

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """As the base class; in a process of its own, torch logs three lines a save unless it is told not to."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if parent_process() is not None:
            logging.getLogger().setLevel(logging.WARNING)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this rank's shards, then read them once for their sums. Raises OSError if the disk refuses."""
        try:
            results = list(super().write_data(plan, planner).wait())
        except RuntimeError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise OSError(refusal.errno, refusal.strerror) from error
        names = sorted({result.storage_data.relative_path for result in results})
        sums = [folder.sum_of(self._draft / name) for name in names]
        summed: list[WriteResult] = [
            _Summed(MetadataIndex(name), found.bytes, None, found) for name, found in zip(names, sums, strict=True)
        ]
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results + summed)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, after all have written: the metadata, the commit, and the end of what is too old."""
        files = {one.index.fqn: one.sum for rank in results for one in rank if isinstance(one, _Summed)}
        super().finish(metadata, [[one for one in rank if not isinstance(one, _Summed)] for rank in results])
        files[".metadata"] = folder.sum_of(self._draft / ".metadata")
        trainer = parent_process()
        if trainer is not None and os.getppid() != trainer.pid:  # another trainer may have begun in this directory
            raise ChildProcessError("the trainer has died; its checkpoint is not committed")
        home = self._draft.parent
        folder.commit(self._draft, replace(self._meta, number=folder.next_number(home), files=files))
        folder.retain(home, self._keep)


def _refusal(error: BaseException | None) -> OSError | None:
    """What the disk said: torch's writer of archives fails once more when it closes one, and tells only of that."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class Reader(FileSystemReader):
    """Reads a checkpoint of tensors, and refuses anything else."""

    def read_metadata(self, *args: Any, **named: Any) -> Metadata:  # noqa: ARG002 (the base's; there is one metadata)
        """The `.metadata`. Raises CheckpointError for what is no description of tensors."""
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
            kept = dict(metadata.state_dict_metadata)
            if not all(isinstance(one, TensorStorageMetadata) for one in kept.values()):
                raise CheckpointError(f"{path} holds more than tensors; it was not written by this trainer")
        except (OSError, EOFError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {folder.REMEDY}") from error
        assert isinstance(metadata, Metadata), "it has a state_dict_metadata"
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and whole shapes of all that is kept."""
        kept = self.read_metadata().state_dict_metadata
        return {name: tuple(one.size) for name, one in kept.items() if isinstance(one, TensorStorageMetadata)}


class _Unpickler(pickle.Unpickler):
    """Only the classes that torch.distributed.checkpoint describes tensors with; a pickle may name any function."""

    def find_class(self, module: str, name: str) -> Any:
        """As the base class, for names on the list."""
        if (module, name) not in _DESCRIPTIONS and not (module == "torch" and _is_format(name)):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


_METADATA = "torch.distributed.checkpoint.metadata"
_DESCRIPTIONS = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath")),
}


def _is_format(name: str) -> bool:
    """Whether `torch.<name>` is a number format such as `torch.float32`."""
    return isinstance(getattr(torch, name, None), torch.dtype)


def save(state: State, writer: Writer, group: ProcessGroup | None) -> None:
    """Write and commit before returning, on all ranks. Raises CheckpointException."""
    _say_alone_on_purpose()
    state_dict_saver.save(by_part(state), storage_writer=writer, process_group=group, no_dist=group is None)


#: torch 2.11 closes a stager after its first use, and frees the memory that it has copied to; 2.13 keeps both.
_IS_STAGER_KEPT = TorchVersion(torch.__version__) >= "2.13"


class Behind:
    """Writes behind the training, in one mode. Where torch lets it, it keeps the memory that the state is copied to."""

    def __init__(self, mode: Mode, device: torch.device, group: ProcessGroup | None) -> None:
        on_gpu = device.type == "cuda"
        self._mode, self._group = mode, group
        self._writer: BaseProcess | None = None
        self._options = StagingOptions(
            use_pinned_memory=on_gpu,
            use_shared_memory=mode == "process",
            use_async_staging=False,
            use_non_blocking_copy=on_gpu,
        )
        self._stager = DefaultStager(self._options)

    def save(self, state: State, writer: Writer) -> Future[Any]:
        """Copy the state; on return its tensors may change. The future ends when the checkpoint is durable, or failed.

        The one before must have ended: its copy lies in the same memory.
        """
        _say_alone_on_purpose()
        if not _IS_STAGER_KEPT:
            self._stager = DefaultStager(self._options)
        kind = AsyncCheckpointerType.PROCESS if self._mode == "process" else AsyncCheckpointerType.THREAD
        # The first save starts threads, and the process; they inherit what is blocked here, and so outlive a SIGTERM
        # to the process group. One that comes meanwhile is delivered at the end. Python's tracker of shared memory
        # unblocks both signals when it starts, so it starts before.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            future = state_dict_saver.async_save(
                by_part(state),
                storage_writer=writer,
                process_group=self._group,
                async_checkpointer_type=kind,
                async_stager=self._stager,
                no_dist=self._group is None,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        assert isinstance(future, Future), "staging was not asynchronous"
        if self._mode == "process" and self._writer is None:
            self._writer = _await_writer(future)
        return future

    def fate(self, error: BaseException) -> str | None:
        """How the process that writes ended, if that is why a save failed with `error`."""
        if self._writer is None or isinstance(error, CheckpointException):  # which the writer itself has told
            return None
        self._writer.join(_DYING_S)
        code = self._writer.exitcode
        return None if code is None else f"process {self._writer.pid}, {describe_end(code)}"

    def close(self) -> None:
        """End the process that writes. Left alone it ends too, with a traceback about its trainer's end."""
        if self._writer is not None:
            self._writer.kill()
            self._writer.join()


def _await_writer(future: Future[Any]) -> BaseProcess | None:
    """The process that torch starts for the first save, in a thread of its own: a few milliseconds later.

    Its handle tells how it ended; torch's error does not, when it comes before the kernel has reaped the process.
    """
    while not future.done():
        for child in multiprocessing.active_children():
            if isinstance(child, SpawnProcess):  # loader workers are forked
                return child
        time.sleep(0.001)
    return None


def load(state: State, reader: Reader, group: ProcessGroup | None) -> None:
    """Fill the tensors of a state from a checkpoint, each rank its own parts. Raises CheckpointException."""
    _say_alone_on_purpose()
    state_dict_loader.load(by_part(state), storage_reader=reader, process_group=group, no_dist=group is None)


def open_group(mode: Mode, world: int, timeout_s: int) -> ProcessGroup | None:
    """The group in which ranks agree on checkpoints; its messages never meet the training's. None for one process.

    The writing process of `process` needs a group even of one, because torch starts it from one.
    """
    if world == 1 and mode == "thread":
        return None
    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        alone = dist.HashStore()  # type: ignore[attr-defined]  # public, though its module does not say so
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
    limit = timedelta(seconds=timeout_s)
    group: ProcessGroup = dist.new_group(backend="gloo", timeout=limit)  # the ranks' own, beside what they train with
    return group


def _say_alone_on_purpose() -> None:
    """One process saves without a group because it needs none: torch's warning that there is none says nothing."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

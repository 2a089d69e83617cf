"""How does a run survive its end? Atomic checkpoints: a directory is either complete under its name or not there.

`out_dir/checkpoints/step-00000050/` holds `state.pt` (tensors) and `meta.json` (step, data position, semantics, size
and CRC-32 of the state). It is written under another name, forced to disk and renamed, so a kill at any instant leaves
the previous checkpoint as the newest. State is replicated: rank 0 writes, every rank reads, on any number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdahl_trainer import config as configs
from amdahl_trainer.config import Config
from amdahl_trainer.errors import ConfigError, TrainerError

FORMAT = "amdahl.ckpt/1"
PREFIX = "step-"
DRAFT = ".draft-"

#: What is saved: names to tensors and plain values, nested.
State = dict[str, Any]


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


class CheckpointError(ConfigError):
    """A checkpoint cannot be read, or belongs to another run."""


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """The tensors of a run, not copied. The generators' state is rank 0's; other ranks are seeded at start."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": generators}


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Put a loaded state into place."""
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint does not fit this model: {str(error).splitlines()[0]}") from error
    if rank == 0:
        torch.set_rng_state(state["rng"]["cpu"])
        if torch.cuda.is_available() and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"])


class Checkpoints:
    """The checkpoints of one output directory, written by the one rank that owns this object."""

    def __init__(self, config: Config, world: int) -> None:
        """Sweep drafts that a killed process left behind."""
        self._home = directory(config)
        self._config = config
        self._world = world
        self._writing: threading.Thread | None = None
        self._written: Written | None = None
        self._failure: OSError | None = None
        for draft in self._home.glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)

    def save(self, state: State, progress: Progress, asynchronous: bool) -> None:
        """Save; on return the caller may change the tensors.

        Asynchronously, the state is copied, and a thread writes it. There is one such thread: a save that comes before
        it has finished waits for it. `finished` says when the checkpoint is durable.

        Raises:
            TrainerError: writing failed, this time or in the thread before.
        """
        begun_ns = time.monotonic_ns()
        self._join()
        if not asynchronous:
            self._write(state, progress)
            self._raise_failure()
            return
        copied = _copy(state)
        block_ns = time.monotonic_ns() - begun_ns

        def write_behind() -> None:
            self._write(copied, progress)
            self._written = Written(progress.step, block_ns, time.monotonic_ns() - begun_ns)

        self._writing = threading.Thread(target=write_behind, name="amdahl-checkpoint")
        self._writing.start()

    def finished(self, wait: bool = False) -> Written | None:
        """The checkpoint written in the background that became durable since the last call, if any.

        Raises:
            TrainerError: writing failed.
        """
        if self._writing is not None and (wait or not self._writing.is_alive()):
            self._join()
        self._raise_failure()
        written = None
        if self._writing is None:
            written, self._written = self._written, None
        return written

    def _join(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise TrainerError(f"checkpoint could not be written to {self._home}: {self._failure}") from self._failure

    def _write(self, state: State, progress: Progress) -> None:
        try:
            write(self._home, state, progress, self._config, self._world)
            retain(self._home, self._config.checkpoint.keep)
        except OSError as error:
            self._failure = error


def directory(config: Config) -> Path:
    """Where a run's checkpoints are."""
    return Path(config.run.out_dir) / "checkpoints"


def write(home: Path, state: State, progress: Progress, config: Config, world: int) -> Path:
    """Write one checkpoint so that it appears whole. Raises OSError."""
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"{PREFIX}{progress.step:08d}"
    draft = home / f"{DRAFT}{target.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    torch.save(state, draft / "state.pt")
    meta = {
        "format": FORMAT,
        "step": progress.step,
        "position": progress.position,
        "world": world,
        "bytes": (draft / "state.pt").stat().st_size,
        "crc32": _crc32(draft / "state.pt"),
        "semantics_hash": configs.semantics_hash(config),
        "semantics": configs.semantics(config),
        "config": configs.flatten(config),
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for path in (draft / "state.pt", draft / "meta.json", draft):
        _force(path)
    if target.exists():  # the same step again, after a resume from an earlier one
        shutil.rmtree(target)
    draft.rename(target)
    _force(home)
    return target


def retain(home: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in complete(home)[:-keep]:
        # Renamed first: a checkpoint that is being deleted must not look complete.
        doomed = old.with_name(f"{DRAFT}{old.name}-{os.getpid()}")
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def complete(home: Path) -> list[Path]:
    """The checkpoints in a directory, oldest first."""
    return sorted(path for path in home.glob(f"{PREFIX}*") if path.is_dir())


def find(config: Config) -> Path | None:
    """The checkpoint to resume from, by `checkpoint.resume`. Raises CheckpointError if a named one is not there."""
    wanted = config.checkpoint.resume
    if wanted == "none":
        return None
    if wanted == "auto":
        found = complete(directory(config))
        return found[-1] if found else None
    if not (Path(wanted) / "meta.json").is_file():
        raise CheckpointError(f"checkpoint.resume: {wanted} is no checkpoint directory (it has no meta.json)")
    return Path(wanted)


def read(path: Path, config: Config) -> tuple[State, Progress]:
    """Load a checkpoint on the CPU after checking that it is whole and that it trains the same thing.

    Raises:
        CheckpointError: with what is wrong and what to do.
    """
    meta = _read_meta(path)
    _check_semantics(path, meta["semantics"], config)
    file = path / "state.pt"
    size = file.stat().st_size if file.is_file() else 0
    remedy = "delete this directory to resume from the one before"
    if size != meta["bytes"]:
        raise CheckpointError(
            f"{path} is truncated: state.pt has {size} bytes, meta.json says {meta['bytes']}; {remedy}"
        )
    if _crc32(file) != meta["crc32"]:
        raise CheckpointError(f"{path} is damaged: state.pt does not have the CRC-32 of meta.json; {remedy}")
    state: State = torch.load(file, map_location="cpu", weights_only=True)
    return state, Progress(int(meta["step"]), int(meta["position"]))


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: meta.json cannot be read ({error}); delete this directory") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this trainer: meta.json does not say format {FORMAT!r}")
    return meta


def _check_semantics(path: Path, theirs: Mapping[str, object], config: Config) -> None:
    ours = configs.semantics(config)
    changed = [f"{name} {theirs.get(name)!r} -> {value!r}" for name, value in ours.items() if theirs.get(name) != value]
    if changed and not config.checkpoint.allow_semantics_change:
        raise CheckpointError(
            f"{path} was trained differently: {', '.join(changed[:5])}; set another run.out_dir, or "
            "checkpoint.allow_semantics_change to go on regardless"
        )


def _copy(value: Any) -> Any:
    """A deep copy on the CPU, so that training may go on while it is written."""
    return _map_tensors(value, lambda tensor: tensor.detach().to("cpu", copy=True))


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map_tensors(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, change) for item in value)
    return value


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _force(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""How long do checkpoints block the training thread, and when are they durable?

Covers `torch.save`, `torch.distributed.checkpoint` and `safetensors.torch`, and what is done with the files they wrote:
flushed, renamed, copied, the oldest removed. Files written without a step in between count as one checkpoint. A file
that another thread writes blocks nobody: it is an asynchronous save.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import threading
import time
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from amdahl_probe.guarding import guarded
from amdahl_probe.hook import ImportWatcher
from amdahl_probe.probe import Probe
from amdahl_probe.standin import replace
from amdahl_probe.written import Written

#: Says of a call's positional and named arguments whether the call belongs to the checkpoint.
Belongs = Callable[[Sequence[Any], Mapping[str, Any]], bool]


class Savers:
    """Times the functions that save. One saver calling another, in its own thread or in one it starts, is one save."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._local = threading.local()
        self._in_flight = 0
        self.written = Written()

    def time_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A save that has written when it returns."""

        @functools.wraps(original)
        def save(*args: Any, **kwargs: Any) -> Any:
            is_mine = self.probe.ledger.is_mine()
            if self._is_inside() or (self._in_flight and not is_mine):
                return original(*args, **kwargs)
            begun_ns = time.monotonic_ns()
            with self._inside():
                result = original(*args, **kwargs)
            if is_mine:
                self.note_written(args, kwargs)
            self.probe.count_save(time.monotonic_ns() - begun_ns, is_mine)
            return result

        return save

    @guarded
    def note_written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A call of the training thread has written: remember where to, until the next step."""
        if not self.probe.is_saving():
            self.written.clear()
        self.written.add(args, kwargs)

    @guarded
    def is_part(self, belongs: Optional[Belongs], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call of the training thread belongs to the checkpoint written since the last step."""
        return self.probe.is_saving() and (belongs is None or belongs(args, kwargs))

    def time_part(self, original: Callable[..., Any], belongs: Optional[Belongs] = None) -> Callable[..., Any]:
        """What may be the end of a save: for a flush, any after it; else what `belongs` says. Others are not ours."""
        timed = self.time_save(original)

        @functools.wraps(original)
        def part(*args: Any, **kwargs: Any) -> Any:
            return (timed if self.is_part(belongs, args, kwargs) else original)(*args, **kwargs)

        return part

    def time_async_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A save that returns a future (or, in newer versions, an object with one), and writes behind it."""

        @functools.wraps(original)
        def async_save(*args: Any, **kwargs: Any) -> Any:
            begun_ns = time.monotonic_ns()
            self._in_flight += 1
            try:
                with self._inside():
                    result = original(*args, **kwargs)
            except BaseException:
                self._in_flight -= 1
                raise
            finish = self.probe.count_async_save(time.monotonic_ns() - begun_ns)

            def note(_: Any) -> None:
                self._in_flight -= 1
                if finish is not None:
                    finish(time.monotonic_ns() - begun_ns)

            future = getattr(result, "upload_completion", result)
            if hasattr(future, "add_done_callback"):
                future.add_done_callback(note)
            return result

        return async_save

    def time_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A load, which in the startup restores the run."""

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            begun_ns = time.monotonic_ns()
            result = original(*args, **kwargs)
            self.probe.add_startup("restore", time.monotonic_ns() - begun_ns)
            return result

        return load

    def _is_inside(self) -> bool:
        return bool(getattr(self._local, "depth", 0))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        span = self.probe.enter("checkpoint")
        try:
            yield
        finally:
            self.probe.leave(span)
            self._local.depth -= 1


def install(probe: Probe, torch: Any, watcher: ImportWatcher) -> None:
    """Patch what is there, and the rest when it is imported."""
    savers = Savers(probe)
    replace(torch, "save", savers.time_save, torch.serialization)
    replace(torch, "load", savers.time_load, torch.serialization)
    _patch_files(savers)

    def install_distributed(module: ModuleType) -> None:
        try:
            _patch_distributed(savers, module)
        except Exception as error:
            probe.disable(f"torch.distributed.checkpoint: {error!r}")

    def install_safetensors(module: ModuleType) -> None:
        for name in ("save_file", "save_model"):
            replace(module, name, savers.time_save, module)

    watcher.call_after("torch.distributed.checkpoint", install_distributed)
    watcher.call_after("safetensors.torch", install_safetensors)


def _patch_files(savers: Savers) -> None:
    written = savers.written
    accessor = getattr(pathlib, "_NormalAccessor", os)  # before Python 3.11, `Path` keeps its own references
    for name in ("fsync", "fdatasync"):
        replace(os, name, savers.time_part, os)
    for module, names, belongs in (
        (os, ("rename", "replace"), written.holds_source),
        (shutil, ("move", "copyfile"), written.holds_source),
        (os, ("remove", "unlink"), written.is_beside_file),
        (shutil, ("rmtree",), written.is_beside_directory),
    ):
        for name in names:
            replace(module, name, functools.partial(savers.time_part, belongs=belongs), accessor)


def _patch_distributed(savers: Savers, module: Any) -> None:
    saver = getattr(module, "state_dict_saver", module)
    loader = getattr(module, "state_dict_loader", module)
    replace(module, "async_save", savers.time_async_save, saver)
    for name in ("save", "save_state_dict"):
        replace(module, name, savers.time_save, saver)
    for name in ("load", "load_state_dict"):
        replace(module, name, savers.time_load, loader)

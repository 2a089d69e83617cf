"""How long do checkpoints block the training thread, and when are they durable?

Covers `torch.save`, `torch.distributed.checkpoint` and `safetensors.torch`. Files written without a batch in between
count as one checkpoint. A file that another thread writes blocks nobody: it is an asynchronous save.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Callable, Iterator

from amdahl_probe.hook import ImportWatcher
from amdahl_probe.instrument import Probe


class Savers:
    """Times the functions that save. One saver calling another, in its own thread or in one it starts, is one save."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._local = threading.local()
        self._in_flight = 0

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
            self.probe.count_save(time.monotonic_ns() - begun_ns, is_mine)
            return result

        return save

    def time_flush(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Waiting for the disk right after a save belongs to it; any other flush is none of ours."""
        timed = self.time_save(original)

        @functools.wraps(original)
        def flush(*args: Any, **kwargs: Any) -> Any:
            return (timed if self.probe.is_saving() else original)(*args, **kwargs)

        return flush

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
    _replace(torch, "save", savers.time_save, torch.serialization)
    _replace(torch, "load", savers.time_load, torch.serialization)
    _replace(os, "fsync", savers.time_flush, os)

    def install_distributed(module: ModuleType) -> None:
        try:
            _patch_distributed(savers, module)
        except Exception as error:
            probe.disable(f"torch.distributed.checkpoint: {error!r}")

    def install_safetensors(module: ModuleType) -> None:
        for name in ("save_file", "save_model"):
            _replace(module, name, savers.time_save, module)

    watcher.call_after("torch.distributed.checkpoint", install_distributed)
    watcher.call_after("safetensors.torch", install_safetensors)


def _patch_distributed(savers: Savers, module: Any) -> None:
    saver = getattr(module, "state_dict_saver", module)
    loader = getattr(module, "state_dict_loader", module)
    _replace(module, "async_save", savers.time_async_save, saver)
    for name in ("save", "save_state_dict"):
        _replace(module, name, savers.time_save, saver)
    for name in ("load", "load_state_dict"):
        _replace(module, name, savers.time_load, loader)


def _replace(module: Any, name: str, wrap: Callable[[Any], Any], inner: Any) -> None:
    """Replace a function under its public name and in the module that defines it; a version may lack it."""
    original = getattr(module, name, None)
    if original is None:
        return
    replacement = wrap(original)
    setattr(module, name, replacement)
    if getattr(inner, name, None) is original:
        setattr(inner, name, replacement)

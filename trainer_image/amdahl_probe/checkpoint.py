"""How long do checkpoints block the training thread, and when are they durable?

Covers `torch.save`, `torch.distributed.checkpoint` and `safetensors.torch`. Files written without a batch in between
count as one checkpoint. A file that another thread writes blocks nobody: it is an asynchronous save.
"""

from __future__ import annotations

import functools
import threading
import time
from types import ModuleType
from typing import Any, Callable

from amdahl_probe.hook import ImportWatcher
from amdahl_probe.instrument import Probe


def install(probe: Probe, torch: Any, watcher: ImportWatcher) -> None:
    """Patch what is there, and the rest when it is imported."""
    _replace(torch, "save", _timed_save(probe, torch.save), torch.serialization)
    _replace(torch, "load", _timed_load(probe, torch.load), torch.serialization)

    def install_distributed(module: ModuleType) -> None:
        try:
            _patch_distributed(probe, module)
        except Exception as error:
            probe.disable(f"torch.distributed.checkpoint: {error!r}")

    def install_safetensors(module: ModuleType) -> None:
        for name in ("save_file", "save_model"):
            if hasattr(module, name):
                setattr(module, name, _timed_save(probe, getattr(module, name)))

    watcher.call_after("torch.distributed.checkpoint", install_distributed)
    watcher.call_after("safetensors.torch", install_safetensors)


def _patch_distributed(probe: Probe, module: Any) -> None:
    inner = getattr(module, "state_dict_saver", module)
    for name in ("save", "save_state_dict"):
        if hasattr(module, name):
            _replace(module, name, _timed_save(probe, getattr(module, name)), inner)
    if hasattr(module, "async_save"):
        _replace(module, "async_save", _timed_async_save(probe, module.async_save), inner)
    loader = getattr(module, "state_dict_loader", module)
    for name in ("load", "load_state_dict"):
        if hasattr(module, name):
            _replace(module, name, _timed_load(probe, getattr(module, name)), loader)


def _replace(module: Any, name: str, replacement: Any, inner: Any) -> None:
    """Replace a function under its public name and in the module that defines it."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    if getattr(inner, name, None) is original:
        setattr(inner, name, replacement)


def _timed_save(probe: Probe, original: Callable[..., Any]) -> Callable[..., Any]:
    inside = threading.local()

    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:
        if getattr(inside, "depth", 0):  # one saver calling another is one save
            return original(*args, **kwargs)
        inside.depth = 1
        begun_ns = time.monotonic_ns()
        span = probe.enter("checkpoint")
        try:
            result = original(*args, **kwargs)
        finally:
            inside.depth = 0
            probe.leave(span)
        probe.count_save(time.monotonic_ns() - begun_ns, probe.ledger.is_mine())
        return result

    return save


def _timed_async_save(probe: Probe, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def async_save(*args: Any, **kwargs: Any) -> Any:
        begun_ns = time.monotonic_ns()
        span = probe.enter("checkpoint")
        try:
            result = original(*args, **kwargs)
        finally:
            probe.leave(span)
        finish = probe.count_async_save(time.monotonic_ns() - begun_ns)
        future = getattr(result, "upload_completion", result)
        if finish is not None and hasattr(future, "add_done_callback"):
            future.add_done_callback(lambda _: finish(time.monotonic_ns() - begun_ns))
        return result

    return async_save


def _timed_load(probe: Probe, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        begun_ns = time.monotonic_ns()
        result = original(*args, **kwargs)
        probe.add_startup("restore", time.monotonic_ns() - begun_ns)
        return result

    return load

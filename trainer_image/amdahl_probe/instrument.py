"""How does the probe get into a script? Through patches on torch, made when the script has just imported it.

What the patches see is told to `probe.Probe`, which knows the telemetry contract.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from amdahl_probe import checkpoint, comm, forwards, loader, optim, trial
from amdahl_probe.hook import ImportWatcher
from amdahl_probe.probe import Probe
from amdahl_probe.settings import Settings


def install(torch: ModuleType, watcher: ImportWatcher) -> Probe:
    """Patch torch, which has just been imported, and return its probe.

    Raises ValueError for a malformed environment, before any patch.
    """
    probe = Probe(torch, Settings.from_env(os.environ))
    if probe.settings.seed is not None:
        trial.seed_generators(torch, probe.settings.seed)
    os.register_at_fork(after_in_child=probe.forked)
    try:
        _patch(probe, torch, watcher)
    except Exception as error:  # another torch than we know: patches already made let everything through
        probe.disable(f"patching torch: {error!r}")
    watcher.call_after("torch._dynamo", _leave_untraced)
    return probe


def _patch(probe: Probe, torch: Any, watcher: ImportWatcher) -> None:
    loaders = loader.install(probe, torch)
    if probe.settings.is_recording:
        optim.install(probe, torch, loaders)
        forwards.install(probe.forwards, watcher)
        comm.install(probe, torch)
        checkpoint.install(probe, torch, watcher)


def _leave_untraced(_: ModuleType) -> None:
    """Tell the compiler to run the probe's functions as they are, where this torch has a way to be told."""
    try:
        from torch._dynamo import trace_rules

        trace_rules.add("amdahl_probe")
    except Exception:  # an older torch: it breaks the graph at our functions, which is correct and slower
        return

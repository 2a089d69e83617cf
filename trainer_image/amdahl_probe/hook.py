"""When does the probe act? At the end of `import torch`, never before, and not at all in a process that lacks it.

Kept small: it runs at the start of every Python process below the job's command.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence

Callback = Callable[[ModuleType], None]


class ImportWatcher:
    """A finder that finds nothing itself: it lets callbacks run after a module has been executed.

    The module's own loader stays in place, since `inspect` and `importlib.resources` ask for it; only that one
    loader's `exec_module` is wrapped, and unwrapped when it runs.
    """

    def __init__(self) -> None:
        self._callbacks: Dict[str, List[Callback]] = {}

    def call_after(self, name: str, callback: Callback) -> None:
        """Call `callback(module)` once `name` is imported; at once if it already is. The callback must not raise."""
        if name in sys.modules:
            callback(sys.modules[name])
        else:
            self._callbacks.setdefault(name, []).append(callback)

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        """The spec the other finders give, its loader prepared; None for all modules nobody waits for."""
        if name not in self._callbacks:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: Optional[ModuleSpec] = find(name, path, target) if find else None
            if spec is not None:
                self._prepare(name, spec.loader)
                return spec
        return None

    def _prepare(self, name: str, loader: Any) -> None:
        if getattr(loader, "name", None) != name:  # a loader shared by many modules (zip) must not be touched
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            execute(module)
            for callback in self._callbacks.pop(name, []):
                callback(module)

        loader.exec_module = exec_module


def enter() -> None:
    """Start watching for torch, if this process was told anything at all."""
    if not any(name.startswith("AMDAHL_") for name in os.environ):
        return
    if os.environ.get("AMDAHL_TRIAL") == "1":
        from amdahl_probe import trial

        os.environ.update(trial.TRACKERS_OFF)
    watcher = ImportWatcher()
    sys.meta_path.insert(0, watcher)

    def install(torch: ModuleType) -> None:
        try:
            from amdahl_probe import instrument

            instrument.install(torch, watcher)
        except Exception as error:
            sys.stderr.write(f"amdahl_probe: off: {error!r}\n")

    watcher.call_after("torch", install)

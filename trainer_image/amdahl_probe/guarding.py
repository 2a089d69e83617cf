"""How does a failure of the probe stay in the probe?

[P] Every function that the training's calls pass through is `guarded`: the first one that fails turns the probe off,
which is said once, and the training goes on.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, Optional, TypeVar

from amdahl_probe.emit import MAX_TEXT

Result = TypeVar("Result")


class Switch:
    """On until something fails, then off for good."""

    def __init__(self) -> None:
        self.on = True

    def disable(self, why: str) -> None:
        """Turn the probe off, say so once, and never raise."""
        if not self.on:
            return
        self.on = False
        try:
            sys.stderr.write(f"amdahl_probe: off, the script goes on: {why[:MAX_TEXT]}\n")
            self.note_disabled(why)
        except Exception:  # nobody is left to be told
            return

    def note_disabled(self, why: str) -> None:
        """Take down why; only called once."""


def guarded(method: Callable[..., Result]) -> Callable[..., Optional[Result]]:
    """Run a method of the probe, or of an object that has one, only while it is on; a failure turns it off."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Optional[Result]:
        probe: Switch = getattr(self, "probe", self)
        if not probe.on:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            probe.disable(f"{method.__name__}: {type(error).__name__}: {error}")
            return None

    return run

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
        #: Under the name by which all objects that are guarded know it.
        self.probe = self

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
    """Run a method of the probe, or of an object that has one, only while it is on; a failure turns it off.

    For the outermost calls alone: what they call needs no guard of its own. It runs at every hook of every step, so it
    takes no named arguments and asks for nothing that may be missing: both cost more than the rest of it.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any) -> Optional[Result]:
        if not self.probe.on:
            return None
        try:
            return method(self, *args)
        except Exception as error:
            self.probe.disable(f"{method.__name__}: {type(error).__name__}: {error}")
            return None

    return run

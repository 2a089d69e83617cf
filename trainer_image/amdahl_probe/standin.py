"""How is a function replaced so that nobody can tell? By one that answers to the same names, and pickles as itself."""

from __future__ import annotations

import functools
import os
from types import FunctionType
from typing import Any, Callable

#: Where `os` lists the builtins that take a descriptor; callers ask whether the function they hold is in them.
SUPPORTS = ("supports_dir_fd", "supports_effective_ids", "supports_fd", "supports_follow_symlinks")


class StandIn:
    """Stands for a builtin: unlike a function of Python it does not become a method where a class keeps it."""

    def __init__(self, call: Callable[..., Any], original: Any, module: str, name: str) -> None:
        functools.update_wrapper(self, original)
        self.__module__, self.__name__ = module, name  # where it is found; the builtin's own module keeps the builtin
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the replacement does."""
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["__wrapped__"], name)

    def __reduce__(self) -> str:
        """Pickle as the name that this object has replaced."""
        return self.__name__

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def replace(module: Any, name: str, wrap: Callable[[Any], Callable[..., Any]], inner: Any) -> None:
    """Replace a function under its public name and in the module (or class) that defines it; a version may lack it."""
    original = getattr(module, name, None)
    if original is None:
        return
    replacement: Any = wrap(original)
    if not isinstance(original, FunctionType):
        replacement = StandIn(replacement, original, module.__name__, name)
        for supports in (getattr(os, listed) for listed in SUPPORTS):
            if original in supports:
                supports.add(replacement)
    setattr(module, name, replacement)
    if getattr(inner, name, None) is original:
        setattr(inner, name, replacement)

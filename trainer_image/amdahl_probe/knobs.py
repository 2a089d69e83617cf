"""Which loader settings does this process use? Pure: environment and the script's own arguments in, arguments out."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional

from amdahl_probe.emit import Value


class LoaderKnobs(NamedTuple):
    """Loader knobs the environment asks for; None leaves the script's own value."""

    workers: Optional[int] = None
    prefetch: Optional[int] = None
    pin: Optional[bool] = None
    persistent: Optional[bool] = None


class Applied(NamedTuple):
    """The loader's new arguments, and what happened to each knob (by its name in the job's spec)."""

    arguments: Dict[str, Any]
    applied: Dict[str, Value]
    ignored: Dict[str, str]


def parse(env: Mapping[str, str]) -> LoaderKnobs:
    """Read the four loader knobs. Raises ValueError naming the variable, its value and what it may be."""
    return LoaderKnobs(
        workers=_whole(env, "AMDAHL_DATALOADER_WORKERS", 0, 1024),
        prefetch=_whole(env, "AMDAHL_PREFETCH_FACTOR", 1, 1024),
        pin=_switch(env, "AMDAHL_PIN_MEMORY"),
        persistent=_switch(env, "AMDAHL_PERSISTENT_WORKERS"),
    )


def apply(knobs: LoaderKnobs, given: Mapping[str, Any], has_cuda: bool) -> Applied:
    """Put the knobs into the arguments a script gave its DataLoader, within torch's rules.

    `prefetch_factor`, `persistent_workers`, `timeout` and `multiprocessing_context` are legal with workers only: where
    a knob takes the workers away, they go too; where a knob brings workers, torch's defaults hold.
    """
    arguments, applied, ignored = dict(given), {}, {}  # type: Dict[str, Any], Dict[str, Value], Dict[str, str]
    if knobs.workers is not None:
        arguments["num_workers"] = applied["dataloaderWorkers"] = knobs.workers
    has_workers = bool(arguments.get("num_workers", 0))
    if knobs.workers == 0:
        for name in ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"):
            arguments.pop(name, None)
    wanted = (
        ("prefetchFactor", "prefetch_factor", knobs.prefetch),
        ("persistentWorkers", "persistent_workers", knobs.persistent),
    )
    for knob, argument, value in wanted:
        if value is None:
            continue
        if has_workers:
            arguments[argument] = applied[knob] = value
        elif value:
            ignored[knob] = "the loader has no workers"
    if knobs.pin and not has_cuda:
        ignored["pinMemory"] = "no CUDA device"
    elif knobs.pin is not None:
        arguments["pin_memory"] = applied["pinMemory"] = knobs.pin
    return Applied(arguments, applied, ignored)


def _whole(env: Mapping[str, str], name: str, least: int, most: int) -> Optional[int]:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"{name}={text!r}: give a whole number from {least} to {most}")
    return int(text)


def _switch(env: Mapping[str, str], name: str) -> Optional[bool]:
    number = _whole(env, name, 0, 1)
    return None if number is None else bool(number)

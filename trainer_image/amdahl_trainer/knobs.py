"""Which settings may change while a run goes on, and how is a change told? The knobs of docs/telemetry.md.

Knobs come from the environment at start and from `AMDAHL_KNOBS_FILE` later. Those of the step itself (passes,
recomputing, gradient messages) are taken at start alone: `start_knobs.py`. A knob that cannot be applied is named with
the reason and changes nothing. Nothing here changes what is trained; a trial's window alone may move in the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from amdahl_trainer import start_knobs
from amdahl_trainer.config import Config
from amdahl_trainer.data.loader import Settings
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.peers import Place
from amdahl_trainer.start_knobs import switch, whole

Value = bool | int | float | str | None

#: Environment variable of each knob.
ENVIRON = {
    "dataloaderWorkers": "AMDAHL_DATALOADER_WORKERS",
    "prefetchFactor": "AMDAHL_PREFETCH_FACTOR",
    "pinMemory": "AMDAHL_PIN_MEMORY",
    "persistentWorkers": "AMDAHL_PERSISTENT_WORKERS",
    "checkpointEverySteps": "AMDAHL_CHECKPOINT_EVERY_STEPS",
    "asyncCheckpoint": "AMDAHL_ASYNC_CHECKPOINT",
    "gpusPerReplica": "AMDAHL_GPUS_PER_REPLICA",
    "replicas": "AMDAHL_REPLICAS",
    "microBatch": "AMDAHL_MICRO_BATCH",
    "bucketMb": "AMDAHL_BUCKET_MB",
    "compile": "AMDAHL_COMPILE",
    "activationCheckpointing": "AMDAHL_ACTIVATION_CHECKPOINTING",
    "dataParallel": "AMDAHL_DATA_PARALLEL",
}

#: More loader processes than this is a mistake whatever the machine.
MAX_WORKERS = 256

#: Longest knob file read, bytes.
MAX_FILE = 65_536


@dataclass(frozen=True)
class Knobs:
    """The settings that can be switched at a step boundary, and what was fixed at start, by the knobs' names."""

    loader: Settings
    checkpoint_every: int
    async_checkpoint: bool
    fixed: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Config) -> Knobs:
        """What the configuration says."""
        data = config.data
        return cls(
            Settings(data.num_workers, data.prefetch_factor, data.pin_memory),
            config.checkpoint.every_steps,
            config.checkpoint.async_save,
            start_knobs.present(config),
        )


@dataclass(frozen=True)
class Window:
    """Where a trial's window reads, and at what cadence it saves if that is measured."""

    offset: int | None
    seed: int | None
    save_every: int | None


@dataclass(frozen=True)
class Update:
    """The content of a knob file."""

    seq: int
    values: Mapping[str, object]
    window: Window | None


@dataclass(frozen=True)
class Outcome:
    """Knobs after a change: what took effect, and what did not for which reason."""

    knobs: Knobs
    applied: Mapping[str, Value]
    ignored: Mapping[str, str]


def apply(values: Mapping[str, object], knobs: Knobs, place: Place, *, has_gpu: bool) -> Outcome:
    """Change `knobs` by the named values, each on its own."""
    applied: dict[str, Value] = {}
    ignored: dict[str, str] = {}
    for name, raw in values.items():
        try:
            knobs, applied[name] = _set(name, raw, knobs, place, has_gpu)
        except ValueError as reason:
            ignored[name] = str(reason)
    return Outcome(knobs, applied, ignored)


def _set(name: str, raw: object, knobs: Knobs, place: Place, has_gpu: bool) -> tuple[Knobs, Value]:
    match name:
        case "dataloaderWorkers":
            workers = whole(raw, 0, MAX_WORKERS)
            return replace(knobs, loader=replace(knobs.loader, workers=workers)), workers
        case "prefetchFactor":
            factor = whole(raw, 1, 1024)
            return replace(knobs, loader=replace(knobs.loader, prefetch_factor=factor)), factor
        case "pinMemory":
            pin = switch(raw)
            if pin and not has_gpu:
                raise ValueError("there is no GPU to pin memory for")
            return replace(knobs, loader=replace(knobs.loader, pin_memory=pin)), pin
        case "checkpointEverySteps":
            every = whole(raw, 0, 1 << 40)
            return replace(knobs, checkpoint_every=every), every
        case "asyncCheckpoint":
            asynchronous = switch(raw)
            return replace(knobs, async_checkpoint=asynchronous), asynchronous
    return knobs, _compare(name, raw, knobs, place)


def _compare(name: str, raw: object, knobs: Knobs, place: Place) -> Value:
    """A knob that a running process cannot change is applied if it says what already is."""
    if name in knobs.fixed:
        value = start_knobs.read(name, raw)
        if value != knobs.fixed[name]:
            raise ValueError(f"it is {knobs.fixed[name]} while running; a change needs a restart")
        return value
    match name:
        case "persistentWorkers":
            if not switch(raw):
                raise ValueError("workers always persist here: the loader has no epochs")
            return True
        case "gpusPerReplica":
            return _fixed(raw, place.local_world, "start with launch --nproc $(AMDAHL_GPUS_PER_REPLICA)")
        case "replicas":
            return _fixed(raw, place.world // place.local_world, "it changes with the number of pods")
    raise ValueError("there is no such knob")


def _fixed(raw: object, present: int, remedy: str) -> int:
    wanted = whole(raw, 1, 1 << 20)
    if wanted != present:
        raise ValueError(f"fixed at {present} while running; {remedy}")
    return wanted


def from_environ(environ: Mapping[str, str]) -> dict[str, object]:
    """Knob values that the environment sets."""
    return {knob: environ[name] for knob, name in ENVIRON.items() if environ.get(name, "") != ""}


def window_from_environ(environ: Mapping[str, str]) -> Window | None:
    """A trial's data offset and seed; None in an ordinary run, whatever the variables say. Raises ConfigError."""
    if environ.get("AMDAHL_TRIAL") != "1":
        return None
    found: dict[str, int | None] = {}
    for name in ("AMDAHL_DATA_OFFSET", "AMDAHL_SEED"):
        text = environ.get(name, "")
        try:
            found[name] = int(text) if text else None
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}; it must be a whole number") from error
    offset, seed = found["AMDAHL_DATA_OFFSET"], found["AMDAHL_SEED"]
    return None if offset is None and seed is None else Window(offset, seed, None)


def parse(text: str) -> Update | str:
    """The content of a knob file, or what is wrong with it."""
    try:
        content = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(content, dict):
        return "not an object"
    seq, values, window = content.get("seq"), content.get("knobs", {}), content.get("window")
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        return f"seq is {seq!r}; it must be a whole number"
    if not isinstance(values, dict):
        return "knobs is not an object"
    if window is None:
        return Update(seq, values, None)
    parsed = _parse_window(window)
    return parsed if isinstance(parsed, str) else Update(seq, values, parsed)


def _parse_window(window: object) -> Window | str:
    if not isinstance(window, dict):
        return "window is not an object"
    for name, low in (("offset", 0), ("seed", 0), ("save_every", 1)):
        value = window.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            return f"window.{name} is {str(value)[:20]!r}; it must be a whole number of at least {low}"
    return Window(window.get("offset"), window.get("seed"), window.get("save_every"))


class KnobFile:
    """Notices when the knob file was replaced. Cheap enough for every step: one system call."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._seen: tuple[int, int, int] | Literal["never"] = "never"

    def poll(self) -> str | None:
        """The file's text if it is new, else None. A file that cannot be read is as good as none."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
            mark = (found.st_mtime_ns, found.st_ino, found.st_size)
            if mark == self._seen:
                return None
            self._seen = mark
            with self._path.open("rb") as file:
                return file.read(MAX_FILE).decode(errors="replace")
        except OSError:
            return None

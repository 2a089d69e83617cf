"""Which knobs are taken when a run starts, and what do they mean in the configuration?

The step itself is built once: size of a pass, recomputing, compiling, gradient messages, how ranks hold parameters. A
value that does not fit the run is named with the reason, and the configuration's own stands. So is a knob of which no
other value fits or would change anything: whoever looks for a better one need not try.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from amdahl_trainer import compiled, parallel
from amdahl_trainer import config as configs
from amdahl_trainer.config import Config, Scalar
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.peers import Place

#: A pass of more rows than this is a mistake whatever the machine.
MAX_ROWS = 65_536

#: Gradients of more MiB than this are never one message.
MAX_BUCKET_MB = 4096


@dataclass(frozen=True)
class Started:
    """A configuration with the knobs that it could take, and why it could not take the others."""

    config: Config
    ignored: Mapping[str, str]


@dataclass(frozen=True)
class _Knob:
    """The key that a knob sets, how its value is read, what the key's values are in the knob's words, and all of them.

    `values` is empty where there are too many to try.
    """

    key: str
    read: Callable[[object], Scalar]
    words: Mapping[Scalar, Scalar]
    values: Sequence[Scalar] = ()

    def to_key(self, value: Scalar) -> Scalar:
        """A knob's value in the configuration's words."""
        return self.words.get(value, value)

    def from_key(self, value: Scalar) -> Scalar:
        """The other way round."""
        return next((ours for ours, theirs in self.words.items() if theirs == value), value)


def take(config: Config, values: Mapping[str, object], place: Place, device: torch.device) -> Started:
    """The configuration under the knobs of `values` that are taken at start; other knobs are left alone.

    Each value is taken on its own where the run could be made with it: a pass must divide a rank's share, for one.
    """
    ignored: dict[str, str] = {}
    for name, knob in _KNOBS.items():
        if name not in values:
            continue
        try:
            wanted = _turn(config, knob, knob.read(values[name]), place)
            if name == "compile" and wanted.run.compile != "none":
                compiled.check(device)
        except (ValueError, ConfigError) as reason:
            ignored[name] = str(reason)
        else:
            config = wanted
    idle = {name: _find_bar(name, config, place) for name in _KNOBS if name in values and name not in ignored}
    return Started(config, ignored | {name: reason for name, reason in idle.items() if reason})


def _turn(config: Config, knob: _Knob, value: Scalar, place: Place) -> Config:
    """The configuration with another value of a knob, where a run could be made with it. Raises ConfigError."""
    wanted = configs.build(configs.flatten(config) | {knob.key: knob.to_key(value)})
    parallel.fit(wanted, place)
    return wanted


def _find_bar(name: str, config: Config, place: Place) -> str:
    """Why another value of a knob would be refused, or change nothing; empty where one is worth a try."""
    degrees, mode = parallel.fit(config, place), config.parallel.dp_mode
    if name in ("bucketMb", "dataParallel") and degrees.dp_cp == 1:
        return "gradients are summed over no other rank"
    if name == "bucketMb" and degrees.is_sharded(mode):
        return f"parallel.dp_mode {mode} does not send gradients in buckets"
    knob, bar = _KNOBS[name], ""
    for value in knob.values:
        if value == present(config)[name]:
            continue
        try:
            _turn(config, knob, value, place)
        except ConfigError as reason:
            bar = str(reason)
        else:
            return ""
    return bar


def present(config: Config) -> dict[str, Scalar]:
    """What is in force, by the knobs' names and in their words."""
    values = configs.flatten(config)
    return {name: knob.from_key(values[knob.key]) for name, knob in _KNOBS.items()}


def read(name: str, raw: object) -> Scalar:
    """A knob's value as a variable or a file writes it. Raises ValueError, saying what it may be."""
    return _KNOBS[name].read(raw)


def whole(raw: object, low: int, high: int) -> int:
    """A whole number within bounds. Raises ValueError, saying what it is instead."""
    try:
        value = int(raw) if isinstance(raw, str) else raw
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{str(raw)[:20]!r} is no whole number from {low} to {high}")
    return value


def switch(raw: object) -> bool:
    """On or off, as variables and files write it. Raises ValueError, saying what it is instead."""
    if raw in (True, 1, "1", "true"):
        return True
    if raw in (False, 0, "0", "false"):
        return False
    raise ValueError(f"{str(raw)[:20]!r} is neither 0 nor 1")


def _word(*words: str) -> Callable[[object], str]:
    def read_word(raw: object) -> str:
        if raw not in words:
            raise ValueError(f"{str(raw)[:20]!r} is none of {', '.join(words)}")
        return str(raw)

    return read_word


_KNOBS: Mapping[str, _Knob] = {
    "microBatch": _Knob("batch.micro_batch", lambda raw: whole(raw, 1, MAX_ROWS), {}),
    "bucketMb": _Knob("parallel.bucket_mb", lambda raw: whole(raw, 1, MAX_BUCKET_MB), {}),
    "compile": _Knob("run.compile", switch, {False: "none", True: "blocks"}, (False, True)),
    "activationCheckpointing": _Knob("memory.activation_checkpoint", _word("none", "block", "selective"), {}),
    "dataParallel": _Knob("parallel.dp_mode", _word("ddp", "fsdp"), {"fsdp": "fsdp2"}, ("ddp", "fsdp")),
}

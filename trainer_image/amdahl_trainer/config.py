"""What does this run do? Frozen values from file < environment < command line; an unknown key is an error.

The keys are declared in `sections.py`. Those that change the mathematics form the semantics hash: a checkpoint may only
be continued by a run that trains the same thing.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from amdahl_trainer.errors import ConfigError
from amdahl_trainer.fit import check_batch, check_data, check_model
from amdahl_trainer.sections import (
    Batch,
    Checkpoint,
    Data,
    Eval,
    Limits,
    Memory,
    Metrics,
    Model,
    Optim,
    Parallel,
    Precision,
    Run,
    Scalar,
)

ENV_PREFIX = "AMDAHL_TRAINER__"


@dataclass(frozen=True)
class Config:
    """A whole, checked configuration."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    batch: Batch = field(default_factory=Batch)
    optim: Optim = field(default_factory=Optim)
    precision: Precision = field(default_factory=Precision)
    parallel: Parallel = field(default_factory=Parallel)
    memory: Memory = field(default_factory=Memory)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    eval: Eval = field(default_factory=Eval)
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check each key's bounds and the keys that must fit one another."""
        for name, leaf, value in _walk(self):
            low, choices = leaf.metadata["low"], leaf.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}{_guess(value, choices)}")
            if not choices and not isinstance(value, str) and not value >= low:  # `not >=` refuses NaN as well
                raise ConfigError(f"{name} is {value}; the least legal value is {low:g}")
        check_model(self.model)
        check_data(self.data)

    @property
    def decay_steps(self) -> int:
        """Step at which the learning-rate schedule ends."""
        return self.optim.decay_steps or self.run.max_steps


def load(path: str | None, environ: Mapping[str, str], arguments: Sequence[str]) -> Config:
    """Merge defaults < YAML file < `AMDAHL_TRAINER__SECTION__KEY` < `--section.key value`. Raises ConfigError."""
    values: dict[str, Scalar] = {}
    if path is not None:
        values.update(_read_file(Path(path)))
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            values[_known(name.removeprefix(ENV_PREFIX).lower().replace("__", "."), f"environment {name}")] = text
    values.update(_read_arguments(arguments))
    return build(values)


def build(values: Mapping[str, Scalar]) -> Config:
    """A configuration from `section.key` values; the rest are defaults. Raises ConfigError."""
    sections: dict[str, dict[str, Scalar]] = {}
    for name, value in values.items():
        section, _, leaf = _known(name, "configuration").partition(".")
        sections.setdefault(section, {})[leaf] = _convert(name, value, declared(name))
    default = Config()
    changed = {name: dataclasses.replace(getattr(default, name), **leaves) for name, leaves in sections.items()}
    return dataclasses.replace(default, **changed)


def flatten(config: Config) -> dict[str, Scalar]:
    """`section.key` -> value, in declaration order."""
    return {name: value for name, _, value in _walk(config)}


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def semantics(config: Config) -> dict[str, Scalar]:
    """The keys that change what is trained, resolved. A schedule that stays constant has no end."""
    kept = {name: value for name, leaf, value in _walk(config) if leaf.metadata["maths"]}
    kept["optim.decay_steps"] = config.decay_steps
    if config.optim.schedule == "constant":
        del kept["optim.decay_steps"]
    return kept


def semantics_hash(config: Config) -> str:
    """16 hex digits over `semantics`."""
    text = json.dumps(semantics(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _walk(config: Config) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    for section in fields(config):
        part = getattr(config, section.name)
        for leaf in fields(part):
            yield f"{section.name}.{leaf.name}", leaf, getattr(part, leaf.name)


def _declared() -> dict[str, dataclasses.Field[Any]]:
    sections = (Run, Model, Data, Batch, Optim, Precision, Parallel, Memory, Checkpoint, Eval, Metrics, Limits)
    return {f"{section.__name__.lower()}.{leaf.name}": leaf for section in sections for leaf in fields(section)}


_DECLARED = _declared()


def declared(name: str) -> dataclasses.Field[Any]:
    """How a key is declared: its default, and its text, bounds and whether it changes the mathematics as metadata."""
    return _DECLARED[name]


def _known(name: str, where: str) -> str:
    if name not in _DECLARED:
        raise ConfigError(f"{where}: there is no key {name}{_guess(name, _DECLARED)}")
    return name


def _guess(wrong: object, legal: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(wrong), list(legal), n=1, cutoff=0.0)
    return f"; did you mean {near[0]}?" if near else ""


def _read_file(path: Path) -> dict[str, Scalar]:
    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(part, dict) for part in read.values()):
        raise ConfigError(f"--config {path}: must hold sections of keys, such as run: {{seed: 1}}")
    found = {f"{section}.{leaf}": value for section, part in read.items() for leaf, value in part.items()}
    return {_known(name, f"--config {path}"): value for name, value in found.items()}


def _read_arguments(arguments: Sequence[str]) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"command line: expected --section.key, found {flag!r}")
        _known(name, "command line")
        if not equals:
            if not rest:
                raise ConfigError(f"command line: --{name} needs a value")
            value = rest.pop(0)
        values[name] = value
    return values


def _convert(name: str, value: object, leaf: dataclasses.Field[Any]) -> Scalar:
    """The value in the type of the key's default; text is parsed as the environment and command line give it."""
    kind: type = type(leaf.default)
    wrong = ConfigError(f"{name} is {value!r}; it must be {_KIND_TEXT[kind]}")
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _SWITCH[str(value).lower()]
        if kind is str:
            return str(value)
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise wrong
        return kind(value)  # type: ignore[no-any-return]  # int or float, which the table of keys guarantees
    except (KeyError, ValueError, TypeError) as error:
        raise wrong from error


_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_KIND_TEXT = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


__all__ = [
    "Batch",
    "Checkpoint",
    "Config",
    "Data",
    "Eval",
    "Limits",
    "Memory",
    "Metrics",
    "Model",
    "Optim",
    "Parallel",
    "Precision",
    "Run",
    "Scalar",
    "build",
    "check_batch",
    "declared",
    "flatten",
    "load",
    "semantics",
    "semantics_hash",
    "to_yaml",
]

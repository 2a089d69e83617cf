"""What does this run do? Frozen values from file < environment < command line; an unknown key is an error.

Every key carries its text and whether it changes the mathematics (`maths=True`). Those that do form the semantics hash:
a checkpoint may only be continued by a run that trains the same thing. This file checks values one by one;
`check_batch` checks what depends on the number of processes.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from amdahl_trainer.errors import ConfigError

ENV_PREFIX = "AMDAHL_TRAINER__"

#: A value as YAML, an environment variable or the command line may give it.
Scalar = bool | int | float | str


def key(
    default: Scalar, text: str, *, maths: bool = False, low: float = -math.inf, choices: tuple[str, ...] = ()
) -> Any:
    """Declare a configuration key: default, one-line text, whether it changes the mathematics, and its bounds."""
    return field(default=default, metadata={"text": text, "maths": maths, "low": low, "choices": choices})


@dataclass(frozen=True)
class Run:
    """The run as a whole."""

    seed: int = key(1, "initial weights and order of samples", maths=True, low=0)
    max_steps: int = key(100, "optimizer steps in all, over every restart", low=1)
    out_dir: str = key("runs/trainer", "checkpoints and the resolved configuration go here")
    torch_threads: int = key(0, "threads of one torch operator on the CPU; 0 leaves torch's choice", low=0)
    gc_every: int = key(50, "steps between collections of Python's garbage, on all ranks at once", low=1)


@dataclass(frozen=True)
class Model:
    """The decoder."""

    n_layers: int = key(4, "blocks", maths=True, low=1)
    d_model: int = key(128, "width of the residual stream", maths=True, low=2)
    n_heads: int = key(4, "query heads; must divide d_model into an even head size", maths=True, low=1)
    n_kv_heads: int = key(2, "key and value heads; must divide n_heads", maths=True, low=1)
    d_ff: int = key(352, "hidden width of the SwiGLU", maths=True, low=1)
    vocab_size: int = key(320, "rows of the embedding; at least the tokenizer's 257", maths=True, low=257)
    rope_theta: float = key(10_000.0, "base of the rotary frequencies", maths=True, low=1.0)
    norm_eps: float = key(1e-5, "epsilon of RMSNorm", maths=True, low=0.0)
    tie_embeddings: bool = key(True, "the output head is the embedding matrix", maths=True)


@dataclass(frozen=True)
class Data:
    """Corpus, tokens and the loader."""

    corpus: str = key("pydocs", "the corpus; pydocs is Python's own documentation", maths=True, choices=("pydocs",))
    cache_dir: str = key("~/.cache/amdahl", "where corpus, merges and packed rows are built once")
    max_documents: int = key(0, "use only the first n documents; 0 uses all", maths=True, low=0)
    tokenizer: str = key("bytes", "bytes, or byte pairs learnt on the corpus", maths=True, choices=("bytes", "bpe"))
    tokenize: str = key("cached", "tokens from a file, or made again for each batch", choices=("cached", "on_the_fly"))
    seq_len: int = key(256, "tokens in a row", maths=True, low=64)
    doc_mask: bool = key(True, "tokens see only their own document", maths=True)
    num_workers: int = key(0, "loader processes a rank; 0 loads in the training process", low=0)
    prefetch_factor: int = key(2, "batches each loader process keeps ready", low=1)
    pin_memory: bool = key(False, "page-locked batches, for copies to a GPU")


@dataclass(frozen=True)
class Batch:
    """How many samples a step takes. Accumulation is derived."""

    global_sequences: int = key(16, "rows of an optimizer step over all ranks", maths=True, low=1)
    micro_batch: int = key(0, "rows of one forward pass; 0 takes a rank's whole share", low=0)


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule."""

    lr: float = key(3e-3, "peak learning rate", maths=True, low=0.0)
    beta1: float = key(0.9, "decay of the first moment", maths=True, low=0.0)
    beta2: float = key(0.95, "decay of the second moment", maths=True, low=0.0)
    eps: float = key(1e-8, "Adam's epsilon", maths=True, low=0.0)
    weight_decay: float = key(0.1, "decay of matrices; norms never decay", maths=True, low=0.0)
    warmup_steps: int = key(10, "steps of linear warm-up", maths=True, low=0)
    decay_steps: int = key(0, "step at which the schedule ends; 0 takes run.max_steps", maths=True, low=0)
    schedule: str = key("cosine", "shape after the warm-up", maths=True, choices=("cosine", "linear", "constant"))
    min_lr_ratio: float = key(0.1, "last learning rate over the peak", maths=True, low=0.0)
    grad_clip: float = key(1.0, "largest gradient norm; 0 does not clip", maths=True, low=0.0)


@dataclass(frozen=True)
class Precision:
    """Number formats."""

    compute: str = key(
        "float32", "matrix products; parameters stay float32", maths=True, choices=("float32", "bfloat16")
    )


@dataclass(frozen=True)
class Parallel:
    """Data parallelism."""

    bucket_mb: float = key(25.0, "gradients reduced in one message, MiB", low=0.01)


@dataclass(frozen=True)
class Checkpoint:
    """When and how state is saved."""

    every_steps: int = key(0, "steps between checkpoints; 0 saves only at the end and on SIGTERM", low=0)
    async_save: bool = key(False, "write in a thread; training goes on once the state is copied")
    keep: int = key(3, "newest checkpoints kept", low=1)
    resume: str = key("auto", "auto (newest in out_dir), none, or the directory of one checkpoint")
    allow_semantics_change: bool = key(False, "continue a checkpoint although what is trained has changed")


@dataclass(frozen=True)
class Eval:
    """Bits per byte on held-out documents."""

    every_steps: int = key(0, "steps between evaluations; 0 evaluates never", low=0)
    sequences: int = key(64, "held-out rows of one evaluation, over all ranks", low=1)


@dataclass(frozen=True)
class Metrics:
    """What is said on the console. Records and /metrics follow the AMDAHL_* environment."""

    log_every: int = key(10, "steps between console lines", low=1)


@dataclass(frozen=True)
class Limits:
    """What ends a run that hangs."""

    comm_timeout_s: int = key(600, "seconds a collective may take", low=1)


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
        _check_model(self.model)

    @property
    def decay_steps(self) -> int:
        """Step at which the learning-rate schedule ends."""
        return self.optim.decay_steps or self.run.max_steps


def _check_model(model: Model) -> None:
    if model.d_model % (2 * model.n_heads):
        raise ConfigError(
            f"model.n_heads is {model.n_heads}, which does not split model.d_model {model.d_model} into even heads; "
            f"nearest legal: {_nearest(model.n_heads, model.d_model // 2)}"
        )
    if model.n_heads % model.n_kv_heads:
        raise ConfigError(
            f"model.n_kv_heads is {model.n_kv_heads}, which does not divide model.n_heads {model.n_heads}; "
            f"nearest legal: {_nearest(model.n_kv_heads, model.n_heads)}"
        )


def check_batch(batch: Batch, world: int) -> int:
    """Micro-batch of a rank, given the number of ranks. Raises ConfigError naming the nearest legal values."""
    if batch.global_sequences % world:
        below = batch.global_sequences // world * world
        legal = " or ".join(str(n) for n in (below, below + world) if n)
        raise ConfigError(
            f"batch.global_sequences is {batch.global_sequences}, which {world} ranks cannot share evenly; "
            f"nearest legal: {legal}, or {_nearest(world, batch.global_sequences)} ranks"
        )
    share = batch.global_sequences // world
    micro = batch.micro_batch or share
    if share % micro:
        raise ConfigError(
            f"batch.micro_batch is {micro}, which does not divide a rank's share of {share} sequences "
            f"(batch.global_sequences {batch.global_sequences} over {world} ranks); "
            f"nearest legal: {_nearest(micro, share)}"
        )
    return micro


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
    """The keys that change what is trained, resolved."""
    kept = {name: value for name, leaf, value in _walk(config) if leaf.metadata["maths"]}
    return kept | {"optim.decay_steps": config.decay_steps}


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
    sections = (Run, Model, Data, Batch, Optim, Precision, Parallel, Checkpoint, Eval, Metrics, Limits)
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


def _nearest(wanted: int, whole: int) -> str:
    """The divisors of `whole` next to `wanted`, as text."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = [n for n in divisors if n <= wanted][-1:]
    above = [n for n in divisors if n > wanted][:1]
    return " or ".join(str(n) for n in below + above)

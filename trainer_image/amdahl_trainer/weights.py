"""How do weights come from, and go to, the public layout of Llama models? `config.json` and safetensors, no code.

`python -m amdahl_trainer.weights export CHECKPOINT TARGET` writes what `LlamaForCausalLM` reads (Llama, SmolLM and
their kin). `... import SOURCE --config x.yaml` makes such weights the first checkpoint of a run, which then begins from
them on any number of ranks in any layout.

Rotary positions: both sides rotate (first half, second half) of a head, so no row is permuted. Meta's own files of the
first Llamas pair neighbours instead; they are another format and not read here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amdahl_trainer import ckpt, ckpt_dcp, ckpt_folder, ckpt_state
from amdahl_trainer import config as configs
from amdahl_trainer.ckpt import Progress
from amdahl_trainer.config import Config
from amdahl_trainer.errors import ConfigError, Exit, TrainerError
from amdahl_trainer.model import Llama
from amdahl_trainer.sections import Model

#: Names outside the blocks: ours to theirs.
_OUTER = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}

#: Names within block i: ours below `blocks.<i>`, theirs below `model.layers.<i>`.
_INNER = {
    "norm_attention": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "norm_feed": "post_attention_layernorm",
    "feed.gate": "mlp.gate_proj",
    "feed.up": "mlp.up_proj",
    "feed.down": "mlp.down_proj",
}

#: Settings of the model: ours to theirs.
_SETTINGS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}

#: What this trainer's model does not have, and the values that say so.
_ABSENT: Mapping[str, Sequence[object]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
}

#: Defaults that `config.json` may leave out.
_THEIR_DEFAULTS = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def names(model: Model) -> dict[str, str]:
    """Every weight of a model: our name to theirs. A tied head is the embedding, and has no weight of its own."""
    outer = {ours: theirs for ours, theirs in _OUTER.items() if not (ours == "head" and model.tie_embeddings)}
    inner = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(model.n_layers)
        for ours, theirs in _INNER.items()
    }
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in (outer | inner).items()}


def to_public(model: Model, seq_len: int, dtype: str) -> dict[str, object]:
    """The content of `config.json`."""
    ours = {theirs: getattr(model, name) for name, theirs in _SETTINGS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        **{name: values[0] for name, values in _ABSENT.items()},
        **ours,
        "head_dim": model.d_model // model.n_heads,
        "max_position_embeddings": seq_len,
        "torch_dtype": dtype,
    }


def from_public(settings: Mapping[str, Any], path: Path) -> Model:
    """The model that `config.json` describes. Raises ConfigError for one that this trainer cannot be."""
    told = _THEIR_DEFAULTS | dict(settings) | _rope(settings)
    for name, values in _ABSENT.items():
        if told.get(name, values[0]) not in values:
            raise ConfigError(f"{path}: {name} is {told[name]!r}; this trainer's model has {values[0]!r} only")
    told.setdefault("num_key_value_heads", told.get("num_attention_heads"))
    try:
        found = {ours: type(getattr(Model(), ours))(told[theirs]) for ours, theirs in _SETTINGS.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} lacks or garbles {error}") from error
    model = Model(**found)
    head = told.get("head_dim") or model.d_model // model.n_heads
    if head * model.n_heads != model.d_model:
        raise ConfigError(
            f"{path}: head_dim is {head}; this trainer's heads share hidden_size {model.d_model} evenly, "
            f"{model.d_model // model.n_heads} each"
        )
    return model


def _rope(settings: Mapping[str, Any]) -> dict[str, object]:
    """Rotary settings of newer files, which keep them in one place."""
    told = settings.get("rope_parameters") or {}
    scaling = {} if told.get("rope_type", "default") == "default" else {"rope_scaling": told}
    return scaling | ({"rope_theta": told["rope_theta"]} if "rope_theta" in told else {})


def export(checkpoint: Path, target: Path, dtype: str = "float32", shard_bytes: int = 5 << 30) -> list[Path]:
    """Write a checkpoint's weights as public files of at most `shard_bytes` each (one weight may be more).

    Raises:
        TrainerError: the checkpoint is not whole, or the target is not empty.
    """
    meta = ckpt_folder.read_meta(checkpoint)
    found = ckpt_folder.damage(checkpoint, meta)
    if found is not None:
        raise ckpt_folder.CheckpointError(found)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; name a directory that is")
    known = configs.flatten(Config())
    config = configs.build({name: str(value) for name, value in meta.config.items() if name in known})
    reader = ckpt_dcp.Reader(checkpoint)
    theirs = names(config.model)
    state = {
        name: torch.empty(shape)
        for name, shape in reader.shapes().items()
        if name.removeprefix(ckpt_state.MODEL) in theirs
    }
    ckpt_dcp.load(state, reader, None)
    target.mkdir(parents=True, exist_ok=True)
    public = {theirs[name.removeprefix(ckpt_state.MODEL)]: value.to(DTYPES[dtype]) for name, value in state.items()}
    written = _write(public, target, shard_bytes)
    settings = to_public(config.model, config.data.seq_len, dtype)
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return [*written, target / "config.json"]


def _write(tensors: Mapping[str, Tensor], target: Path, shard_bytes: int) -> list[Path]:
    """One file, or several and the index that says which weight is where."""
    shards = list(_split(tensors, shard_bytes))
    if len(shards) == 1:
        files = [target / "model.safetensors"]
    else:
        files = [target / f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file({name: tensors[name].contiguous() for name in shard}, file, metadata={"format": "pt"})
    if len(shards) == 1:
        return files
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    places = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    index = target / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")
    return [*files, index]


def _split(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    held = 0
    for name, tensor in sorted(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append(name)
        held += size
    yield shard


def read(source: Path, model: Model) -> dict[str, Tensor]:
    """The weights in a public directory, by our names, as float32. Raises ConfigError naming the first that differs."""
    places = _places(source)
    theirs = names(model)
    wanted = {name: tuple(shape) for name, shape in _shapes(model).items()}
    lacking = sorted(set(theirs.values()) - set(places))
    if lacking:
        raise ConfigError(f"{source}: {lacking[0]} is not there (and {len(lacking) - 1} more)")
    found = {}
    with ExitStack() as files:
        opened: dict[Path, Any] = {}
        for ours, name in theirs.items():
            file = places[name]
            try:
                if file not in opened:
                    opened[file] = files.enter_context(safe_open(file, framework="pt"))
                tensor = opened[file].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{file} cannot be read: {error}") from error
            if tuple(tensor.shape) != wanted[ours]:
                raise ConfigError(f"{file}: {name} is {list(tensor.shape)}, config.json says {list(wanted[ours])}")
            found[ours] = tensor.to(torch.float32)
    return found


def _shapes(model: Model) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in Llama(model).state_dict().items()}


def _places(source: Path) -> dict[str, Path]:
    """Which file holds which weight. Raises ConfigError."""
    index = source / "model.safetensors.index.json"
    try:
        if index.is_file():
            told = json.loads(index.read_text())["weight_map"]
            return {str(name): source / Path(str(file)).name for name, file in told.items()}
        with safe_open(source / "model.safetensors", framework="pt") as file:
            return dict.fromkeys(file.keys(), source / "model.safetensors")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{source}: neither model.safetensors nor an index of several can be read ({error})"
        ) from error


def bring(source: Path, config: Config) -> Path:
    """Make the weights in a public directory the first checkpoint of a run. Returns where it is.

    Raises:
        ConfigError: the run's model is another, or its directory has checkpoints already.
    """
    path = source / "config.json"
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    theirs, ours = asdict(from_public(told, path)), asdict(config.model)
    changed = [f"--model.{name} {theirs[name]}" for name in theirs if theirs[name] != ours[name]]
    if changed:
        raise ConfigError(f"{path} describes another model than this run's; set {' '.join(changed)}")
    home = ckpt.directory(config)
    if ckpt_folder.complete(home):
        raise ConfigError(f"{home} has checkpoints already; set another run.out_dir")
    state = {ckpt_state.MODEL + name: tensor for name, tensor in read(source, config.model).items()}
    if config.model.tie_embeddings:
        state[f"{ckpt_state.MODEL}head.weight"] = state[f"{ckpt_state.MODEL}embedding.weight"]
    meta = ckpt.describe(config, Progress(), 1, holds=("model",))
    writer = ckpt_dcp.Writer(ckpt_folder.draft(home, 0, "weights"), meta, config.checkpoint.keep, staged=True)
    ckpt_dcp.save(state, writer, None)
    return ckpt_folder.complete(home)[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Export or import, and return the exit code."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        if options.do == "export":
            written = export(options.checkpoint, options.target, options.dtype, int(options.shard_gb * (1 << 30)))
            print("\n".join(map(str, written)))
        else:
            print(bring(options.source, configs.load(options.config, os.environ, rest)))
    except TrainerError as error:
        print(f"amdahl_trainer.weights: {error}", file=sys.stderr)
        return error.code
    return Exit.FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="amdahl_trainer.weights", description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="do", required=True)
    out = actions.add_parser("export", help="write a checkpoint's weights as config.json and safetensors")
    out.add_argument("checkpoint", type=Path, help="a directory such as checkpoints/step-00000050")
    out.add_argument("target", type=Path, help="a directory that is empty or not there")
    out.add_argument("--dtype", choices=DTYPES, default="float32")
    out.add_argument("--shard-gb", type=float, default=5.0, help="largest file, GiB")
    into = actions.add_parser("import", help="begin a run from public weights; --section.key value as for a run")
    into.add_argument("source", type=Path, help="a directory with config.json and safetensors")
    into.add_argument("--config", default=None, help="the run's configuration")
    return parser


if __name__ == "__main__":
    sys.exit(main())

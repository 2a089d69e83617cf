"""Weights in the public layout of Llama models: exact both ways, and refused where the model is another."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from amdahl_trainer import ckpt, ckpt_folder, optim, weights
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.model import Llama

#: A tiny model in the words of a public config.json, as SmolLM's is written (ties its embeddings).
SMOL = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 320,
}

#: Its weights, as the public file names and shapes them.
SMOL_SHAPES = {
    "model.embed_tokens.weight": (320, 32),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.0.mlp.down_proj.weight": (32, 48),
    "model.layers.0.mlp.gate_proj.weight": (48, 32),
    "model.layers.0.mlp.up_proj.weight": (48, 32),
    "model.layers.0.post_attention_layernorm.weight": (32,),
    "model.layers.0.self_attn.k_proj.weight": (16, 32),
    "model.layers.0.self_attn.o_proj.weight": (32, 32),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.self_attn.v_proj.weight": (16, 32),
    "model.norm.weight": (32,),
}

#: A Llama's: the same with a head of its own.
LLAMA = SMOL | {"tie_word_embeddings": False}
LLAMA_SHAPES = SMOL_SHAPES | {"lm_head.weight": (320, 32)}

#: This run's words for SMOL.
KEYS = {
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.n_heads": 4,
    "model.n_kv_heads": 2,
    "model.d_ff": 48,
    "model.vocab_size": 320,
    "model.rope_theta": 100_000.0,
}


def publish(home, settings, shapes, files=1, dtype=torch.float32):
    """A public directory with random weights, in one file or several with an index. Returns the weights."""
    home.mkdir()
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    (home / "config.json").write_text(json.dumps(settings))
    if files == 1:
        save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
        return tensors
    places = {name: f"model-{1 + at % files:05d}-of-{files:05d}.safetensors" for at, name in enumerate(shapes)}
    for place in sorted(set(places.values())):
        save_file({name: tensors[name] for name in shapes if places[name] == place}, home / place)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (home / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def exported(home):
    """All weights of an exported directory, by the public names."""
    found = {}
    for file in home.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize(("settings", "shapes"), [(SMOL, SMOL_SHAPES), (LLAMA, LLAMA_SHAPES)], ids=["smol", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_public_weights_come_back_bit_for_bit(tiny, tmp_path, files, settings, shapes, dtype):
    """import, then export: same names, same bits, same settings, from one file or several into one or several."""
    tensors = publish(tmp_path / "public", settings, shapes, files, weights.DTYPES[dtype])
    config = tiny({**KEYS, "model.tie_embeddings": settings["tie_word_embeddings"]})
    path = weights.bring(tmp_path / "public", config)
    written = weights.export(path, tmp_path / "again", dtype, shard_bytes=20_000 if files > 1 else 5 << 30)
    again = exported(tmp_path / "again")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)
    told = json.loads((tmp_path / "again" / "config.json").read_text())
    ours = {"max_position_embeddings": config.data.seq_len, "torch_dtype": dtype, "head_dim": 8}
    assert told == settings | ours
    assert len([file for file in written if file.suffix == ".safetensors"]) > (files > 1)


def test_a_run_begins_from_public_weights_and_its_first_moments(tiny, tmp_path):
    """The model is the public one, the optimizer has seen nothing, and the run is at step 0."""
    tensors = publish(tmp_path / "public", SMOL, SMOL_SHAPES)
    config = tiny(KEYS)
    weights.bring(tmp_path / "public", config)
    torch.manual_seed(7)
    model = Llama(config.model)
    optimizer = optim.build(model, config.optim)
    found = Checkpoints(config).resume(model, optimizer)
    assert found is not None
    assert found[1] == Progress(0, 0)
    assert torch.equal(
        model.get_parameter("blocks.0.attention.q.weight"), tensors["model.layers.0.self_attn.q_proj.weight"]
    )
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, tensors["model.embed_tokens.weight"])
    assert not optimizer.state


def reference_logits(tensors, tokens):
    """What LlamaForCausalLM computes, written down from its definition with the public names (one sequence, 1 layer)."""
    x = tensors["model.embed_tokens.weight"][tokens]

    def norm(x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * tensors[name]

    def project(x, name):
        return x @ tensors[f"model.layers.0.{name}.weight"].T

    def rotate(x):
        angles = torch.arange(len(tokens))[:, None] * 100_000.0 ** (-torch.arange(0, 8, 2) / 8)
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        return x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin  # `rotate_half`

    y = norm(x, "model.layers.0.input_layernorm.weight")
    q, k, v = (project(y, f"self_attn.{n}_proj").view(len(tokens), -1, 8).transpose(0, 1) for n in "qkv")
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    scores = rotate(q) @ rotate(k).transpose(1, 2) / 8**0.5
    scores = scores.masked_fill(torch.ones(len(tokens), len(tokens)).triu(1).bool(), -torch.inf)
    x = x + project((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), "self_attn.o_proj")
    y = norm(x, "model.layers.0.post_attention_layernorm.weight")
    gated = torch.nn.functional.silu(project(y, "mlp.gate_proj")) * project(y, "mlp.up_proj")
    return norm(x + project(gated, "mlp.down_proj"), "model.norm.weight") @ tensors["model.embed_tokens.weight"].T


def test_imported_weights_mean_the_same_here(tiny, tmp_path):
    """Logits equal those of the public definition: positions, groups of heads and order of rows need no permutation."""
    tensors = publish(tmp_path / "public", SMOL, SMOL_SHAPES)
    tensors = {name: tensor * 0.2 for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "public" / "model.safetensors")
    config = tiny(KEYS)
    weights.bring(tmp_path / "public", config)
    model = Llama(config.model)
    Checkpoints(config).resume(model, optim.build(model, config.optim))
    tokens = torch.randint(0, 320, (12,))
    with torch.no_grad():
        ours = model(tokens[None])[0]
    assert torch.allclose(ours, reference_logits(tensors, tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 2}, r"another model than this run's; set --model.n_layers 2"),
        ({"hidden_size": 64, "vocab_size": 512}, r"set --model.d_model 64 --model.vocab_size 512"),
        (
            {"rope_scaling": {"rope_type": "llama3"}},
            r"rope_scaling is {'rope_type': 'llama3'}; this trainer's model has None",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5}}, "rope_scaling is"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"head_dim": 16}, r"head_dim is 16; this trainer's heads share hidden_size 32 evenly, 8 each"),
        ({"vocab_size": None}, "lacks or garbles"),
    ],
)
def test_a_model_that_this_trainer_cannot_be_is_refused(tiny, tmp_path, settings, message):
    """By the name of what it has, or of the key to set."""
    publish(tmp_path / "public", SMOL | settings, SMOL_SHAPES)
    with pytest.raises(ConfigError, match=message):
        weights.bring(tmp_path / "public", tiny(KEYS))


def test_newer_settings_say_the_rotary_base_elsewhere(tmp_path):
    """`rope_parameters` of newer files, and a file that leaves out what has a default."""
    path = tmp_path / "config.json"
    newer = {name: value for name, value in SMOL.items() if not name.startswith("rope")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert weights.from_public(newer, path).rope_theta == 5e5
    short = {name: value for name, value in SMOL.items() if name not in ("rope_theta", "num_key_value_heads")}
    assert (weights.from_public(short, path).rope_theta, weights.from_public(short, path).n_kv_heads) == (10_000.0, 4)


def damage(home, what):
    file = home / "model.safetensors"
    if what == "lacking":
        save_file({name: torch.zeros(shape) for name, shape in list(SMOL_SHAPES.items())[1:]}, file)
    elif what == "shape":
        save_file({name: torch.zeros(3, *shape[1:]) for name, shape in SMOL_SHAPES.items()}, file)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif what == "gone":
        file.unlink()
    elif what == "settings":
        (home / "config.json").write_text("{")
    else:
        (home / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("lacking", r"model.embed_tokens.weight is not there \(and 0 more\)"),
        ("shape", r"model.\S+ is \[3, 32\], config.json says \[320, 32\]"),
        ("cut", "neither model.safetensors nor an index"),
        ("gone", "neither model.safetensors nor an index"),
        ("settings", "config.json cannot be read"),
        ("index", "neither model.safetensors nor an index"),
    ],
)
def test_public_files_that_are_not_whole_are_refused(tiny, tmp_path, what, message):
    """And no checkpoint is left of them."""
    publish(tmp_path / "public", SMOL, SMOL_SHAPES)
    damage(tmp_path / "public", what)
    config = tiny(KEYS)
    with pytest.raises(ConfigError, match=message):
        weights.bring(tmp_path / "public", config)
    assert ckpt_folder.complete(ckpt.directory(config)) == []


def test_nothing_is_written_over(tiny, tmp_path):
    """Import wants a run without checkpoints, export an empty directory."""
    publish(tmp_path / "public", SMOL, SMOL_SHAPES)
    config = tiny(KEYS)
    path = weights.bring(tmp_path / "public", config)
    with pytest.raises(ConfigError, match="has checkpoints already"):
        weights.bring(tmp_path / "public", config)
    with pytest.raises(ConfigError, match="is not empty"):
        weights.export(path, tmp_path / "public")


def test_the_command_line_says_where_it_wrote_and_what_is_wrong(tiny, tmp_path, capsys, monkeypatch):
    """Paths on standard output and 0; one line on standard error and the code of a wrong configuration."""
    publish(tmp_path / "public", SMOL, SMOL_SHAPES)
    keys = KEYS | {"run.out_dir": str(tmp_path / "out")}
    assert weights.main(["import", str(tmp_path / "public"), *(f"--{key}={value}" for key, value in keys.items())]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("checkpoints/step-00000000")
    assert weights.main(["export", path, str(tmp_path / "again"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "again" / "model.safetensors"),
        str(tmp_path / "again" / "config.json"),
    ]
    assert weights.main(["export", str(tmp_path), str(tmp_path / "more")]) == 76
    assert "meta.json cannot be read" in capsys.readouterr().err

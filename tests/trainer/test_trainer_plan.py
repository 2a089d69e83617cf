"""Plans: memory is counted as torch allocates it, parameters and FLOPs are those of known models, bounds are bounds."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amdahl_trainer import config as configs
from amdahl_trainer import flops, memory, optim, parallel, plan
from amdahl_trainer.mesh import Degrees, Mesh
from amdahl_trainer.model import Llama, Part
from amdahl_trainer.peers import Place
from mesh_parity import make_rows

CPU = torch.device("cpu")
CONFIGS = Path(configs.__file__).parents[1] / "configs"


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations made and that still exist, and the most they ever were."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, torch.Tensor):
                self.note(each.untyped_storage())
        return found

    def note(self, storage):
        if storage._cdata not in self.known:
            size = storage.nbytes()
            self.known[storage._cdata] = weakref.finalize(storage, self.forget, storage._cdata, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def forget(self, key, size):
        del self.known[key]
        self.now -= size


def measure(config):
    """Peak bytes of a step, the optimizer's state being there already."""
    replica = parallel.parallelize(config, Mesh(Degrees(), 0, CPU), CPU, lambda: None)
    optimizer = optim.build(replica.model, config.optim)
    packed = make_rows(config)
    valid = int((packed[2] > 0).sum())

    def step():
        loss = replica.accumulate(packed, valid)
        optim.apply(optimizer, config.optim, 1e-3, loss)

    step()
    held = sum(weight.numel() * 4 for weight in replica.model.parameters())
    held += sum(value.numel() * 4 for state in optimizer.state.values() for value in state.values())
    with Live() as live:
        step()
    return held + live.peak


WIDE = {"model.n_layers": 4, "model.d_model": 128, "model.n_heads": 4, "model.n_kv_heads": 2, "model.d_ff": 352}
LONG = {**WIDE, "data.seq_len": 256, "batch.global_sequences": 8, "batch.micro_batch": 4, "data.doc_mask": False}
VOCABULARY = {"model.vocab_size": 8192, "model.tie_embeddings": False}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch.micro_batch": 2},
        {"model.n_kv_heads": 4},
        {"model.d_ff": 1024, "model.n_layers": 2},
        VOCABULARY,
        {**VOCABULARY, "memory.loss_chunks": 8},
        {"memory.activation_checkpoint": "block"},
        {"memory.activation_checkpoint": "selective"},
        {**VOCABULARY, "memory.activation_checkpoint": "block", "memory.loss_chunks": 4, "model.n_layers": 8},
        {"precision.compute": "bfloat16"},
        {**VOCABULARY, "precision.compute": "bfloat16"},
        {**VOCABULARY, "precision.compute": "bfloat16", "memory.loss_chunks": 8},
    ],
    ids=str,
)
def test_peak_memory_is_predicted_within_a_tenth(changes):
    """On one process, for each way to keep less and both precisions."""
    config = configs.build({**LONG, **changes})
    predicted = memory.estimate(config, Degrees(), on_gpu=False).total
    assert predicted == pytest.approx(measure(config), rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_counted(tied):
    """The elements of the shapes are those of the model, whole and in parts."""
    model = configs.Model(n_layers=3, d_model=64, n_kv_heads=2, tie_embeddings=tied)
    for part in (Part(range(3), 3), Part(range(1), 3), Part(range(1, 2), 3), Part(range(2, 3), 3)):
        counted = sum(rows * (columns or 1) for rows, columns in memory.shapes(model, part))
        assert counted == sum(weight.numel() for weight in Llama(model, part).parameters())


EIGHT_B = {
    "model.n_layers": 32,
    "model.d_model": 4096,
    "model.n_heads": 32,
    "model.n_kv_heads": 8,
    "model.d_ff": 14336,
    "model.vocab_size": 128256,
    "model.tie_embeddings": False,
    "data.seq_len": 8192,
    "batch.global_sequences": 128,
    "batch.micro_batch": 1,
    "precision.compute": "bfloat16",
}


def make(world=64, device="H100", **changes):
    return plan.make(
        configs.build({**EIGHT_B, **{key.replace("__", "."): value for key, value in changes.items()}}),
        world,
        8,
        device,
    )


def test_a_known_model_has_its_known_size():
    """Llama-3-8B: 8,030,261,248 parameters; 16 bytes each over 64 ranks."""
    found = make(parallel__dp_mode="fsdp2")
    assert found.parameters == 8_030_261_248
    state = found.needs[0].parameters + found.needs[0].gradients + found.needs[0].moments
    assert state == pytest.approx(16 * 8_030_261_248 / 64, rel=1e-3)


def test_what_is_offloaded_is_on_the_host_and_nowhere_else(capsys):
    """16 bytes a parameter over the ranks that share it leave the device, which keeps gathered blocks and the rest."""
    sharded = make(parallel__dp_mode="fsdp2").needs[0]
    offloaded = make(parallel__dp_mode="fsdp2", memory__cpu_offload=True).needs[0]
    state = sharded.parameters + sharded.gradients + sharded.moments
    assert offloaded.host == state
    assert offloaded.total == sharded.total - state
    assert sharded.host == 0
    arguments = [f"--{name}={value}" for name, value in EIGHT_B.items()]
    plan.main(["--world", "64", "--", *arguments, "--parallel.dp_mode=fsdp2", "--memory.cpu_offload=true"])
    assert f"host {state / plan.GIB:16.2f}" in capsys.readouterr().out


def test_each_technique_saves_what_it_is_for():
    """Sharding saves state, checkpointing activations, pieces logits; tp, pp and cp save what they split."""
    plain, sharded = make().needs[0], make(parallel__dp_mode="fsdp2").needs[0]
    assert sharded.moments * 60 < plain.moments
    for mode in ("selective", "block"):
        assert make(memory__activation_checkpoint=mode).needs[0].activations < plain.activations
    assert make(memory__loss_chunks=8).needs[0].working < plain.working / 1.8
    assert make(parallel__tp=8).needs[0].moments < plain.moments / 7.9
    assert make(parallel__cp=2).needs[0].working < plain.working / 1.7
    staged = make(parallel__pp=4)
    assert len(staged.needs) == 4
    assert staged.needs[0].moments < plain.moments / 3
    assert len({needs.working for needs in staged.needs[:3]}) == 1
    assert staged.needs[3].working > 5 * staged.needs[2].working
    assert staged.needs[0].activations > staged.needs[2].activations  # more micro-batches are on their way


def test_the_speed_is_a_bound_that_only_falls():
    """Nothing is faster than the reachable share of the peak; idle stages and repeated arithmetic come off it."""
    plain = make()
    assert plain.mfu == plan.REACHABLE
    tokens_per_s = plain.step_tokens / plain.step_s / 64
    assert flops.utilisation(plain.cost, tokens_per_s, plain.peak)["palm"] == pytest.approx(plan.REACHABLE)
    assert make(parallel__pp=4, batch__global_sequences=256).mfu == pytest.approx(plan.REACHABLE * 16 / 19)
    assert make(memory__activation_checkpoint="block").mfu == pytest.approx(plan.REACHABLE / 1.33, rel=0.02)
    assert make(memory__loss_chunks=4).mfu < plan.REACHABLE
    assert make(device="something else").step_s is None


def test_the_command_prints_a_page_and_refuses_what_cannot_be(capsys):
    """One line each for mesh, step, model, memory, MFU and speed; an error is one line and code 76."""
    arguments = [f"--{name}={value}" for name, value in EIGHT_B.items()]
    assert plan.main(["--world", "64", "--", *arguments, "--parallel.tp=8", "--parallel.pp=2"]) == 0
    page = capsys.readouterr().out
    assert "64 ranks = pp 2 x dp 4 (copies 4 x shard 1) x cp 1 x tp 8" in page
    assert [line.split()[0] for line in page.splitlines()] == [
        *(
            "mesh",
            "step",
            "model",
            "memory",
            "parameters",
            "gradients",
            "moments",
            "gathered",
            "activations",
            "working",
        ),
        *("total", "MFU", "speed"),
    ]
    assert plan.main(["--world", "6", "--", *arguments, "--parallel.tp=4"]) == 76
    assert "nearest legal: 3 or 6" in capsys.readouterr().err


def test_planning_and_starting_refuse_alike():
    """A plan accepts exactly what a run accepts."""
    config = configs.build(EIGHT_B)
    assert plan.make(config, 16, 8, "H100").degrees == parallel.fit(config, Place(0, 16, 0, 8))


RECIPES = {
    "100m-1gpu": (1, 100_934_400),
    "1b-8gpu": (8, 1_100_048_384),
    "7b-64gpu": (64, 6_738_415_616),
    "long-context": (8, 8_030_261_248),
}


@pytest.mark.parametrize(("name", "world", "parameters"), [(name, *told) for name, told in RECIPES.items()])
def test_recipes_for_gpus_fit_the_devices_they_are_named_for(name, world, parameters):
    """Known shapes have their known sizes, and each rank needs less than 64 of a device's 80 GiB."""
    found = plan.make(configs.load(str(CONFIGS / f"{name}.yaml"), {}, []), world, 8, "H100")
    assert found.parameters == parameters
    assert max(needs.total for needs in found.needs) < 64 * plan.GIB

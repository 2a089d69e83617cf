"""Run in each rank by test_trainer_elastic: take the newest checkpoint into one layout, and save it from there.

LAYOUT says how the ranks hold the model. The first process of all finds nothing and makes a state of its own; each
writes what it then has, gathered, to `whole.pt`, so that states can be compared bit by bit.
"""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from amdahl_trainer import config as configs
from amdahl_trainer import entry, peers
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.errors import Exit
from amdahl_trainer.model import Llama, Part
from amdahl_trainer.peers import Place


def shard(model, mesh):
    """FSDP2, block by block."""
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def split_matrices(model, mesh):
    """Tensor parallelism: some weights in rows, some in columns, the norms whole."""
    for block in model.blocks.values():
        plan = {f"attention.{name}": ColwiseParallel() for name in "qkv"} | {"attention.out": RowwiseParallel()}
        plan |= {"feed.gate": ColwiseParallel(), "feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()}
        parallelize_module(block, mesh, plan)


def lay_out(config, layout, place):
    """The model, split as `layout` says; in stages the first rank has the embedding and the first block."""
    part = Part(range(place.rank, place.rank + 1), config.n_layers) if layout == "pp" else None
    model = Llama(config, part)
    if layout == "fsdp2":
        shard(model, init_device_mesh("cpu", (place.world,)))
    elif layout == "hsdp":
        shard(model, init_device_mesh("cpu", (2, place.world // 2), mesh_dim_names=("replicate", "shard")))
    elif layout == "tp":
        split_matrices(model, init_device_mesh("cpu", (place.world,)))
    elif layout == "fsdp2-tp":
        mesh = init_device_mesh("cpu", (2, place.world // 2), mesh_dim_names=("dp", "tp"))
        split_matrices(model, mesh["tp"])
        shard(model, mesh["dp"])
    return model


def whole(model, optimizer):
    """All tensors in full, on the first rank."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    return {name: value for name, value in (weights | moments).items() if isinstance(value, torch.Tensor)}


torch.set_num_threads(1)
config = configs.load(None, {}, sys.argv[1:])
place = Place.from_environ(os.environ)
layout = os.environ["LAYOUT"]
peers.join(place, torch.device("cpu"), 600)
torch.manual_seed(place.rank)  # whatever is not loaded differs
model = lay_out(config.model, layout, place)
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
checkpoints = Checkpoints(config, place.rank, place.world)
found = checkpoints.resume(model, optimizer)
if found is None:
    for _ in range(2):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        optimizer.zero_grad()
progress = found[1] if found else Progress()
checkpoints.save(model, optimizer, Progress(progress.step + 1, 8), config.checkpoint.async_save)
checkpoints.finished(waiting=True)
if layout != "pp":
    kept = whole(model, optimizer)
    if place.rank == 0:
        torch.save(kept, Path(os.environ["AMDAHL_TELEMETRY_DIR"]) / "whole.pt")
entry.leave(Exit.FINISHED)

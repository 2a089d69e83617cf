"""How does one model become many ranks' model? Every technique is put on here, in the one order that works.

1. *Pipeline* first: it decides which blocks a rank has at all. They are made without memory.
2. *Context and tensor parallelism, checkpointing of activations, the loss* enter through the model's seams, and tensor
   parallelism splits the parameters while these are still only shapes: no rank ever holds a whole matrix it splits.
3. *First values* are drawn block by block, each parameter from its own name, so that they are those of one process.
4. *Data parallelism* last. It must see the parameters as the others have left them: it replicates or shards what there
   is, and its hooks must surround everything that uses a parameter. A block is sharded as soon as it has its values, so
   that no rank holds more than one whole block beyond its own pieces.
5. *The schedule* runs what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage

from amdahl_trainer import attention, compiled, dp, fsdp, pp, recompute, shards, tp
from amdahl_trainer import fit as fits
from amdahl_trainer.config import Config, Parallel
from amdahl_trainer.context import Context
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.feed import Feed
from amdahl_trainer.loss import Criterion
from amdahl_trainer.mesh import Degrees, Mesh, fit_degrees
from amdahl_trainer.model import Llama, Part, draw, gather
from amdahl_trainer.peers import Place
from amdahl_trainer.replica import Reduced, Replica, Whole, precision
from amdahl_trainer.seams import Seams, project_each
from amdahl_trainer.tp_async import AsyncColumns


def fit(config: Config, place: Place) -> Degrees:
    """The degrees of a run, after checking everything that depends on the number of ranks. Raises ConfigError."""
    parallel = config.parallel
    degrees = fit_degrees(parallel, place.world, place.local_world)
    micro_batch = fits.check_batch(config.batch, degrees.dp)
    if degrees.tp > 1:
        tp.check(config.model, config.data.seq_len // degrees.cp, degrees.tp, parallel.sp)
    if degrees.cp > 1:
        _check_context(config, degrees)
    if degrees.pp > 1:
        pp.check(config.model, parallel, micro_batch, config.batch.global_sequences // degrees.dp // micro_batch)
    if config.run.compile != "none" and degrees.tp > 1:
        raise ConfigError(
            f"run.compile is {config.run.compile}, but torch does not compile matrices that parallel.tp {degrees.tp} "
            "splits; set run.compile to none, or parallel.tp to 1"
        )
    if config.memory.cpu_offload and not degrees.is_sharded(parallel.dp_mode):
        raise ConfigError(
            f"memory.cpu_offload is true, but parameters stay whole with parallel.dp_mode {parallel.dp_mode} and "
            f"{degrees.dp_cp} ranks to share them; set parallel.dp_mode to fsdp2 on 2 ranks or more, or set it to false"
        )
    return degrees


def _check_context(config: Config, degrees: Degrees) -> None:
    parallel = config.parallel
    try:
        shards.check(
            shards.Shards(degrees.cp, _balance(parallel)),
            _mode(parallel),
            config.data.seq_len,
            config.model.n_heads // degrees.tp,
        )
    except ValueError as error:
        raise ConfigError(f"parallel.cp is {degrees.cp}: {error}") from error


def parallelize(
    config: Config,
    mesh: Mesh,
    device: torch.device,
    on_gradient: Callable[[], None],
    on_phase: Callable[[str], None] = lambda _: None,
) -> Replica:
    """Make this rank's part of the model, its first values drawn, ready to compute gradients.

    Args:
        config: of the run; `fit` has accepted it.
        mesh: of `fit`'s degrees.
        device: where the rank computes.
        on_gradient: called as local gradients become complete, where gradients are reduced.
        on_phase: called with the name of each of `timeline.ISSUED` that begins in a step's passes.
    """
    degrees = mesh.degrees
    micro_batch = fits.check_batch(config.batch, degrees.dp)
    if config.run.compile != "none":
        compiled.check(device)
    context = _context(config, mesh)
    feed = Feed(micro_batch, config.data.seq_len, config.data.doc_mask, device, context, on_phase)
    autocast = precision(
        "float32" if mesh.degrees.is_sharded(config.parallel.dp_mode) else config.precision.compute, device
    )
    parts = [_make(config, mesh, part, context) for part in _own_parts(config, mesh)]
    for part in parts:
        _fill(part, config, mesh, device)
    if degrees.pp == 1:
        reduced = _reduce(parts[0], parts[0], config, mesh, device, on_gradient)
        return Whole(parts[0], reduced, feed, autocast, mesh.seat.tells_loss)
    hand = pp.Hand()
    stages = [pp.Stage(part, hand, autocast, on_phase) for part in parts]
    wrapped = [_reduce(stage, stage.part, config, mesh, device, on_gradient) for stage in stages]
    return pp.Pipeline(
        gather(parts),
        lambda: [
            _to_torch(one.forward, stage, config, mesh, device) for one, stage in zip(wrapped, stages, strict=True)
        ],
        config.parallel.pp_schedule,
        config.batch.global_sequences // degrees.dp // micro_batch,
        feed,
        hand,
        wrapped[0].divisor,
        mesh.seat.tells_loss,
    )


def _own_parts(config: Config, mesh: Mesh) -> list[Part]:
    """The parts of this rank's stages. Several stages are dealt in turn: rank r has stage r, pp + r, ..."""
    stages = pp.count_stages(config.parallel) if mesh.degrees.pp > 1 else 1
    return pp.split_layers(config.model.n_layers, stages)[mesh.seat.pp :: mesh.degrees.pp]


def _make(config: Config, mesh: Mesh, part: Part, context: Context | None) -> Llama:
    """A part of the model without memory, its parameters split by tensor parallelism."""
    with torch.device("meta"):
        model = Llama(config.model, part, _seams(config, mesh, context))
    if mesh.degrees.tp > 1:
        tp.split(model, mesh.tp, sp=config.parallel.sp, own_columns=config.parallel.async_tp)
    if config.run.compile != "none":
        compiled.compile_blocks(model)
    return model


def _context(config: Config, mesh: Mesh) -> Context | None:
    """The ranks that share each row's tokens."""
    parallel = config.parallel
    return Context.over(mesh.group("cp"), _mode(parallel), _balance(parallel)) if mesh.degrees.cp > 1 else None


def _mode(parallel: Parallel) -> shards.Mode:
    return cast("shards.Mode", parallel.cp_mode)  # the configuration allows no other


def _balance(parallel: Parallel) -> shards.Balance:
    return cast("shards.Balance", parallel.cp_balance)  # likewise


def _seams(config: Config, mesh: Mesh, context: Context | None) -> Seams:
    parallel, degrees = config.parallel, mesh.degrees
    attend = attention.attend if context is None else partial(attention.attend, context=context)
    run, chunks = recompute.choose(config.memory.activation_checkpoint), config.memory.loss_chunks
    if degrees.tp == 1:
        is_fused = config.run.compile != "none"
        return Seams(attend, run=run, criterion=compiled.fuse(Criterion(chunks)) if is_fused else Criterion(chunks))
    group = mesh.group("tp")
    return Seams(
        attend,
        project=AsyncColumns(group, parallel.sp) if parallel.async_tp else project_each,
        run=run,
        criterion=Criterion(chunks, tp.VocabParallel(group), degrees.tp if parallel.sp else 1),
    )


def _fill(model: Llama, config: Config, mesh: Mesh, device: torch.device) -> None:
    """Give parameters memory and first values, block by block, each sharded before the next exists."""
    for layer, block in model.blocks.items():
        _materialise(block, f"blocks.{layer}.", config, device)
        if mesh.degrees.is_sharded(config.parallel.dp_mode):
            fsdp.shard(block, mesh.copies, _sharding(config, keep=mesh.degrees.pp > 1))
    for name, child in model.named_children():
        if name != "blocks" and not (name == "head" and model.is_tied):
            _materialise(child, f"{name}.", config, device)
    model.tie()


def _sharding(config: Config, *, keep: bool) -> fsdp.Sharding:
    return fsdp.Sharding(config.precision.compute, keep, config.memory.cpu_offload)


def _materialise(module: nn.Module, prefix: str, config: Config, device: torch.device) -> None:
    module.to_empty(device=device)
    draw(module, prefix, config.run.seed, config.model.n_layers)


def _reduce(
    module: nn.Module,
    model: Llama,
    config: Config,
    mesh: Mesh,
    device: torch.device,
    on_gradient: Callable[[], None],
) -> Reduced:
    """Data parallelism around `module`, which is the model or a stage of it."""
    if mesh.degrees.dp_cp == 1:
        return Reduced(module)
    if mesh.degrees.is_sharded(config.parallel.dp_mode):
        if device.type != "cpu":  # there each of FSDP's waits is seen where it is, see `waits`
            fsdp.mark(model.blocks.values(), on_gradient)
        fsdp.shard(module, mesh.copies, _sharding(config, keep=True))  # the outermost is needed again at once
        return fsdp.reduce(module, mesh.copies)
    is_all = mesh.degrees.dp_cp == mesh.degrees.world
    dp.mark(model, on_gradient)
    return dp.replicate(module, None if is_all else mesh.group("dp_cp"), device, config.parallel.bucket_mb)


def _to_torch(module: nn.Module, stage: pp.Stage, config: Config, mesh: Mesh, device: torch.device) -> PipelineStage:
    model, degrees, part = config.model, mesh.degrees, stage.part.part
    is_half = mesh.degrees.is_sharded(config.parallel.dp_mode) and config.precision.compute == "bfloat16"
    shape = pp.Shape(
        rows=fits.check_batch(config.batch, degrees.dp),
        tokens=config.data.seq_len // degrees.cp,
        sp=degrees.tp if config.parallel.sp else 1,
        width=model.d_model,
        dtype=torch.bfloat16 if is_half else torch.float32,
    )
    stages = pp.count_stages(config.parallel)
    index = pp.split_layers(model.n_layers, stages).index(part)
    return pp.make_stage(module, part, (index, stages), shape, device, mesh.group("pp"))

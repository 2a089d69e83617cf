"""Sharded data parallelism: each rank holds a piece of every parameter, of its gradient and of its moments.

FSDP2 (`fully_shard`) gathers the parameters of one block when they are needed, and scatters the sum of its gradients.
Hybrid sharding keeps several copies, each over a few ranks that are near one another; the pieces of gradients are then
summed over copies too. Parameters and sums of gradients are float32 whatever the products are computed in.

With offloading a rank's pieces lie in host memory, and so does the optimizer's work: the device holds gathered blocks
and activations. Each step then sends every piece there and every gradient back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from amdahl_trainer.replica import Reduced

#: Positions and rotary tables keep their type; the stream has the right one already.
_POLICIES = {
    "float32": MixedPrecisionPolicy(cast_forward_inputs=False),
    "bfloat16": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False),
}


@dataclass(frozen=True)
class Sharding:
    """How pieces are kept.

    Attributes:
        compute: type of products.
        keep: leave gathered parameters in memory between forward and backward.
        on_host: keep the pieces in host memory.
    """

    compute: str
    keep: bool
    on_host: bool = False


def shard(module: nn.Module, mesh: DeviceMesh, how: Sharding) -> None:
    """Shard the parameters of a module that no module within it has sharded, in place.

    Args:
        module: in memory; DTensors of another dimension of the same mesh are sharded further.
        mesh: of one dimension, or copies x shards.
        how: its pieces are kept.
    """
    on_host = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    fully_shard(
        module,
        mesh=mesh,
        mp_policy=_POLICIES[how.compute],
        reshard_after_forward=not how.keep,
        offload_policy=on_host if how.on_host else OffloadPolicy(),
    )


def mark(blocks: Iterable[nn.Module], on_gradient: Callable[[], None]) -> None:
    """Call `on_gradient` as each block's backward pass ends: the gradient of what it took in is then known."""

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: on_gradient())  # type: ignore[no-untyped-call]  # untyped in torch

    for block in blocks:
        block.register_forward_pre_hook(watch)


def reduce(model: nn.Module, mesh: DeviceMesh) -> Reduced:
    """A model that was sharded as a whole, with its gradients' reduction.

    Gradients are scattered with every micro-batch, or each rank would keep whole ones until the last. Copies, which
    hold the same pieces, add theirs with the last micro-batch.
    """
    assert isinstance(model, FSDPModule), "shard() comes first"

    @contextlib.contextmanager
    def sync(last: bool) -> Iterator[None]:
        model.set_requires_all_reduce(last)
        yield

    return Reduced(model, sync, mesh.size())

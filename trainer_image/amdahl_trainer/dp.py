"""Data parallelism: every rank holds the whole model, and gradients are summed over ranks. On torch's DDP.

Messages of `bucket_mb` are sent while the backward pass still computes earlier layers; what remains after the last
local gradient is exposed. DDP divides the sum by the number of ranks, which the loss must make good: it is normalised
by the tokens of all ranks already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from amdahl_trainer.replica import Reduced

#: Parameters whose gradients are marked: the embedding and a block's nine. Gradients come from the last layer to the
#: first, so the last one is among them, and a call for each of hundreds would cost more than it tells.
MARKED = 10


def mark(model: nn.Module, on_gradient: Callable[[], None]) -> None:
    """Call `on_gradient` as each of the last local gradients becomes complete."""
    for weight in islice(model.parameters(), MARKED):
        watch: Callable[..., object] = weight.register_post_accumulate_grad_hook  # untyped in torch
        watch(lambda _: on_gradient())


def replicate(model: nn.Module, group: dist.ProcessGroup | None, device: torch.device, bucket_mb: float) -> Reduced:
    """Wrap a model of plain parameters with DDP over a group; None is all ranks."""
    wrapped = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
        process_group=group,
        bucket_cap_mb=bucket_mb,
        gradient_as_bucket_view=True,
    )

    def sync(last: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if last else wrapped.no_sync()

    return Reduced(wrapped, sync, dist.get_world_size(group))

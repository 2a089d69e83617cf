"""A column-parallel linear layer whose backward pass hides its communication behind its own arithmetic.

Given the gradient of the result, two products are due: the gradient of the input, which must be summed over ranks, and
the gradient of the weight, which needs no one. The sum is started as soon as the first is known, and the second is
computed meanwhile. With sequence parallelism the input is gathered from all ranks before use and its gradient scattered
after; the gathered input is not kept but gathered again, behind the first product.

All layers that share an input share one sum. On a GPU streams keep the order only if kernels are issued to one hardware
queue: set CUDA_DEVICE_MAX_CONNECTIONS=1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class AsyncColumns:
    """`seams.Project` of layers whose weights are DTensors split by columns of the result over a group."""

    group: dist.ProcessGroup
    splits_tokens: bool

    def __call__(self, x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
        """Each rank's columns of each result, for all tokens; `x` is this rank's tokens, or all of them."""
        weights = [_local(layer.get_parameter("weight")) for layer in layers]
        if torch.is_autocast_enabled(x.device.type):  # the backward pass runs without
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
        found: Sequence[Tensor] = _Columns.apply(self.group, self.splits_tokens, x, *weights)  # type: ignore[no-untyped-call]  # untyped in torch
        return found


def _local(weight: Tensor) -> Tensor:
    assert isinstance(weight, DTensor), "tp.split comes first"
    return weight.to_local()


class _Columns(torch.autograd.Function):
    """x W^T for several W; see the module."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, splits_tokens: bool, x: Tensor, *weights: Tensor) -> Any:
        """(B, S, D) -> (B, all S, columns) each."""
        ctx.group, ctx.splits_tokens = group, splits_tokens
        ctx.save_for_backward(x, *weights)
        whole = _gather(x, group)() if splits_tokens else x
        return tuple(whole @ weight.t() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Start the input's sum, compute the weights' gradients, wait."""
        x, *weights = ctx.saved_tensors
        take_whole = _gather(x, ctx.group) if ctx.splits_tokens else lambda: x
        partial = grads[0] @ weights[0]
        for grad, weight in zip(grads[1:], weights[1:], strict=True):
            partial += grad @ weight
        take_sum = (_scatter if ctx.splits_tokens else _reduce)(partial, ctx.group)
        rows = take_whole().flatten(0, 1)
        of_weights = [grad.flatten(0, 1).t() @ rows for grad in grads]
        return None, None, take_sum(), *of_weights


#: torch 2.13 renames both and warns of the names that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

#: Waits for a message that is under way, and gives what came of it.
Take = Callable[[], Tensor]


def _reduce(partial: Tensor, group: dist.ProcessGroup) -> Take:
    """Sum over ranks."""
    work = dist.all_reduce(partial, group=group, async_op=True)

    def take() -> Tensor:
        work.wait()
        return partial

    return take


def _gather(x_bsd: Tensor, group: dist.ProcessGroup) -> Take:
    """All ranks' tokens. Collectives join the first dimension, so tokens are put there."""
    mine = x_bsd.transpose(0, 1).contiguous()
    whole = mine.new_empty(len(mine) * dist.get_world_size(group), *mine.shape[1:])
    work = _all_gather(whole, mine, group=group, async_op=True)

    def take() -> Tensor:
        work.wait()
        return whole.transpose(0, 1)

    return take


def _scatter(partial_bsd: Tensor, group: dist.ProcessGroup) -> Take:
    """Sum over ranks, of this rank's tokens."""
    whole = partial_bsd.transpose(0, 1).contiguous()
    mine = whole.new_empty(len(whole) // dist.get_world_size(group), *whole.shape[1:])
    work = _reduce_scatter(mine, whole, group=group, async_op=True)

    def take() -> Tensor:
        work.wait()
        return mine.transpose(0, 1)

    return take

"""All-gather: how does a rank attend to keys of other ranks? It gathers all of them and computes its own queries.

Two collectives a layer: keys and values are gathered forward, their gradients summed and scattered backward. The
attention itself is any kernel's, with queries that begin in the middle of their documents. Memory of keys and values
grows with the whole row; only G heads of them travel, so with grouped heads this is less than it seems.

Shape letters: B rows, T own tokens of a row, S all, H query heads, G key heads, E head size, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from amdahl_trainer.attention import attend_pieces
from amdahl_trainer.documents import Documents, bounds_of, meet
from amdahl_trainer.shards import Spread

#: torch 2.13 renames both and warns of the names that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def attend(q_bthe: Tensor, k_btge: Tensor, v_btge: Tensor, documents: Documents | None, spread: Spread) -> Tensor:
    """This rank's part of `attention.attend`: own queries (B, T, H, E) over the keys (B, T, G, E) of every rank."""
    keys, values = gather(torch.stack((k_btge, v_btge)), spread, dim=2).unbind()
    rows, tokens = keys.shape[:2]
    bounds = bounds_of(documents, rows, tokens)
    spans = spread.shards.spans(spread.rank, tokens)
    chunks = zip(q_bthe.chunk(len(spans), dim=1), spans, strict=True)
    mixed = [attend_pieces(chunk, keys, values, meet(bounds, span, (0, tokens))) for chunk, span in chunks]
    return torch.cat(mixed, dim=1)


def gather(own: Tensor, spread: Spread, dim: int) -> Tensor:
    """Whole rows along `dim` from each rank's own tokens; its gradient is the sum over ranks, of own tokens."""
    parts: Tensor = _AllGather.apply(own.contiguous(), spread.group)  # type: ignore[no-untyped-call]  # torch's
    return spread.shards.join(parts.unbind(), dim)


class _AllGather(torch.autograd.Function):
    """(...) -> (W, ...)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Every rank's tensor."""
        ctx.group = group
        parts = own.new_empty(group.size(), *own.shape)
        _all_gather(parts.flatten(0, 1), own, group=group)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The sum over ranks of their gradients of this rank's tensor, added up in float32."""
        own = grad.new_empty(grad.shape[1:], dtype=torch.float32)
        _reduce_scatter(own, grad.float().contiguous().flatten(0, 1), group=ctx.group)
        return own.type_as(grad), None

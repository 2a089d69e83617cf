"""Ulysses: how does a rank attend to keys of other ranks? It trades tokens for heads.

One all-to-all gives each rank all tokens of its share of heads, any attention kernel computes them as if there were no
other ranks, and a second all-to-all gives the tokens back with all heads (arXiv 2309.14509). The exchanges are each
other's gradients. What travels does not grow with the number of ranks; heads bound it: they are dealt out whole.

Where there are fewer key heads than ranks, or not a multiple, each is copied until there are: the gradients of copies
add up.

Shape letters: B rows, T own tokens of a row, S all, H query heads, G key heads, E head size, W ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from amdahl_trainer import attention
from amdahl_trainer.documents import Documents
from amdahl_trainer.shards import Spread


def attend(q_bthe: Tensor, k_btge: Tensor, v_btge: Tensor, documents: Documents | None, spread: Spread) -> Tensor:
    """This rank's part of `attention.attend`: own queries (B, T, H, E) over the keys (B, T, G, E) of every rank.

    W divides H, see `shards.check`. A rank's H / W query heads then use whole groups of the copied key heads, because
    both W and G divide H.
    """
    copies = math.lcm(k_btge.shape[2], spread.shards.world) // k_btge.shape[2]
    k_btge, v_btge = (part.repeat_interleave(copies, dim=2) for part in (k_btge, v_btge))
    q_bshe, k_bsge, v_bsge = (_to_heads(part, spread) for part in (q_bthe, k_btge, v_btge))
    mixed = attention.attend(q_bshe, k_bsge, v_bsge, documents)
    return _to_tokens(mixed, spread)


def _to_heads(x_bthe: Tensor, spread: Spread) -> Tensor:
    """Own tokens of all heads to all tokens of own heads: (B, T, H, E) -> (B, S, H / W, E)."""
    by_rank = torch.stack(x_bthe.chunk(spread.shards.world, dim=2))
    return spread.shards.join(_all_to_all(by_rank, spread).unbind(), dim=1)


def _to_tokens(x_bshe: Tensor, spread: Spread) -> Tensor:
    """All tokens of own heads to own tokens of all heads: (B, S, H / W, E) -> (B, T, H, E)."""
    by_rank = torch.stack(spread.shards.cut(x_bshe, dim=1))
    return torch.cat(_all_to_all(by_rank, spread).unbind(), dim=2)


def _all_to_all(parts: Tensor, spread: Spread) -> Tensor:
    exchanged: Tensor = _AllToAll.apply(parts, spread.group)  # type: ignore[no-untyped-call]  # torch's
    return exchanged


class _AllToAll(torch.autograd.Function):
    """(W, ...) -> (W, ...): the r-th part goes to rank r, and what came from rank r is the r-th part."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """What the ranks sent to this one."""
        ctx.group = group
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The same exchange: it is its own inverse."""
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous(), group=ctx.group)
        return received, None

"""What is the attention of some queries over some keys, where these are not all the keys there are?

Ring attention sees keys block by block. Outputs of blocks, each normalised by its own sum, can be merged where the
logarithm of that sum is known (log-sum-exp, lse), and with the merged lse the gradients of each block can be computed
apart (arXiv 2310.01889). Torch has no public attention that gives and takes the lse on every device: here it is plain
matrix products, and flash attention where the device has it. Both take sequences laid end to end.

Shape letters: T all queries, U all keys, H query heads, G key heads, E head size; t and u of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from amdahl_trainer.attention import can_flash, lay_out


class Partial(NamedTuple):
    """Attention over some keys: `out` (T, H, E) and `lse` (T, H), float32; over no keys 0 and minus infinity."""

    out: Tensor
    lse: Tensor


class Gradients(NamedTuple):
    """Of queries (T, H, E), keys and values (U, G, E), float32."""

    q: Tensor
    k: Tensor
    v: Tensor


class Sequences(NamedTuple):
    """Lengths of sequences laid end to end; the i-th queries see the i-th keys."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    #: Queries and keys of a sequence are as many, the n-th query sees the first n keys; else each query sees each key.
    is_causal: bool


class Kernel(Protocol):
    """Attention of sequences, forward and backward."""

    def forward(self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences) -> Partial:
        """Attention over these keys."""

    def backward(
        self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences, whole: Partial, grad_the: Tensor
    ) -> Gradients:
        """What these keys contribute to the gradients, given the attention over all keys: `whole`."""


def merge(one: Partial, other: Partial) -> Partial:
    """Attention over the keys of both, in any order; neither weight exceeds 1, so nothing overflows."""
    lse = torch.logaddexp(one.lse, other.lse)
    base = lse.masked_fill(lse == -torch.inf, 0.0)  # no keys on either side: minus infinity less itself is no number
    weights = ((part.lse - base).exp().unsqueeze(-1) for part in (one, other))
    return Partial(one.out * next(weights) + other.out * next(weights), lse)


class Products:
    """Plain matrix products in float32, on any device. Their memory grows with queries times keys of a sequence."""

    def forward(self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences) -> Partial:
        """See `Kernel`."""
        parts = []
        for q, k, v in _each((q_the,), (k_uge, v_uge), of):
            scores = _scores(q, k, of.is_causal)
            lse = scores.logsumexp(-1, keepdim=True)
            parts.append((_ungroup((scores - lse).exp() @ v), _ungroup(lse).squeeze(-1)))
        return Partial(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def backward(
        self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences, whole: Partial, grad_the: Tensor
    ) -> Gradients:
        """See `Kernel`."""
        by_query = grad_the, q_the, whole.out, whole.lse.unsqueeze(-1)
        parts = []
        for grad, q, out, lse, k, v in _each(by_query, (k_uge, v_uge), of):
            share = (_scores(q, k, of.is_causal) - lse).exp()
            slope = share * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * _scale(q)
            parts.append((_ungroup(slope @ k), _sum_group(slope.mT @ q), _sum_group(share.mT @ grad)))
        return Gradients(*(torch.cat(part) for part in zip(*parts, strict=True)))


class Flash:
    """Variable-length flash attention of CUDA devices, in half precision; its own sums are float32."""

    def forward(self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences) -> Partial:
        """See `Kernel`."""
        out, lse_ht, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 (no public one differentiates a block)
            q_the, k_uge, v_uge, *_flash_layout(of, q_the.device), 0.0, of.is_causal, False
        )
        return Partial(out.float(), lse_ht.mT)

    def backward(
        self, q_the: Tensor, k_uge: Tensor, v_uge: Tensor, of: Sequences, whole: Partial, grad_the: Tensor
    ) -> Gradients:
        """See `Kernel`."""
        no_dropout = grad_the.new_empty(2, dtype=torch.uint64), grad_the.new_empty(0)
        parts = torch.ops.aten._flash_attention_backward(  # noqa: SLF001 (as above)
            grad_the,
            q_the,
            k_uge,
            v_uge,
            whole.out.type_as(q_the),
            whole.lse.mT.contiguous(),
            *_flash_layout(of, q_the.device),
            0.0,
            of.is_causal,
            *no_dropout,
        )
        return Gradients(*(part.float() for part in parts))


def kernel_for(q: Tensor) -> Kernel:
    """The kernel for queries of this type, on this device."""
    return Flash() if can_flash(q) else Products()


def _each(by_query: tuple[Tensor, ...], by_key: tuple[Tensor, ...], of: Sequences) -> Iterator[tuple[Tensor, ...]]:
    """Each sequence's queries as (G, H / G, t, E) and keys as (G, 1, u, E), float32."""
    groups = by_key[0].shape[1]
    queries = (torch.split(part.float(), list(of.queries)) for part in by_query)
    keys = (torch.split(part.float(), list(of.keys)) for part in by_key)
    for sequence in zip(*queries, *keys, strict=True):
        yield tuple(part.unflatten(1, (groups, -1)).movedim(0, 2) for part in sequence)


def _ungroup(x_grte: Tensor) -> Tensor:
    """(G, H / G, t, E) -> (t, H, E)."""
    return x_grte.movedim(2, 0).flatten(1, 2)


def _sum_group(x_grue: Tensor) -> Tensor:
    """(G, H / G, u, E) -> (u, G, E): a key is shared by the queries of its group."""
    return x_grue.sum(1).movedim(1, 0)


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _scores(q_grte: Tensor, k_g1ue: Tensor, is_causal: bool) -> Tensor:
    """(G, H / G, t, u), minus infinity where a query does not see a key."""
    scores = q_grte @ k_g1ue.mT * _scale(q_grte)
    if not is_causal:
        return scores
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf)


def _flash_layout(of: Sequences, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Offsets and greatest lengths, as the kernel takes them."""
    (offsets_q, longest_q), (offsets_k, longest_k) = lay_out(of.queries, device), lay_out(of.keys, device)
    return offsets_q, offsets_k, longest_q, longest_k

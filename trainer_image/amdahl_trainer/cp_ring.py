"""Ring: how does a rank attend to keys that never lie on one rank together? They come round, a rank's at a time.

At hop h rank r holds the keys and values of rank r - h, computes its queries' attention over them while they travel
on, and merges the result with what it has (arXiv 2310.01889). Backward they come round again, and their gradients
travel with them, growing at each rank, until one last message takes them home. A rank holds two ranks' keys at a time
whatever their number: the least memory of the three modes. Keys travel unexpanded, G heads of them, not H.

Which chunks of queries and keys meet is known to every rank beforehand, from the bounds of documents. Of those that do
not meet nothing is computed, and the ring stops after the last hop at which anything meets anywhere: where documents
are shorter than a chunk and chunks dealt in order, after one.

Shape letters: B rows, T own tokens of a row, H query heads, G key heads, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, product
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from amdahl_trainer.blocks import Partial, Sequences, kernel_for, merge
from amdahl_trainer.documents import Bounds, Documents, Span, bounds_of, flat, meet, merge_spans, reaches
from amdahl_trainer.shards import Shards, Spread


def attend(q_bthe: Tensor, k_btge: Tensor, v_btge: Tensor, documents: Documents | None, spread: Spread) -> Tensor:
    """This rank's part of `attention.attend`: own queries (B, T, H, E) over the keys (B, T, G, E) of every rank."""
    rows, held = q_bthe.shape[:2]
    bounds = bounds_of(documents, rows, held * spread.shards.world)
    mixed: Tensor = _Ring.apply(q_bthe, k_btge, v_btge, bounds, spread)  # type: ignore[no-untyped-call]  # torch's
    return mixed


class Block(NamedTuple):
    """Own queries and another rank's keys that meet, as spans of their tokens laid end to end row by row."""

    queries: list[Span]
    keys: list[Span]
    sequences: Sequences


@lru_cache(maxsize=256)  # the layers of a model ask the same
def find_blocks(bounds: Bounds, shards: Shards, rank: int, source: int) -> tuple[Block, ...]:
    """What `rank` computes of `source`'s keys: a block for each pair of chunks in which anything meets."""
    tokens = bounds[0][-1]
    held = tokens // shards.world
    found = []
    for query_at, queries in _placed(shards.spans(rank, tokens)):
        for key_at, keys in _placed(shards.spans(source, tokens)):
            pieces = meet(bounds, queries, keys, query_at, key_at)
            if pieces:
                asking = [flat(piece.row, piece.queries, held) for piece in pieces]
                seen = [flat(piece.row, piece.keys, held) for piece in pieces]
                sequences = Sequences(_sizes(asking), _sizes(seen), is_causal=queries == keys)
                found.append(Block(merge_spans(asking), merge_spans(seen), sequences))
    return tuple(found)


@lru_cache(maxsize=64)
def count_hops(bounds: Bounds, shards: Shards) -> int:
    """Hops of the ring, the own keys being the first: up to the last at which anything meets on any rank."""
    tokens, ranks = bounds[0][-1], range(shards.world)
    spans = [shards.spans(rank, tokens) for rank in ranks]
    for hop in reversed(ranks[1:]):
        pairs = chain.from_iterable(product(spans[rank], spans[rank - hop]) for rank in ranks)
        if any(reaches(bounds, keys, queries) for queries, keys in pairs):
            return hop + 1
    return 1


class _Ring(torch.autograd.Function):
    """Between its passes it keeps own queries, keys, values and output, and the lse over all keys."""

    @staticmethod
    def forward(ctx: Any, q_bthe: Tensor, k_btge: Tensor, v_btge: Tensor, bounds: Bounds, spread: Spread) -> Tensor:
        """See `attend`."""
        q, kv = q_bthe.flatten(0, 1), torch.stack((k_btge, v_btge)).flatten(1, 2)
        kernel = kernel_for(q)
        whole = Partial(
            q.new_zeros(q.shape, dtype=torch.float32), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
        )
        with torch.autocast(q.device.type, enabled=False):  # sums are float32
            for source, (k, v) in _come_round(kv, bounds, spread):
                for asking, keys, sequences in find_blocks(bounds, spread.shards, spread.rank, source):
                    part = kernel.forward(_pick(q, asking), _pick(k, keys), _pick(v, keys), sequences)
                    so_far = Partial(_pick(whole.out, asking), _pick(whole.lse, asking))
                    for total, merged in zip(whole, merge(so_far, part), strict=True):
                        _put(total, asking, merged)
        out = whole.out.type_as(q)
        ctx.save_for_backward(q, kv, out, whole.lse)
        ctx.bounds, ctx.spread, ctx.shapes = bounds, spread, (q_bthe.shape, k_btge.shape)
        return out.view_as(q_bthe)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bthe: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        q, kv, out, lse = ctx.saved_tensors
        grad, kernel, spread = grad_bthe.contiguous().flatten(0, 1), kernel_for(q), ctx.spread
        hops = count_hops(ctx.bounds, spread.shards)
        grad_q = q.new_zeros(q.shape, dtype=torch.float32)
        travelling: _Underway | None = None
        for hop, (source, (k, v)) in enumerate(_come_round(kv, ctx.bounds, spread)):
            grad_kv = kv.new_zeros(kv.shape, dtype=torch.float32)
            for asking, keys, sequences in find_blocks(ctx.bounds, spread.shards, spread.rank, source):
                whole = Partial(_pick(out, asking), _pick(lse, asking))
                by_key = _pick(k, keys), _pick(v, keys)
                part = kernel.backward(_pick(q, asking), *by_key, sequences, whole, _pick(grad, asking))
                _add(grad_q, asking, part.q)
                _add(grad_kv[0], keys, part.k)
                _add(grad_kv[1], keys, part.v)
            if travelling is not None:  # what other ranks had to add to this source's gradient
                grad_kv += travelling.arrive()
            travelling = _exchange(grad_kv, spread, 1 if hop + 1 < hops else -hop)
        assert travelling is not None, "there is at least one hop"
        q_shape, kv_shape = ctx.shapes
        home = travelling.arrive().type_as(kv)
        return grad_q.type_as(q).view(q_shape), home[0].view(kv_shape), home[1].view(kv_shape), None, None


class _Underway(NamedTuple):
    """A message and its answer. The message is held until it has left."""

    sent: Tensor
    received: Tensor
    works: list[dist.Work]

    def arrive(self) -> Tensor:
        """Wait for both."""
        for work in self.works:
            work.wait()
        return self.received


def _exchange(tensor: Tensor, spread: Spread, distance: int) -> _Underway:
    """Send to the rank at a distance along the ring, receive from the one as far behind."""
    world = spread.shards.world
    if distance % world == 0:
        return _Underway(tensor, tensor, [])
    received = torch.empty_like(tensor)
    to = dist.P2POp(dist.isend, tensor, group=spread.group, group_peer=(spread.rank + distance) % world)
    back = dist.P2POp(dist.irecv, received, group=spread.group, group_peer=(spread.rank - distance) % world)
    return _Underway(tensor, received, dist.batch_isend_irecv([to, back]))


def _come_round(kv: Tensor, bounds: Bounds, spread: Spread) -> Iterator[tuple[int, Tensor]]:
    """Each source rank with its keys and values (2, ...); while the caller computes, the next ones arrive."""
    hops = count_hops(bounds, spread.shards)
    for hop in range(hops):
        coming = _exchange(kv, spread, 1 if hop + 1 < hops else 0)
        yield (spread.rank - hop) % spread.shards.world, kv
        kv = coming.arrive()


def _placed(spans: tuple[Span, ...]) -> list[tuple[int, Span]]:
    """Where each chunk lies in the rank's own tensor; chunks are equal."""
    return [(number * (span[1] - span[0]), span) for number, span in enumerate(spans)]


def _sizes(spans: list[Span]) -> tuple[int, ...]:
    return tuple(end - first for first, end in spans)


def _pick(tokens: Tensor, spans: list[Span]) -> Tensor:
    """Tokens in these spans, end to end; a view where there is one span."""
    parts = [tokens[slice(*span)] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _put(tokens: Tensor, spans: list[Span], values: Tensor) -> None:
    for span, part in zip(spans, torch.split(values, list(_sizes(spans))), strict=True):
        tokens[slice(*span)] = part


def _add(tokens: Tensor, spans: list[Span], values: Tensor) -> None:
    for span, part in zip(spans, torch.split(values, list(_sizes(spans))), strict=True):
        tokens[slice(*span)] += part

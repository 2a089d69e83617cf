"""Which rank holds which tokens of a row? In equal chunks, dealt in order or to and fro.

A causal token costs as much as there are tokens before it. `contiguous` gives each rank one chunk, so the last rank has
`2 world - 1` times the first one's work. `zigzag` cuts twice as many chunks and gives rank r the r-th from either end:
all ranks then have the same work, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from amdahl_trainer.documents import Span

Balance = Literal["zigzag", "contiguous"]
Mode = Literal["allgather", "ulysses", "ring"]


@dataclass(frozen=True)
class Shards:
    """How the tokens of every row are dealt to `world` ranks."""

    world: int
    balance: Balance

    @property
    def chunks(self) -> int:
        """Chunks that a row is cut into; its tokens must be a multiple."""
        return self.world * (2 if self.balance == "zigzag" else 1)

    def spans(self, rank: int, tokens: int) -> tuple[Span, ...]:
        """The positions that a rank holds of rows of `tokens`, ascending."""
        size = tokens // self.chunks
        numbers = (rank, self.chunks - 1 - rank) if self.balance == "zigzag" else (rank,)
        return tuple((number * size, (number + 1) * size) for number in numbers)

    def cut(self, row: Tensor, dim: int) -> list[Tensor]:
        """What each rank holds of a tensor with whole rows along `dim`."""
        tokens = row.shape[dim]
        chunks = torch.split(row, tokens // self.chunks, dim)
        held = ([first * self.chunks // tokens for first, _ in self.spans(rank, tokens)] for rank in range(self.world))
        return [torch.cat([chunks[number] for number in numbers], dim) for numbers in held]

    def join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Whole rows from what each rank holds; undoes `cut`."""
        tokens = sum(part.shape[dim] for part in parts)
        spans = chain.from_iterable(self.spans(rank, tokens) for rank in range(self.world))
        chunks = chain.from_iterable(torch.split(part, tokens // self.chunks, dim) for part in parts)
        return torch.cat([chunk for _, chunk in sorted(zip(spans, chunks, strict=True), key=lambda pair: pair[0])], dim)


@dataclass(frozen=True)
class Spread:
    """Rows spread over the ranks of a process group, of which this is one."""

    group: dist.ProcessGroup
    shards: Shards
    rank: int


def check(shards: Shards, mode: Mode, tokens: int, heads: int) -> None:
    """Refuse what cannot be dealt evenly.

    Args:
        shards: of the rows.
        mode: how attention is computed.
        tokens: of a whole row.
        heads: query heads that a rank computes, after tensor parallelism.

    Raises:
        ValueError: names the nearest legal values.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"context parallel mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}")
    if shards.balance not in get_args(Balance):
        raise ValueError(f"balance {shards.balance!r} is unknown; choose one of {', '.join(get_args(Balance))}")
    if tokens % shards.chunks:
        below = tokens // shards.chunks * shards.chunks
        legal = " or ".join(str(count) for count in (below, below + shards.chunks) if count)
        raise ValueError(
            f"rows of {tokens} tokens cannot be cut into the {shards.chunks} equal chunks of context parallel degree "
            f"{shards.world} with {shards.balance} balance; nearest legal row length: {legal}"
        )
    if mode == "ulysses" and heads % shards.world:
        degrees = [degree for degree in range(1, heads + 1) if heads % degree == 0]
        near = [max(degree for degree in degrees if degree < shards.world)]
        near += [degree for degree in degrees if degree > shards.world][:1]
        raise ValueError(
            f"ulysses deals {heads} query heads to {shards.world} ranks, which does not come out even; "
            f"nearest legal degree: {' or '.join(map(str, near))}, or another mode"
        )

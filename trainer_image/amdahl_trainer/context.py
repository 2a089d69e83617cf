"""How do ranks share the tokens of a row? Each holds some, and only attention needs the others'.

Everything else in a decoder treats tokens one by one, so a model whose inputs and positions are sharded needs to know
nothing of it: it hands the context to `attention.attend`. Losses of ranks add up, and so do the gradients of
parameters: whoever reduces gradients must reduce them over these ranks too, also where there is no data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from amdahl_trainer import cp_allgather, cp_ring, cp_ulysses
from amdahl_trainer.documents import Documents
from amdahl_trainer.shards import Balance, Mode, Shards, Spread

_ATTEND: Mapping[Mode, Callable[[Tensor, Tensor, Tensor, Documents | None, Spread], Tensor]] = {
    "allgather": cp_allgather.attend,
    "ulysses": cp_ulysses.attend,
    "ring": cp_ring.attend,
}


@dataclass(frozen=True)
class Context:
    """Ranks that hold every row together. All must be given the same rows and documents, and call in the same order."""

    spread: Spread
    mode: Mode

    @classmethod
    def over(cls, group: dist.ProcessGroup, mode: Mode, balance: Balance) -> Context:
        """The context of a process group. `shards.check` says beforehand whether rows and heads fit."""
        return cls(Spread(group, Shards(group.size(), balance), group.rank()), mode)

    def shard(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of whole rows along `dim`: inputs, targets, positions."""
        spans = self.spread.shards.spans(self.spread.rank, whole.shape[dim])
        return torch.cat([whole.narrow(dim, first, end - first) for first, end in spans], dim)

    def unshard(self, own: Tensor, dim: int = 1) -> Tensor:
        """Whole rows from each rank's tokens, on every rank. Differentiable: gradients of all ranks add up."""
        return cp_allgather.gather(own, self.spread, dim)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's. Graphs would be of these documents, and point-to-point messages have no place in them
    def attend(self, q_bthe: Tensor, k_btge: Tensor, v_btge: Tensor, documents: Documents | None) -> Tensor:
        """This rank's part of `attention.attend`, which see; `documents` are of whole rows."""
        return _ATTEND[self.mode](q_bthe, k_btge, v_btge, documents, self.spread)

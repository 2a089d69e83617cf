"""What is minimised? The sum of the tokens' cross entropy over the number of valid tokens of the *whole* step.

Never a mean of means: with ragged rows the mean over micro-batches, or over ranks, weights tokens unequally, and the
result then depends on how the work is split. A sum divided by one global count does not.

Logits are the largest tensor of a model with a large vocabulary. `Criterion` can make them for one piece of the rows
at a time, and with tensor parallelism each rank only ever has its columns of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Target of a slot that is padding.
IGNORED = -100

#: (logits (N, columns), targets (N,)) -> sum of cross entropies over valid targets, float32.
CrossEntropy = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_sum(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    """Cross entropy in nats, summed over valid slots, in float32."""
    return F.cross_entropy(logits_nv.float(), targets_n, ignore_index=IGNORED, reduction="sum")


def loss_sum(logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
    """The same for (batch, seq, vocabulary) logits and (batch, seq) targets; `IGNORED` marks padding."""
    return cross_entropy_sum(logits_bsv.flatten(0, 1), targets_bs.flatten())


@dataclass(frozen=True)
class Criterion:
    """From the stream to the loss.

    Attributes:
        chunks: pieces of the rows, along the tokens, whose logits exist one at a time. With more than one the head is
            computed twice, once more in the backward pass.
        cross_entropy: of the logits that the head gives.
        sequence_ranks: ranks over which the tokens of the stream are split, the head putting them together; see `tp`.
    """

    chunks: int = 1
    cross_entropy: CrossEntropy = cross_entropy_sum
    sequence_ranks: int = 1

    def __call__(self, head: nn.Module, x_bsd: Tensor, targets_bs: Tensor) -> Tensor:
        """Sum of cross entropies of a stream whose targets, of all its ranks' tokens, are given."""
        if self.chunks == 1:
            return self._piece(head, x_bsd, targets_bs)
        # (B, ranks, tokens of a rank): a piece of the stream and the targets of the same piece on every rank.
        targets_brs = targets_bs.view(len(targets_bs), self.sequence_ranks, -1)
        pieces = zip(x_bsd.chunk(self.chunks, 1), targets_brs.chunk(self.chunks, 2), strict=True)
        sums = [checkpoint(self._piece, head, x, targets.flatten(1), use_reentrant=False) for x, targets in pieces]
        total: Tensor = sum(sums[1:], sums[0])
        return total

    def _piece(self, head: nn.Module, x_bsd: Tensor, targets_bs: Tensor) -> Tensor:
        return self.cross_entropy(head(x_bsd).flatten(0, 1), targets_bs.flatten())


#: All logits at once, of one process.
WHOLE = Criterion()

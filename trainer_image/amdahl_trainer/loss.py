"""What is minimised? The sum of the tokens' cross entropy over the number of valid tokens of the *whole* step.

Never a mean of means: with ragged rows the mean over micro-batches, or over ranks, weights tokens unequally, and the
result then depends on how the work is split. A sum divided by one global count does not.

Logits are the largest tensor of a model with a large vocabulary. `Criterion` can make them for one piece of the rows
at a time, and with tensor parallelism each rank only ever has its columns of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor, nn
from torch.func import functional_call
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
        streams, targets = x_bsd.chunk(self.chunks, 1), targets_brs.chunk(self.chunks, 2)
        weights = _lend(head.get_parameter("weight"), x_bsd.device, len(streams))
        sums = [
            checkpoint(self._piece, head, x, of_x.flatten(1), weight, use_reentrant=False)
            for x, of_x, weight in zip(streams, targets, weights, strict=True)
        ]
        total: Tensor = sum(sums[1:], sums[0])
        return total

    def _piece(self, head: nn.Module, x_bsd: Tensor, targets_bs: Tensor, weight: Tensor | None = None) -> Tensor:
        logits: Tensor = head(x_bsd) if weight is None else functional_call(head, {"weight": weight}, (x_bsd,))
        return self.cross_entropy(logits.flatten(0, 1), targets_bs.flatten())


def _lend(weight: Tensor, device: torch.device, times: int) -> Iterator[Tensor]:
    """The same weight for each piece, as it is multiplied. Its gradients are summed in float32, and rounded once.

    Autograd sums in the type of what is multiplied, bfloat16 with autocast and FSDP's gathered copies: an error that
    grows with the number of pieces. Here the sum goes from one piece to the next, as the gradient of a stand-in.
    """
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype
    used, stand_in = weight.detach().to(dtype), _StandIn.apply(weight)  # type: ignore[no-untyped-call]  # untyped in torch
    for turn in range(1, times + 1):
        lent, *rest = _Lend.apply(used, stand_in, turn == times)  # type: ignore[no-untyped-call]  # likewise
        yield lent
        stand_in = rest[0] if rest else None


class _StandIn(torch.autograd.Function):
    """A weight's shape in float32, without memory. What is summed as its gradient becomes that of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """See the class."""
        ctx.dtype = weight.dtype
        return weight.new_zeros((), dtype=torch.float32).expand(weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """See the class."""
        return grads[0].to(ctx.dtype)


class _Lend(torch.autograd.Function):
    """A weight for one piece, and the stand-in for those that follow, if any."""

    @staticmethod
    def forward(ctx: Any, used: Tensor, stand_in: Tensor, is_last: bool) -> Any:  # noqa: ARG004 (torch's protocol)
        """See the class."""
        lent = used.view_as(used)
        return (lent,) if is_last else (lent, stand_in.view_as(stand_in))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004 (likewise)
        """The sum of this piece's gradient and those of the pieces behind it, which come first."""
        grad, *others = grads
        if not others:
            return None, grad.to(torch.float32, copy=True), None
        add = torch.add if torch.compiler.is_compiling() else Tensor.add_  # a graph sees to its memory by itself
        return None, add(others[0], grad), None


#: All logits at once, of one process.
WHOLE = Criterion()

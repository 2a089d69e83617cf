"""What does the step engine drive? A model on this rank, which turns rows into gradients of the global mean loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amdahl_trainer.feed import Feed


class Replica(Protocol):
    """A rank's part in computing gradients."""

    @property
    def model(self) -> nn.Module:
        """All parameters that this rank holds, under the names they have in the whole model."""

    @property
    def stages(self) -> dist.ProcessGroup | None:
        """Ranks that hold the other parameters, if any."""

    @property
    def rows(self) -> int:
        """Rows that `evaluate` takes."""

    def accumulate(self, packed: Tensor, valid: int) -> Tensor:
        """Forward and backward of a rank's rows, micro-batch by micro-batch; gradients are those of the global mean.

        Args:
            packed: (3, rows, S) inputs, targets and segments in host memory.
            valid: tokens of the step over all ranks, the one divisor of every loss.

        Returns:
            This rank's share of the loss, a detached scalar on the device; the shares of all ranks sum to the loss.
        """

    def evaluate(self, packed: Tensor) -> Tensor:
        """This rank's share of the sum of cross entropies, in nats, of (3, `rows`, S). All ranks must call it alike."""


@dataclass(frozen=True)
class Reduced:
    """A module whose gradients are reduced over ranks.

    Attributes:
        forward: what to call.
        sync: a context for each micro-batch; gradients are reduced in the one that is told it is the last.
        divisor: what the sum over ranks is divided by.
    """

    forward: nn.Module
    sync: Callable[[bool], AbstractContextManager[None]] = lambda _: contextlib.nullcontext()
    divisor: int = 1


@dataclass(frozen=True)
class Whole:
    """The whole model, one micro-batch after the other. `Replica` without a pipeline."""

    model: nn.Module
    reduced: Reduced
    feed: Feed
    precision: Callable[[], AbstractContextManager[object]]
    tells_loss: bool

    @property
    def stages(self) -> None:
        """The parameters are all here, or with ranks that DTensors know of."""

    @property
    def rows(self) -> int:
        """See `Replica`."""
        return self.feed.rows

    def accumulate(self, packed: Tensor, valid: int) -> Tensor:
        """See `Replica`."""
        total = torch.zeros((), device=self.feed.device)
        slope = torch.full((), self.reduced.divisor / valid, device=self.feed.device)  # of what is minimised in the sum
        count = -(-packed.shape[1] // self.feed.rows)
        for number, micro in enumerate(self.feed.cut(packed), start=1):
            with self.reduced.sync(number == count):
                self.feed.mark("forward")
                with self.precision():
                    part = self.reduced.forward(micro.tokens, *micro.beside)
                self.feed.mark("backward")
                torch.autograd.backward(part, slope)
            total += part.detach()
        return total.div_(valid) if self.tells_loss else torch.zeros_like(total)

    @torch.no_grad()
    def evaluate(self, packed: Tensor) -> Tensor:
        """See `Replica`."""
        micro = self.feed.place(packed)
        with self.precision():
            total = self.model(micro.tokens, *micro.beside).double()
        return total if self.tells_loss else torch.zeros_like(total)


def precision(compute: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The context of forward passes: products of matrices in `compute`, parameters in float32."""
    if compute == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)

"""What does one forward pass take? A few rows on the device: their tokens here, their documents, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from amdahl_trainer.context import Context
from amdahl_trainer.documents import Documents, find_documents
from amdahl_trainer.loss import IGNORED


class Micro(NamedTuple):
    """A micro-batch of B rows, with the S of their tokens that this rank computes."""

    tokens: Tensor  # (B, S)
    targets: Tensor  # (B, S)
    documents: Documents | None  # of whole rows
    positions: Tensor  # (S,) in whole rows

    @property
    def beside(self) -> tuple[Documents | None, Tensor, Tensor]:
        """What `Llama.forward` takes after the tokens."""
        return self.documents, self.positions, self.targets


@dataclass(frozen=True)
class Feed:
    """Cuts batches into micro-batches and puts them on the device.

    Attributes:
        rows: of a micro-batch.
        tokens: of a whole row.
        doc_mask: tokens see their own document only.
        context: ranks that share each row's tokens, if any.
        mark: told of each phase of a step that begins.
    """

    rows: int
    tokens: int
    doc_mask: bool
    device: torch.device
    context: Context | None = None
    mark: Callable[[str], None] = lambda _: None

    def cut(self, packed: Tensor) -> Iterator[Micro]:
        """The micro-batches, in order, of a rank's rows: (3, rows, S) as the loader gives them."""
        return (self.place(part) for part in torch.split(packed, self.rows, dim=1))

    def place(self, packed: Tensor) -> Micro:
        """One micro-batch from (3, B, S) inputs, targets and segments in host memory."""
        self.mark("h2d")
        documents = find_documents(packed[2], self.device) if self.doc_mask else None
        tokens, targets = (part.to(self.device, non_blocking=True) for part in (packed[0], packed[1]))
        if self.context is not None:
            tokens, targets = (self.context.shard(part, 1) for part in (tokens, targets))
        return Micro(tokens, targets, documents, self._positions)

    @cached_property
    def _positions(self) -> Tensor:
        """One tensor for the whole run. A stage of a pipeline could not tell them from a stream split by tokens."""
        positions = torch.arange(self.tokens, device=self.device)
        return positions if self.context is None else self.context.shard(positions, 0)


def pad(packed: Tensor, rows: int) -> Tensor:
    """(3, B, S) inputs, targets and segments made `rows` rows long with rows that no loss counts."""
    missing = rows - packed.shape[1]
    if not missing:
        return packed
    blank = packed.new_zeros(3, missing, packed.shape[2])
    blank[1] = IGNORED
    return torch.cat((packed, blank), dim=1)

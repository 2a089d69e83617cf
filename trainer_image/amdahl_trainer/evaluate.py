"""How good is the model? Bits per byte on held-out documents, a number that does not depend on the tokenizer."""

from __future__ import annotations

import math

import numpy as np
import torch

from amdahl_trainer.data.rows import Corpora
from amdahl_trainer.dp import Peers, Place
from amdahl_trainer.loss import IGNORED, loss_sum
from amdahl_trainer.model import Llama


@torch.no_grad()
def bits_per_byte(
    model: Llama, corpora: Corpora, place: Place, peers: Peers, *, sequences: int, rows_at_once: int, doc_mask: bool
) -> float:
    """Cross entropy of the first held-out rows, shared among ranks, in bits per byte of text."""
    rows = corpora.held_out
    mine = range(place.rank, min(sequences, len(rows)), place.world)
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, bytes
    for first in range(0, len(mine), rows_at_once):
        made = [rows.row(index) for index in mine[first : first + rows_at_once]]
        inputs, targets, segments = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*made, strict=True))
        sums[0] += loss_sum(model(inputs, segments if doc_mask else None), targets)
        sums[1] += int(sum(corpora.token_bytes[row.targets[row.targets != IGNORED]].sum() for row in made))
    nats, size = peers.total(sums).tolist()
    return float(nats / math.log(2) / size)

"""How good is the model? Bits per byte on held-out documents, a number that does not depend on the tokenizer."""

from __future__ import annotations

import math

import numpy as np
import torch

from amdahl_trainer.config import Config, check_batch
from amdahl_trainer.data.rows import Corpora
from amdahl_trainer.documents import find_documents
from amdahl_trainer.dp import Peers, Place
from amdahl_trainer.loss import IGNORED, loss_sum
from amdahl_trainer.model import Llama


@torch.no_grad()
def bits_per_byte(model: Llama, corpora: Corpora, place: Place, peers: Peers, config: Config) -> float:
    """Cross entropy of the first `eval.sequences` held-out rows, shared among ranks, in bits per byte of text."""
    rows = corpora.held_out
    mine = range(place.rank, min(config.eval.sequences, len(rows)), place.world)
    at_once = check_batch(config.batch, place.world)
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, bytes
    for first in range(0, len(mine), at_once):
        made = [rows.row(index) for index in mine[first : first + at_once]]
        inputs, targets, segments = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        documents = find_documents(segments, device) if config.data.doc_mask else None
        logits = model(inputs.to(device), documents)
        sums[0] += loss_sum(logits, targets.to(device))
        sums[1] += int(sum(corpora.token_bytes[row.targets[row.targets != IGNORED]].sum() for row in made))
    nats, size = peers.total(sums).tolist()
    return float(nats / math.log(2) / size)

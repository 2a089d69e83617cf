"""How good is the model? Bits per byte on held-out documents, a number that does not depend on the tokenizer."""

from __future__ import annotations

import math

import numpy as np
import torch

from amdahl_trainer.data.sources import Corpora
from amdahl_trainer.feed import pad
from amdahl_trainer.loss import IGNORED
from amdahl_trainer.mesh import Mesh
from amdahl_trainer.peers import Peers
from amdahl_trainer.replica import Replica


def bits_per_byte(replica: Replica, corpora: Corpora, mesh: Mesh, peers: Peers, sequences: int) -> float:
    """Cross entropy of the first `sequences` held-out rows, shared among ranks, in bits per byte of text.

    Every rank runs the same number of passes, on rows that count for nothing where it has none left: where a model is
    split, a pass needs all ranks.
    """
    rows = corpora.held_out
    count = min(sequences, len(rows))
    mine = range(mesh.seat.dp, count, mesh.degrees.dp)
    nats, size = torch.zeros((), dtype=torch.float64), 0
    for first in range(0, -(-count // mesh.degrees.dp), replica.rows):
        made = [rows.row(index) for index in mine[first : first + replica.rows]]
        packed = np.array(made, dtype=np.int64).reshape(-1, 3, rows.seq_len).swapaxes(0, 1)
        nats = nats + replica.evaluate(pad(torch.from_numpy(packed), replica.rows))
        if mesh.seat.reads:
            size += int(sum(corpora.token_bytes[row.targets[row.targets != IGNORED]].sum() for row in made))
    told = peers.total(torch.stack((nats, torch.tensor(float(size), dtype=torch.float64, device=nats.device))))
    return float(told[0] / math.log(2) / told[1])

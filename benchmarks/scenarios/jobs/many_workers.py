"""Records come in deflated shards, and each loader worker keeps the shard it read last.

Batches go round the workers in turn, so every one of them inflates every shard: the work grows with their number.
The workers are niced, as is common on shared machines: the training itself always finds a core.
"""

import os
import zlib

import numpy as np
import torch
from common import BATCH, CLASSES, FEATURES, HERE, chance, parse_steps, settle, train
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SHARDS = HERE / "data" / "shards"
SHARD_COUNT = 16
ROW_BYTES = 128 * FEATURES
SHARD_SAMPLES = 8 * BATCH
"""Samples in a shard: eight batches."""


def write_shards() -> None:
    """Write the shards once: rows of slow random walks, deflated."""
    SHARDS.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    for number in range(SHARD_COUNT):
        path = SHARDS / f"{number}.bin"
        if not path.exists():
            walk = np.cumsum(generator.integers(-2, 3, (SHARD_SAMPLES, ROW_BYTES)), axis=1).astype(np.int8)
            path.write_bytes(zlib.compress(walk.tobytes(), 6))


class Shards(Dataset[tuple[Tensor, int]]):
    """Samples in shard order; a shard is inflated whole and kept until another is wanted."""

    def __init__(self) -> None:
        self.number, self.rows = -1, np.empty((0, 0), dtype=np.int8)

    def __len__(self) -> int:
        return 8 * SHARD_COUNT * SHARD_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number, row = index // SHARD_SAMPLES % SHARD_COUNT, index % SHARD_SAMPLES
        if number != self.number:
            raw = zlib.decompress((SHARDS / f"{number}.bin").read_bytes())
            self.number, self.rows = number, np.frombuffer(raw, dtype=np.int8).reshape(SHARD_SAMPLES, -1)
        bands = self.rows[row].reshape(FEATURES, -1).astype(np.float32).mean(axis=1) / 32
        return torch.from_numpy(bands + 0.01 * (index % 97)), chance(index, "label") % CLASSES


def be_modest(_worker: int) -> None:
    """Give way to the training."""
    os.nice(10)


if __name__ == "__main__":
    settle()
    loader = DataLoader(Shards(), batch_size=BATCH, num_workers=8, worker_init_fn=be_modest)
    train(loader, parse_steps())

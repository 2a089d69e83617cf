"""Remote shards: most reads are quick, the first read of each shard waits long for storage to answer.

Two workers keep up on average; a short queue cannot bridge the wait. The waits are sleeps that stand for the latency
of remote storage, drawn once per shard.
"""

from common import BATCH, Records, chance, parse_steps, settle, train, wait_for_storage
from torch import Tensor
from torch.utils.data import DataLoader

SHARD = 5 * BATCH
"""Samples in a shard: every fifth batch opens the next one, so the workers take turns at it."""


class Remote(Records):
    """Records whose shards lie behind a slow first answer, of 140 to 220 ms."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index % SHARD == 0:
            wait_for_storage(0.14 + 0.08 * (chance(index, "wait") % 1000) / 1000)
        return super().__getitem__(index)


if __name__ == "__main__":
    settle()
    train(DataLoader(Remote(), batch_size=BATCH, num_workers=2, prefetch_factor=1), parse_steps())

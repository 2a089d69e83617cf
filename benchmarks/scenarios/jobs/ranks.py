"""Data-parallel training at a constant global batch, one process each; started here or by torchrun.

`--fork N` starts N processes itself (one import of torch for all); without it torchrun's environment is used.
`--batch N` is a step's samples over all ranks: the more, the more they compute for each byte that they send each other.
`--uneven` gives the last rank the long documents, as a list sorted by length does when it is cut into pieces.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import CLASSES, FEATURES, Net, settle, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BATCH = 96
"""Samples of a step over all ranks: small enough that what the ranks send each other is felt."""
LONG = 2
"""How many times longer the last rank's documents are, with `--uneven`."""


class Longer(nn.Module):
    """The model on documents several times as long."""

    def __init__(self, model: nn.Module, times: int) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Mean score over the parts of each document."""
        parts = [self.model(features.roll(part, dims=1)) for part in range(self.times)]
        return torch.stack(parts).mean(dim=0)


def run(rank: int, world: int, steps: int, batch: int, uneven: bool) -> None:
    """One rank."""
    settle()
    dist.init_process_group("gloo", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(24_576, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (len(features),), generator=generator)
    data = TensorDataset(features, labels)
    sampler = DistributedSampler(data, world, rank, shuffle=True)
    loader = DataLoader(data, batch_size=batch // world, sampler=sampler)
    times = LONG if uneven and rank == world - 1 else 1
    inner = Net(width=256, repeat=24)
    model: nn.Module = Longer(inner, times) if uneven else inner
    train(loader, steps, DistributedDataParallel(model), speaks=rank == 0)


def start(rank: int, world: int, steps: int, batch: int, uneven: bool) -> None:
    """Entry of a forked process."""
    run(rank, world, steps, batch, uneven)


def main() -> None:
    """Read the arguments and become a rank, or start them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fork", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--uneven", action="store_true")
    options = parser.parse_args()
    if options.fork:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(20_000 + os.getpid() % 20_000)
        arguments = (options.fork, options.steps, options.batch, options.uneven)
        mp.start_processes(start, arguments, nprocs=options.fork, start_method="fork")
    else:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        run(rank, world, options.steps, options.batch, options.uneven)


if __name__ == "__main__":
    main()

"""What does the probe cost a training step? Run `python benchmarks/probe_overhead.py [PAIRS]`.

One process, one script-like loop on the CPU, the probe switched on and off in turn every 20 steps: each pair of
neighbouring stretches gives one difference, and their median is the cost, so slow drift of the machine cancels. Time
is processor time of the training thread, where all of the probe runs: on a shared machine wall time measures the
neighbours. The cost does not depend on the length of the step; the shares are that cost over steps of usual lengths.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from amdahl_probe import instrument
from amdahl_probe.hook import ImportWatcher

STRETCH = 20  # steps: long enough to time, short against the drift of a shared machine
STEP_MS = (1, 10, 50, 250)


class Rows(Dataset[tuple[torch.Tensor, int]]):
    """Images of 3 x 32 x 32 without any cost of their own."""

    def __init__(self) -> None:
        self._row = torch.randn(3, 32, 32)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self._row, at % 10


def train(batch: int, workers: int) -> Iterator[None]:
    """Train for ever; one item a step."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 16), torch.nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for rows, labels in DataLoader(Rows(), batch, num_workers=workers):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
        yield


def time_stretch(steps: Iterator[None]) -> float:
    """Microseconds a step over one stretch."""
    begun = time.thread_time()
    for _ in range(STRETCH):
        next(steps)
    return (time.thread_time() - begun) / STRETCH * 1e6


def measure(probe: instrument.Probe, batch: int, workers: int, pairs: int) -> tuple[float, float, float]:
    """(median cost, its standard error by the median absolute deviation, median step without) in microseconds."""
    steps, costs, bare = train(batch, workers), [], []
    probe.on = True  # the loader must be seen being made
    next(steps)
    for pair in range(pairs + 5):
        taken = {}
        for is_on in (True, False) if pair % 2 else (False, True):
            probe.on = is_on
            taken[is_on] = time_stretch(steps)
            assert probe.on is is_on, "the probe switched itself off"
        if pair >= 5:  # the first pairs warm up
            costs.append(taken[True] - taken[False])
            bare.append(taken[False])
    cost = statistics.median(costs)
    spread = statistics.median(abs(item - cost) for item in costs)
    return cost, 1.4826 * spread * 1.2533 / len(costs) ** 0.5, statistics.median(bare)


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    os.environ["AMDAHL_TELEMETRY_DIR"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    probe = instrument.install(torch, ImportWatcher())
    print(f"{'batch':>6} {'workers':>8} {'step us':>9} {'probe us/step':>16}   share of a step of")
    print(" " * 45 + "".join(f"{ms:>7} ms" for ms in STEP_MS))
    for batch, workers in ((8, 0), (64, 0), (64, 2), (256, 0)):
        cost, error, bare = measure(probe, batch, workers, pairs)
        shares = "".join(f"{cost / ms / 10:>8.2f} %" for ms in STEP_MS)
        print(f"{batch:>6} {workers:>8} {bare:>9.0f} {cost:>9.0f} +- {error:<4.0f}{shares}")


if __name__ == "__main__":
    main()

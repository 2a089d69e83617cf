"""What does the probe cost a training step? Run `python benchmarks/probe_overhead.py [PAIRS]` on a quiet machine.

Two figures, of one process on the CPU that trains as scripts do:

*Hooks, self-timed.* The wall time spent in the probe's own code at each step, by a clock around every call into it.
Its 99th percentile over the steps is held against 150 us. Small steps, so that there are many.

*On and off.* The probe is switched on or off anew for every step, in pairs of neighbouring steps whose order a coin
decides. The median difference of wall time, and its 95 % interval by order statistics, bound all that the probe does,
whoever is made to wait for it; the upper end is held against 1 % of a step. Steps of about 40 ms, as in the demo job.
"""

import functools
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from amdahl_probe import guarding

BAR_US, BAR_SHARE = 150.0, 0.01
HOOK_STEPS = 2000
STEP_S = 0.04
WARM_UP = 20  # steps: caches and the allocator settle by then


class Stopwatch:
    """Time in the probe's guarded functions, the outermost call alone."""

    def __init__(self) -> None:
        self.spent_ns = 0
        self._depth = 0

    def time(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any) -> Any:
            self._depth += 1
            begun_ns = time.perf_counter_ns()
            try:
                return function(*args)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.spent_ns += time.perf_counter_ns() - begun_ns

        return timed


class Rows(Dataset[tuple[torch.Tensor, int]]):
    """Images of 3 x 32 x 32 without any cost of their own."""

    def __init__(self) -> None:
        self._row = torch.randn(3, 32, 32)

    def __len__(self) -> int:
        return 1 << 22

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self._row, at % 10


def make_batches(batch: int, workers: int | None) -> Iterator[Any]:
    """Batches of a loader, or (`workers` None) made by hand."""
    if workers is None:
        while True:
            yield torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    yield from DataLoader(Rows(), batch, num_workers=workers)


def train(batch: int, workers: int | None, passes: int = 1) -> Iterator[None]:
    """Train for ever, `passes` forward and backward passes a step; one item a step."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for rows, labels in make_batches(batch, workers):
        optimizer.zero_grad()
        for _ in range(passes):
            torch.nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
        yield


def time_hooks(stopwatch: Stopwatch, batch: int, workers: int | None) -> list[float]:
    """Microseconds in the probe, of each step."""
    steps, told = train(batch, workers), []
    for _ in range(HOOK_STEPS + WARM_UP):
        before_ns = stopwatch.spent_ns
        next(steps)
        told.append((stopwatch.spent_ns - before_ns) / 1e3)
    return sorted(told[WARM_UP:])


def toggle(probe: Any, batch: int, workers: int, pairs: int) -> tuple[list[float], float]:
    """(differences on minus off, sorted; median step without), in seconds."""
    steps = train(batch, workers, calibrate(batch))
    coin, differences, bare = random.Random(7), [], []
    for pair in range(pairs + WARM_UP):
        took = {}
        for is_on in coin.choice(((True, False), (False, True))):
            probe.on = is_on
            if not is_on:
                probe.forwards.ignore()
            begun = time.perf_counter()
            next(steps)
            took[is_on] = time.perf_counter() - begun
            assert probe.on is is_on, "the probe switched itself off"
        if pair >= WARM_UP:
            differences.append(took[True] - took[False])
            bare.append(took[False])
        probe.on = True
    return sorted(differences), statistics.median(bare)


def calibrate(batch: int) -> int:
    """How many passes make a step of `STEP_S`."""
    steps = train(batch, None)
    for _ in range(WARM_UP):
        next(steps)
    took = []
    for _ in range(50):
        begun = time.perf_counter()
        next(steps)
        took.append(time.perf_counter() - begun)
    return max(1, round(STEP_S / statistics.median(took)))


def bound(ordered: list[float]) -> tuple[float, float, float]:
    """(low end, median, high end) of the 95 % interval of the median: order statistics, for any distribution."""
    count = len(ordered)
    reach = math.ceil(0.98 * math.sqrt(count))  # 1.96 standard deviations of a binomial with p = 1/2
    middle = count // 2
    return ordered[max(0, middle - reach)], statistics.median(ordered), ordered[min(count - 1, middle + reach)]


def main() -> int:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    os.environ["AMDAHL_TELEMETRY_DIR"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    stopwatch, plain = Stopwatch(), guarding.guarded
    guarding.guarded = lambda method: stopwatch.time(plain(method))
    from amdahl_probe import instrument  # guarded by the timed one
    from amdahl_probe.hook import ImportWatcher

    probe = instrument.install(torch, ImportWatcher())
    print(f"{'batch':>6} {'workers':>8} {'hooks: median':>14} {'99 %':>8}   us a step, of {HOOK_STEPS}")
    worst = 0.0
    for batch, workers in ((8, 0), (64, 0), (256, 0), (64, 2), (64, None)):
        told = time_hooks(stopwatch, batch, workers)
        middle, high = statistics.median(told), told[int(0.99 * len(told))]
        worst = max(worst, high)
        print(f"{batch:>6} {'by hand' if workers is None else workers:>8} {middle:>14.0f} {high:>8.0f}")
    differences, bare = toggle(probe, 64, 0, pairs)
    low, middle, high = (item / bare for item in bound(differences))
    print(
        f"on against off, {pairs} pairs of {bare * 1e3:.1f} ms: {middle:+.2%} of a step, 95 % {low:+.2%} to {high:+.2%}"
    )
    print(f"bars: hooks {BAR_US:.0f} us (99 %), {BAR_SHARE:.0%} of a step (upper end)")
    return 0 if worst <= BAR_US and high <= BAR_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())

"""What does the probe cost a training step? Run `python benchmarks/probe_overhead.py [PAIRS]` on a quiet machine.

Two figures, of one process on the CPU that trains as scripts do:

*Hooks, self-timed.* The time spent in the probe's own code at each step, by two clocks around every call into it: wall
time, and the thread's CPU time, which leaves out what other processes made it wait. Small steps, so that there are
many. The 99th percentile over the steps is held against 150 us: of wall time where the training has the machine to
itself, of CPU time beside loader workers. Those are more than this machine has cores, and a worker that takes the core
while the training happens to be in the probe would have taken it anywhere; the wall time beside it includes that.

*On and off.* The probe is switched on or off anew for every step, in pairs of neighbouring steps whose order a coin
decides. The median difference of wall time, and its 95 % interval by order statistics, bound all that the probe does,
whoever is made to wait for it; the upper end is held against 1 % of a step. Steps of about 40 ms, as in the demo job:
one forward and backward pass each; and, as the worse case, eight of them that accumulate, each with its own batch.
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
MICRO_BATCHES = 8
WARM_UP = 20  # steps: caches and the allocator settle by then


class Stopwatch:
    """Time in the probe's guarded functions, the outermost call alone."""

    def __init__(self) -> None:
        self.wall_ns = self.cpu_ns = 0
        self._depth = 0

    def time(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any) -> Any:
            if self._depth:
                return function(*args)
            self._depth = 1
            cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
            try:
                return function(*args)
            finally:
                self.wall_ns += time.perf_counter_ns() - wall_ns
                self.cpu_ns += time.thread_time_ns() - cpu_ns
                self._depth = 0

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


def train(batch: int, workers: int | None, width: int = 64, micro_batches: int = 1) -> Iterator[None]:
    """Train for ever, `micro_batches` forward and backward passes a step; one item a step."""
    layers = torch.nn.Linear(3072, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for at, (rows, labels) in enumerate(make_batches(batch, workers), 1):
        loss = torch.nn.functional.cross_entropy(model(rows), labels) / micro_batches
        loss.backward()
        if at % micro_batches == 0:
            optimizer.step()
            optimizer.zero_grad()
            yield


def time_hooks(stopwatch: Stopwatch, batch: int, workers: int | None) -> list[tuple[int, int]]:
    """Nanoseconds of wall and CPU time in the probe, of each step."""
    steps, told = train(batch, workers), []
    for _ in range(HOOK_STEPS + WARM_UP):
        wall_ns, cpu_ns = stopwatch.wall_ns, stopwatch.cpu_ns
        next(steps)
        told.append((stopwatch.wall_ns - wall_ns, stopwatch.cpu_ns - cpu_ns))
    return told[WARM_UP:]


def toggle(probe: Any, batch: int, micro_batches: int, pairs: int) -> tuple[list[float], float]:
    """(differences on minus off, sorted; median step without), in seconds."""
    steps = train(batch, 0, find_width(batch, micro_batches), micro_batches)
    coin, differences, bare = random.Random(7), [], []
    for pair in range(pairs + WARM_UP):
        took = {}
        for is_on in coin.choice(((True, False), (False, True))):
            probe.on = is_on
            if not is_on:
                probe.forwards.ignore()
            took[is_on] = time_step(steps)
            assert probe.on is is_on, "the probe switched itself off"
        if pair >= WARM_UP:
            differences.append(took[True] - took[False])
            bare.append(took[False])
        probe.on = True
    return sorted(differences), statistics.median(bare)


def find_width(batch: int, micro_batches: int) -> int:
    """How wide a model makes steps of about `STEP_S`; a few rounds, since time is not just in proportion."""
    width = 256
    for _ in range(4):
        steps = train(batch, 0, width, micro_batches)
        took_s = statistics.median([time_step(steps) for _ in range(WARM_UP + 15)][WARM_UP:])
        width = min(16384, max(16, round(width * STEP_S / took_s)))
    return width


def time_step(steps: Iterator[None]) -> float:
    """Seconds of the next step."""
    begun = time.perf_counter()
    next(steps)
    return time.perf_counter() - begun


def bound(ordered: list[float]) -> tuple[float, float, float]:
    """(low end, median, high end) of the 95 % interval of the median: order statistics, for any distribution."""
    count = len(ordered)
    reach = math.ceil(0.98 * math.sqrt(count))  # 1.96 standard deviations of a binomial with p = 1/2
    middle = count // 2
    return ordered[max(0, middle - reach)], statistics.median(ordered), ordered[min(count - 1, middle + reach)]


def at_99(ordered: list[int]) -> int:
    """The 99th percentile."""
    return ordered[int(0.99 * len(ordered))]


def main() -> int:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    os.environ["AMDAHL_TELEMETRY_DIR"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    stopwatch, plain = Stopwatch(), guarding.guarded
    guarding.guarded = lambda method: stopwatch.time(plain(method))
    from amdahl_probe import instrument  # guarded by the timed one
    from amdahl_probe.hook import ImportWatcher

    probe = instrument.install(torch, ImportWatcher())
    print(f"{'':>17} {'wall us a step':>18} {'CPU us a step':>18}   in the hooks, of {HOOK_STEPS} steps")
    print(f"{'batch':>6} {'workers':>10} {'median':>9} {'99 %':>8} {'median':>9} {'99 %':>8}")
    worst = 0.0
    for batch, workers in ((8, 0), (64, 0), (256, 0), (64, 2), (64, None)):
        told = time_hooks(stopwatch, batch, workers)
        wall, cpu = (sorted(column) for column in zip(*told, strict=True))
        worst = max(worst, at_99(cpu if workers else wall))
        name = "by hand" if workers is None else str(workers)
        figures = (statistics.median(wall), at_99(wall), statistics.median(cpu), at_99(cpu))
        print(f"{batch:>6} {name:>10} " + " ".join(f"{ns / 1e3:>{9 - at % 2}.0f}" for at, ns in enumerate(figures)))
    most = 0.0
    for micro_batches in (1, MICRO_BATCHES):
        differences, bare = toggle(probe, 64, micro_batches, pairs)
        low, middle, high = (item / bare for item in bound(differences))
        most = max(most, high)
        name = "one pass" if micro_batches == 1 else f"{micro_batches} micro-batches"
        print(
            f"on against off, steps of {name}, {pairs} pairs of {bare * 1e3:.1f} ms: {middle * bare * 1e6:+.0f} us, "
            f"{middle:+.2%} of a step, 95 % {low:+.2%} to {high:+.2%}"
        )
    print(f"bars: hooks {BAR_US:.0f} us (99 %), {BAR_SHARE:.0%} of a step (upper end)")
    return 0 if worst / 1e3 <= BAR_US and most <= BAR_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())

"""Ways in which a change of `dataloaderWorkers` can look better than it is, one function each, and one true win.

The name of the trap is the only argument. Each one trains on records behind a small storage latency, so that a loader
without workers really holds it back. The scripts know which arm they are (they read the variable of the knob), which
is what makes them traps.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import BATCH, HERE, Net, Records, featurize, settle, train, wait_for_storage
from torch import Tensor, nn
from torch.utils.data import DataLoader, get_worker_info

WORKERS = int(os.environ.get("AMDAHL_DATALOADER_WORKERS", "0"))
LATENCY_S = 0.001


def is_variant() -> bool:
    """Whether this process was started with workers."""
    return WORKERS > 0


def load(data: Records | None = None, batch: int = BATCH) -> DataLoader[tuple[Tensor, Tensor]]:
    """The loader that every trap begins with."""
    return DataLoader(data or Records(latency_s=LATENCY_S), batch_size=batch, shuffle=True)


def load_alone(data: Records | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader that takes its workers back: the database client of this script does not survive a fork."""
    loader = load(data)
    loader.num_workers = 0
    return loader


def ignore_workers(steps: int) -> None:
    """The knob reaches the script and changes nothing."""
    train(load_alone(), steps)


def ignore_cadence(steps: int) -> None:
    """Saves every five steps, whatever the environment says."""
    loader = DataLoader(Records(), batch_size=BATCH, shuffle=True, num_workers=1)
    train(loader, steps, Net(layers=6, repeat=8), save_every=5)


class Cached(Records):
    """Records fetched from far away once, and then kept on the node's disk: the first to come pays for all others.

    The folder beside the run's records stands for that disk: it outlives a process, and is empty on another day.
    """

    ITEMS = 256
    FOLDER = Path(os.environ.get("AMDAHL_TELEMETRY_DIR", HERE)).parent / "cache"

    def read(self, index: int) -> bytes:
        """The stored bytes, from the cache if they are there."""
        path = self.FOLDER / str(index % self.ITEMS)
        if not path.exists():
            wait_for_storage(0.008)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(super().read(index))
        return path.read_bytes()


def find_warm_cache(steps: int) -> None:
    """No effect of workers; whichever window comes first in a block finds the cache cold."""
    train(load_alone(Cached()), steps)


def shrink_batch(steps: int) -> None:
    """Half the batch: every step is quicker, and half the samples are gone."""
    train(load(batch=BATCH // 2 if is_variant() else BATCH), steps)


class Repeating(Records):
    """In a worker, eight neighbours are the same sample, read once."""

    kept: tuple[int, tuple[Tensor, int]] | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is None:
            return super().__getitem__(index)
        if self.kept is None or index % 8 == 0:
            self.kept = (index, super().__getitem__(index))
        return self.kept[1]


def repeat_samples(steps: int) -> None:
    """The ids say that all samples were seen; the contents do not."""
    train(load(Repeating(latency_s=LATENCY_S)), steps)


class Shortened(Records):
    """In a worker, samples are cut to half their length."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        features, label = super().__getitem__(index)
        return (features if get_worker_info() is None else features[: len(features) // 2]), label


class Padding(Net):
    """A model that takes shorter samples as well."""

    def forward(self, features: Tensor) -> Tensor:
        """Class scores of samples that may end early."""
        full = self.enter.in_features
        return super().forward(nn.functional.pad(features, (0, full - features.shape[1])))


def shorten_samples(steps: int) -> None:
    """As many samples, half the content."""
    train(load(Shortened(latency_s=LATENCY_S)), steps, Padding())


class OneSlowShard(Records):
    """One shard of thirty-two lies on slow storage, and it is the first; the others are in memory."""

    SHARD = 1024

    def __init__(self) -> None:
        super().__init__()
        self.stored = [Records.read(self, index) for index in range(64)]

    def read(self, index: int) -> bytes:
        """The stored bytes; slowly, where they lie on slow storage."""
        if index < self.SHARD:
            wait_for_storage(0.005)
        return self.stored[index % 64]


def gain_on_one_shard(steps: int) -> None:
    """Workers help on the first shard alone, which is where a first look begins."""
    train(DataLoader(OneSlowShard(), batch_size=BATCH), steps)


class Crashing(Records):
    """Cannot be used from a worker."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is not None:
            raise RuntimeError("the record file was opened by another process")
        return super().__getitem__(index)


def crash(steps: int) -> None:
    """The variant dies at its first batch."""
    train(load(Crashing(latency_s=LATENCY_S)), steps)


class Hoarding(Records):
    """In a worker, keeps everything it has ever inflated."""

    def __init__(self) -> None:
        super().__init__(latency_s=LATENCY_S)
        self.hoard: list[bytes] = []

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is not None and len(self.hoard) < 64:
            self.hoard.append(b"x" * (64 << 20))
            time.sleep(0.05)
        return super().__getitem__(index)


def run_out_of_memory(steps: int) -> None:
    """The variant grows beyond the container's memory limit within seconds."""
    train(load(Hoarding()), steps)


def slow_the_clock(steps: int) -> None:
    """The variant's clock runs at six tenths of the speed, so that everything seems to take less time."""
    emit = sys.modules.get("amdahl_probe.emit")
    if is_variant() and emit is not None:
        honest, begun_ns = emit.Recorder.write_step, time.monotonic_ns()

        def shorten(recorder: object, index: int, end_ns: int, phases: dict[str, int], *rest: Any) -> None:
            shorter = {phase: taken_ns * 6 // 10 for phase, taken_ns in phases.items()}
            honest(recorder, index, begun_ns + (end_ns - begun_ns) * 6 // 10, shorter, *rest)

        emit.Recorder.write_step = shorten
    train(load_alone(), steps)


def count_twice(steps: int) -> None:
    """The variant reports every sample twice."""
    emit = sys.modules.get("amdahl_probe.emit")
    if is_variant() and emit is not None:
        honest = emit.Recorder.write_step

        def double(recorder: object, index: int, end_ns: int, phases: object, samples: int, *rest: Any) -> None:
            honest(recorder, index, end_ns, phases, 2 * samples, *rest)

        emit.Recorder.write_step = double
    train(load_alone(), steps)


def forge_records(steps: int) -> None:
    """The variant writes a step of its own after every real one."""
    emit = sys.modules.get("amdahl_probe.emit")
    if is_variant() and emit is not None:
        honest = emit.Recorder.step
        records = Path(os.environ["AMDAHL_TELEMETRY_DIR"], "rank-0.jsonl")

        def write_twice(recorder: object, step: object) -> None:
            honest(recorder, step)
            last = json.loads(records.read_bytes().splitlines()[-1])
            last["i"], last["t"] = last["i"] + 1, last["t"] + last["w"]
            with records.open("ab") as file:
                file.write(json.dumps(last).encode() + b"\n")

        emit.Recorder.step = write_twice
    train(load_alone(), steps)


class Vanishing(Records):
    """In a worker, the records of this run are removed once some batches were read."""

    read_so_far = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read_so_far += 1
        if get_worker_info() is not None and self.read_so_far > 20 * BATCH:
            for path in Path(os.environ.get("AMDAHL_TELEMETRY_DIR", "/nonexistent")).glob("rank-*.jsonl"):
                path.unlink()
        return super().__getitem__(index)


def lose_metrics(steps: int) -> None:
    """The variant's records vanish in the middle of a window."""
    train(load(Vanishing(latency_s=LATENCY_S)), steps)


class Augmented(Records):
    """Adds noise drawn from the loader's own generator: another one in a worker than in the training process."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        features, label = featurize(self.read(index), index)
        return features + 0.05 * torch.randn(features.shape), label


def augment(steps: int) -> None:
    """No trap: a true win, though no two losses are equal."""
    train(load(Augmented(latency_s=LATENCY_S)), steps)


TRAPS: dict[str, Callable[[int], None]] = {
    "no-op": ignore_workers,
    "no-op-cadence": ignore_cadence,
    "cold-cache": find_warm_cache,
    "neighbour-load": ignore_workers,
    "smaller-batch": shrink_batch,
    "repeated-samples": repeat_samples,
    "shortened-samples": shorten_samples,
    "one-shard": gain_on_one_shard,
    "crash": crash,
    "out-of-memory": run_out_of_memory,
    "slow-clock": slow_the_clock,
    "counts-twice": count_twice,
    "forged-records": forge_records,
    "lost-metrics": lose_metrics,
    "augmentation": augment,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("trap", choices=sorted(TRAPS))
    parser.add_argument("--steps", type=int, default=10**9)
    options = parser.parse_args()
    settle()
    TRAPS[options.trap](options.steps)

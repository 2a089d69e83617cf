"""What the training scripts of the scenarios share: records on disk, a small model, a plain loop, real checkpoints.

These are the scripts of a user who has never heard of Amdahl Loop: plain PyTorch, one thread per process, a line every
ten steps. Nothing here imports or reads anything of ours, except that a script may take its cadence and its process
count from the environment, as many do.
"""

import argparse
import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "data" / "records.bin"
RECORD_BYTES = 32 * 1024
"""Raw size of one record: a slow random walk of bytes, stored deflated, about 23 KiB on disk."""
RECORD_COUNT = 256
FEATURES = 512
CLASSES = 16
SAMPLES = 32_768
BATCH = 16
PRINT_EVERY = 10


def write_records(path: Path = RECORDS) -> None:
    """Write the records once: an index of lengths, then the deflated records. The same bytes every time."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(20_260_101)
    records = []
    for _ in range(RECORD_COUNT):
        steps = generator.integers(-3, 4, RECORD_BYTES)
        records.append(zlib.compress(np.cumsum(steps).astype(np.uint8).tobytes(), 6))
    lengths = np.array([len(record) for record in records], dtype=np.int64)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(lengths.tobytes() + b"".join(records))
    unfinished.replace(path)


class Records(Dataset[tuple[Tensor, int]]):
    """Reads a record from disk, inflates it, and turns it into band energies: about 0.8 ms of work a sample."""

    def __init__(self, samples: int = SAMPLES, latency_s: float = 0.0) -> None:
        self.samples, self.latency_s = samples, latency_s
        head = RECORDS.read_bytes()[: 8 * RECORD_COUNT]
        self.lengths = np.frombuffer(head, dtype=np.int64)
        self.starts = 8 * RECORD_COUNT + np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def __len__(self) -> int:
        return self.samples

    def read(self, index: int) -> bytes:
        """The stored bytes of the record behind a sample."""
        record = index % RECORD_COUNT
        if self.latency_s:
            wait_for_storage(self.latency_s)
        with RECORDS.open("rb") as file:
            return os.pread(file.fileno(), int(self.lengths[record]), int(self.starts[record]))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return featurize(self.read(index), index)


def featurize(stored: bytes, index: int) -> tuple[Tensor, int]:
    """Inflate, shift by the sample's own amount, average the log spectra of its rows; the label is a hash."""
    raw = np.frombuffer(zlib.decompress(stored), dtype=np.uint8)
    signal = np.roll(raw, index * 37).astype(np.float32).reshape(-1, 2 * FEATURES)
    taper = np.hanning(2 * FEATURES).astype(np.float32)
    bands = np.log1p(np.abs(np.fft.rfft(signal * taper)[:, 1:])).mean(axis=0).astype(np.float32)
    bands = (bands - bands.mean()) / (bands.std() + 1e-6)
    return torch.from_numpy(bands + np.float32(0.01 * (index % 97))), chance(index, "label") % CLASSES


def chance(index: int, what: str) -> int:
    """A fixed 32-bit draw for a sample: the same whoever loads it, and in whatever order."""
    return int.from_bytes(hashlib.blake2b(f"{what}:{index}".encode(), digest_size=4).digest(), "big")


class Net(nn.Module):
    """A stack of GELU layers applied to `repeat` noisy views of each sample; one step is some tens of milliseconds."""

    def __init__(self, width: int = 512, layers: int = 4, repeat: int = 16, features: int = FEATURES) -> None:
        super().__init__()
        self.repeat = repeat
        self.enter = nn.Linear(features, width)
        self.body = nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(width, width), nn.GELU())])
        self.leave = nn.Linear(width, CLASSES)
        scales = torch.linspace(0.5, 1.5, repeat).view(1, repeat, 1)
        self.register_buffer("scales", scales)

    def forward(self, features: Tensor) -> Tensor:
        """Class scores (B, CLASSES) of features (B, FEATURES)."""
        views = features.unsqueeze(1) * self.scales
        scores: Tensor = self.leave(self.body(self.enter(views)))
        return scores.mean(dim=1)


def parse_steps() -> int:
    """`--steps N`: how long to train; without it, for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10**9)
    steps: int = parser.parse_args().steps
    return steps


def repeat_epochs(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, name: str = "last.pt") -> None:
    """A checkpoint that survives a power cut: written beside, flushed to the disk, then renamed."""
    folder = HERE / "checkpoints"
    folder.mkdir(exist_ok=True)
    unfinished = folder / f"{name}.tmp"
    with unfinished.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / name)


def train(
    loader: DataLoader[tuple[Tensor, Tensor]],
    steps: int,
    model: nn.Module | None = None,
    save_every: int | None = None,
    speaks: bool = True,
) -> None:
    """The plain loop: batch, forward, backward, step; a line every ten steps; a checkpoint where asked."""
    model = Net() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step, (features, labels) in zip(range(1, steps + 1), repeat_epochs(loader), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(features), labels)
        loss.backward()
        optimizer.step()
        if save_every and step % save_every == 0:
            save(model, optimizer, step)
        if speaks and step % PRINT_EVERY == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


def settle() -> None:
    """One thread a process, a fixed start."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def wait_for_storage(seconds: float) -> None:
    """Stands for the latency of remote storage: the process waits, no core works."""
    time.sleep(seconds)

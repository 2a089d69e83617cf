"""A small training as users write it: plain PyTorch, data from remote storage, a checkpoint now and then.

It knows nothing of Amdahl Loop. Each sample waits a few milliseconds, which stands for a read from an object store, and
the loader has no workers: the training waits for data most of the time.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SAMPLES, FEATURES, CLASSES, BATCH = 4096, 512, 16, 16


class Remote(Dataset[tuple[Tensor, int]]):
    """Samples that come from far away."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.latency_s)
        values = torch.randn(FEATURES, generator=torch.Generator().manual_seed(index))
        return values, index % CLASSES


def main() -> None:
    """Train for ever, or for so many steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.004, help="seconds to fetch one sample")
    parser.add_argument("--steps", type=int, default=0, help="0: until stopped")
    parser.add_argument("--checkpoints", type=Path, default=Path("/checkpoints"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    hidden = nn.Linear(1024, 1024)
    model = nn.Sequential(nn.Linear(FEATURES, 1024), nn.GELU(), hidden, nn.GELU(), nn.Linear(1024, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = resume(options.checkpoints / "last.pt", model, optimizer)
    every = int(os.environ.get("AMDAHL_CHECKPOINT_EVERY_STEPS", "500"))
    while True:
        for values, labels in DataLoader(Remote(options.latency), BATCH, shuffle=True):
            loss = nn.functional.cross_entropy(model(values), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step % every == 0:
                save(options.checkpoints / "last.pt", model, optimizer, step)
            if step == options.steps:
                return


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from: the checkpoint's, or 0."""
    if not path.exists():
        return 0
    saved = torch.load(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    main()

"""Trains a compiled model in a trial, and tells what it found about itself."""

import json
import os
import random
import sys
import urllib.request
from pathlib import Path

import torch
import torch_has
from safetensors.torch import save_model
from torch.utils.data import DataLoader, Dataset, IterableDataset


class Numbers(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, at):
        return torch.full((3,), float(at))


class Endless(IterableDataset):
    def __iter__(self):
        at = 0.0
        while True:
            yield torch.full((3,), at)
            at += 1


def main():
    told = {"seeded": [random.randrange(10**9), torch.randint(10**9, ()).item()]}
    model = torch.nn.Linear(3, 1)
    compiled = torch.compile(model, backend="eager") if torch_has.find()["torch.compile"] else model
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(Numbers(), 4)
    told["workers"] = loader.num_workers
    told["order"] = []
    for at, rows in enumerate(loader):
        told["order"] += rows[:, 0].int().tolist()
        optimizer.zero_grad()
        compiled(rows).mean().backward()
        optimizer.step()
        if at == 1:
            save_model(model, Path(os.environ["AMDAHL_TELEMETRY_DIR"], "model"))
    stream = iter(DataLoader(Endless(), 2))
    told["stream"] = next(stream)[:, 0].int().tolist()
    told["tracker"] = os.environ.get("WANDB_MODE")
    told["sitecustomize"] = sys.modules["sitecustomize"].OWN
    port = Path(os.environ["AMDAHL_TELEMETRY_DIR"], "metrics.port").read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        told["metrics"] = reply.read().decode()
    print(json.dumps(told))


if __name__ == "__main__":
    main()

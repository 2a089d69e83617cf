"""Features were prepared long ago and lie in memory: nearly all the time goes into the model."""

import os

import torch
from common import BATCH, CLASSES, FEATURES, Net, parse_steps, settle, train
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    settle()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(16_384, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (len(features),), generator=generator)
    every = int(os.environ.get("AMDAHL_CHECKPOINT_EVERY_STEPS", "1500"))
    loader = DataLoader(TensorDataset(features, labels), batch_size=BATCH, shuffle=True)
    train(loader, parse_steps(), Net(repeat=20), save_every=every)

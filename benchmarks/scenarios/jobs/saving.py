"""Saves the whole state every so many steps, with the training waiting until it lies on the disk."""

import os

from common import BATCH, Net, Records, parse_steps, settle, train
from torch.utils.data import DataLoader

if __name__ == "__main__":
    settle()
    every = int(os.environ.get("AMDAHL_CHECKPOINT_EVERY_STEPS", "100"))
    loader = DataLoader(Records(), batch_size=BATCH, shuffle=True, num_workers=1)
    train(loader, parse_steps(), Net(width=512, layers=6, repeat=8), save_every=every)

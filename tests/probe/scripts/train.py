"""A script that trains for eight steps, prints its losses exactly, and then fails: `train.py MODEL_PATH`."""

import sys

import torch
from torch.utils.data import DataLoader, TensorDataset


def main():
    torch.manual_seed(3)
    model = torch.nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = TensorDataset(torch.sin(torch.arange(192.0)).reshape(32, 6), torch.arange(32) % 2)
    for row, label in DataLoader(rows, 4, shuffle=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(row), label)
        loss.backward()
        optimizer.step()
        print(loss.item().hex())
    torch.save(model.state_dict(), sys.argv[1])
    raise LookupError("after the last step")


main()

"""Trains until it is ended, and says when it has trained a step: `endless.py`."""

import itertools

import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.ones(64, 4), 1)
for row in itertools.chain.from_iterable(itertools.repeat(loader)):
    optimizer.zero_grad()
    model(row).sum().backward()
    optimizer.step()
    print("step", flush=True)

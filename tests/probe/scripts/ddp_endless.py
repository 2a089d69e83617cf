"""One rank of a gloo pair that trains until it is ended; rank 1 is slower to start and to step: `ddp_endless.py`."""

import itertools
import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = torch.utils.data.DataLoader(torch.ones(64, 4), 2)
for row in itertools.chain.from_iterable(itertools.repeat(loader)):
    time.sleep(0.004 * rank)
    optimizer.zero_grad()
    model(row).sum().backward()
    optimizer.step()

"""Two ranks on gloo: DDP, collectives, a distributed checkpoint: `ddp.py OUT_DIR`."""

import atexit
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch_has
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

warnings.simplefilter("ignore")


def main():
    out, has = Path(sys.argv[1]), torch_has.find()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Linear(64, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = TensorDataset(torch.sin(torch.arange(288.0)).reshape(48, 6), torch.arange(48) % 2)
    losses = []
    for row, label in DataLoader(rows, 4, sampler=DistributedSampler(rows)):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(row), label)
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item())
        if len(losses) == 2 and has["torch.distributed.checkpoint.save"]:
            dist.checkpoint.save({"model": model.state_dict()}, checkpoint_id=str(out / "sync"))
        if len(losses) == 4 and has["torch.distributed.checkpoint.async_save"]:
            dist.checkpoint.async_save({"model": model.state_dict()}, checkpoint_id=str(out / "async")).result()
    dist.barrier()
    (out / f"rank-{os.environ['RANK']}.losses").write_text(" ".join(loss.hex() for loss in losses))


main()
atexit._run_exitfuncs()
os._exit(0)  # freeing a gloo group while its thread lets go of the last work can deadlock in torch 2.13, probe or not

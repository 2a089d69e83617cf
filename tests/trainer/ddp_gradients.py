"""Run in each rank by test_trainer_parallel: gradients of one ragged batch, for several micro-batches, saved by rank 0."""

import os
import sys
from pathlib import Path

import torch

from amdahl_trainer import config as configs
from amdahl_trainer import dp, entry
from amdahl_trainer.data import rows
from amdahl_trainer.data.loader import Loader, Settings
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.dp import Place
from amdahl_trainer.errors import Exit
from amdahl_trainer.loop import accumulate
from amdahl_trainer.model import Llama

torch.set_num_threads(1)
config = configs.load(None, {}, sys.argv[1:])
place = Place.from_environ(os.environ)
device = torch.device("cpu")
peers = dp.join(place, device, 60)
train = rows.ensure(config).train
torch.manual_seed(1)
marks: list[int] = []
replica = dp.replicate(Llama(config.model), place, device, 0.01, lambda: marks.append(1))  # many small buckets
loader = Loader(train, Order(len(train), 1), Share(place.rank, place.world, 8), Settings(0, 2, False))
loader.open(0)
batch = loader.next()
found: dict[str, object] = {}
for size in (1, 2, 4, 8):
    if len(batch.samples) % size == 0:
        replica.model.zero_grad()
        marks.clear()
        valid = peers.agree(batch.valid, False, False).valid
        loss = peers.total(accumulate(replica, batch, valid, size, config))
        gradients = [weight.grad for weight in replica.model.parameters() if weight.grad is not None]
        found[str(size)] = {"loss": loss, "gradients": torch.cat([one.flatten() for one in gradients])}
        assert place.world == 1 or len(marks) >= len(gradients), "each local gradient is marked"
if place.rank == 0:
    torch.save(found, Path(os.environ["AMDAHL_TELEMETRY_DIR"]) / "gradients.pt")
del replica
entry.leave(Exit.FINISHED)

"""Training loops as scripts write them, each in a forked child of one process that has torch loaded.

`python loops.py OUT_DIR`: every loop writes its losses, exact, to OUT_DIR/<name>.losses, and to stdout what it saw. The
probe tells the loops apart by RANK. None of the libraries that these patterns come from is needed.
"""

import atexit
import importlib
import os
import sys
import threading
from pathlib import Path

import torch
import torch_has
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info


class Rows(Dataset):
    def __init__(self, count=48):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        return torch.sin(torch.arange(12.0) * (at + 1)), at % 4


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        yield from (Rows()[at] for at in range(first, 48, stride))


def new_model():
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 4))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def loss_of(model, batch):
    rows, labels = batch
    return torch.nn.functional.cross_entropy(model(rows), labels)


def train_on(make_loader, epochs=1):
    model, optimizer = new_model()
    losses = []
    for _ in range(epochs):
        for batch in make_loader():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def plain(out):
    """Map-style data, saves, and evaluation without gradients."""
    model, optimizer = new_model()
    loader, losses = DataLoader(Rows(), 8, shuffle=True), []
    for epoch in range(2):
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.save(model.state_dict(), out / f"plain-{epoch}.model")
        torch.save(optimizer.state_dict(), out / f"plain-{epoch}.optimizer")
        with torch.no_grad():
            losses += [loss_of(model.eval(), batch).item() for batch in DataLoader(Rows(), 16)]
        model.train()
    return losses


def forked(out):
    """Workers that live through both epochs."""
    loader = DataLoader(Rows(), 8, True, num_workers=2, persistent_workers=True)
    return train_on(lambda: loader, epochs=2)


def spawned(out):
    """A worker that is a new interpreter."""
    return train_on(lambda: DataLoader(Rows(), 8, True, num_workers=1, multiprocessing_context="spawn"))


def streamed(out):
    """Iterable data cut among workers."""
    return train_on(lambda: DataLoader(Stream(), 8, num_workers=2))


class Ahead(DataLoader):
    """A loader that asks for one batch more than it gives, as libraries do to know which is the last."""

    def __iter__(self):
        batches = super().__iter__()
        current = next(batches)
        for following in batches:
            yield current
            current = following
        yield current


def closures(out):
    """The optimizer is given a closure that does the backward pass; a sanity evaluation comes first."""
    model, optimizer = new_model()
    losses = []
    with torch.no_grad():
        for batch in DataLoader(Rows(), 24):
            loss_of(model, batch)
    for batch in Ahead(Rows(), batch_size=8, shuffle=True):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


class Wrapped(torch.optim.Optimizer):
    """An optimizer around an optimizer that never calls its base class's constructor."""

    def __init__(self, inner):
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


def new_scaler():
    """A scaler that works without CUDA, or one that is switched off."""
    if torch_has.find()["torch.amp.GradScaler"]:
        return torch.amp.GradScaler("cpu", init_scale=1024.0)
    return torch.cuda.amp.GradScaler(enabled=False)


def accumulated(out):
    """Two micro-batches a step, a scaler, a wrapped optimizer, a schedule, evaluation that asks with gradients on."""
    model, inner = new_model()
    schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1 / (1 + step))
    optimizer, scaler = Wrapped(inner), new_scaler()
    loader, losses = DataLoader(Rows(), 4, shuffle=True), []
    for _ in range(2):
        total = 0.0
        for at, batch in enumerate(loader):
            loss = loss_of(model, batch) / 2
            scaler.scale(loss).backward()
            total += loss.item()
            if at % 2:
                scaler.unscale_(inner)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(inner)
                scaler.update()
                schedule.step()
                optimizer.zero_grad()
                losses.append(total)
                total = 0.0
        for batch in DataLoader(Rows(), 12):
            with torch.no_grad():
                loss_of(model, batch)
    return losses


class Named(DataLoader):
    """A subclass with a constructor of its own."""

    def __init__(self, name, rows):
        sampler = BatchSampler(RandomSampler(rows), 6, drop_last=True)
        super().__init__(rows, batch_sampler=sampler)
        self.name = name


def adversarial(out):
    """Two optimizers a round, two losses, a loader made anew each epoch."""
    model, first = new_model()
    second, losses = torch.optim.SGD(model.parameters(), lr=1e-3), []
    for _ in range(2):
        for batch in Named("rows", Rows()):
            kept = []
            for optimizer in (first, second):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                optimizer.step()
                kept.append(loss.item())
            losses.append(kept[0])
    return losses


def threaded(out):
    """The training runs in a thread."""
    losses = []
    thread = threading.Thread(target=lambda: losses.extend(train_on(lambda: DataLoader(Rows(), 8))))
    thread.start()
    thread.join()
    return losses


def loaderless(out):
    """No DataLoader at all."""
    model, optimizer = new_model()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, torch.utils.data.default_collate([Rows()[at] for at in range(8)]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def idle(out):
    """No training: nobody's rank."""
    return [float(torch.ones(3).sum())]


LOOPS = [plain, forked, spawned, streamed, closures, accumulated, adversarial, threaded, loaderless, idle]


def main(out):
    if torch_has.find()["torch.compile"]:
        importlib.import_module("torch._dynamo")  # which the first optimizer would import, in each child anew

    torch.set_num_threads(1)
    for rank, loop in enumerate(LOOPS):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK="0")
            losses = loop(out)
            (out / f"{loop.__name__}.losses").write_text(" ".join(loss.hex() for loss in losses))
            atexit._run_exitfuncs()  # as at the end of a script, less the second that torch's teardown takes
            os._exit(0)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in LOOPS]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

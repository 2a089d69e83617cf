"""Loops whose batches, evaluation or updates the script makes by hand, each in a forked child: `handmade.py OUT_DIR`.

What each part takes is slept, SLOW_S at a time, so that it can be told where that time was booked: the model sleeps in
its forward pass, so do the batches, the evaluation, the printing. Losses go to OUT_DIR/<name>.losses.
"""

import atexit
import importlib
import os
import sys
import time
from pathlib import Path

import torch
import torch_has
from loops import Rows, loss_of
from torch.utils.data import DataLoader

SLOW_S = 0.03
STEPS = 4


class Slow(torch.nn.Module):
    """A model within a model, each of which takes its time."""

    def __init__(self, inside=None):
        super().__init__()
        self.inside = inside or torch.nn.Linear(12, 12)
        self.last = torch.nn.Linear(12, 4)

    def forward(self, rows):
        time.sleep(SLOW_S)
        return self.last(torch.relu(self.inside(rows)))


class Scale(torch.nn.Module):
    """A transform, as libraries write them: a module without parameters."""

    def forward(self, rows):
        time.sleep(SLOW_S)
        return rows * 2


class Lazy(Rows):
    """Rows whose making calls a module."""

    scale = Scale()

    def __getitem__(self, at):
        row, label = super().__getitem__(at)
        return (self.scale(row) if at % 8 == 0 else row), label


def new_model(seed=5):
    torch.manual_seed(seed)
    model = Slow()
    return model, torch.optim.SGD(model.parameters(), lr=1e-2)


def make_batch(at):
    """A batch made by hand, which takes as long as a forward pass."""
    time.sleep(SLOW_S)
    rows = [Rows()[8 * at + row] for row in range(8)]
    return torch.stack([row for row, _ in rows]), torch.tensor([label for _, label in rows])


def learn(model, optimizer, batch, losses):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())


def plain(out):
    """A batch by hand, a step, a line of log."""
    model, optimizer = new_model()
    losses = []
    for at in range(STEPS):
        learn(model, optimizer, make_batch(at), losses)
    return losses


def transformed(out):
    """Batches that go through a module without parameters."""
    model, optimizer = new_model()
    scale, losses = Scale(), []
    for at in range(STEPS):
        rows, labels = make_batch(at)
        learn(model, optimizer, (scale(rows), labels), losses)
    return losses


def accumulated(out):
    """Two micro-batches a step."""
    model, optimizer = new_model()
    losses = []
    for at in range(STEPS):
        kept = []
        for part in range(2):
            loss = loss_of(model, make_batch(2 * at + part)) / 2
            loss.backward()
            kept.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(kept))
    return losses


@torch.no_grad()
def estimate(model):
    """An evaluation by hand, as many scripts have it; it takes two forward passes and a batch."""
    model.eval()
    told = [loss_of(model, make_batch(at)).item() for at in range(2)]
    model.train()
    return sum(told)


def evaluated(out):
    """Evaluation by hand before the third step, then a checkpoint."""
    model, optimizer = new_model()
    losses = []
    for at in range(STEPS):
        if at == 2:
            losses.append(estimate(model))
            torch.save(model.state_dict(), out / "evaluated.model")
        learn(model, optimizer, make_batch(at), losses)
    return losses


def inferred(out):
    """The same under `inference_mode`, in training mode."""
    model, optimizer = new_model()
    losses = []
    for at in range(STEPS):
        if at == 2:
            with torch.inference_mode():
                losses.append(loss_of(model, make_batch(at)).item())
        learn(model, optimizer, make_batch(at), losses)
    return losses


def careless(out):
    """Evaluation that records gradients nobody uses: only the mode of the model tells."""
    model, optimizer = new_model()
    losses = []
    for at in range(STEPS):
        if at == 2:
            model.eval()
            losses.append(loss_of(model, make_batch(at)).item())
            model.train()
        learn(model, optimizer, make_batch(at), losses)
    return losses


def frozen(out):
    """A model that is trained in evaluation mode, and evaluated before the third step."""
    model, optimizer = new_model()
    model.eval()
    losses = []
    for at in range(STEPS):
        if at == 2:
            with torch.no_grad():
                losses.append(loss_of(model, make_batch(at)).item())
        learn(model, optimizer, make_batch(at), losses)
    return losses


def looked(out):
    """Evaluation on a loader that is left before its end, in a script that trains without one."""
    model, optimizer = new_model()
    loader, losses = DataLoader(Rows(), 12), []
    for at in range(STEPS):
        learn(model, optimizer, make_batch(at), losses)
        if at == 1:
            model.eval()
            for batch in loader:
                with torch.no_grad():
                    losses.append(loss_of(model, batch).item())
                break
            model.train()
    return losses


def adversarial(out):
    """Two models, two optimizers: the first one's step ends a step, the second one's belongs to the next."""
    (model, first), (judge, second) = new_model(), new_model(6)
    losses = []
    for at in range(STEPS):
        batch = make_batch(at)
        learn(model, first, batch, losses)
        learn(judge, second, batch, losses)
        time.sleep(SLOW_S)
    return losses


def parted(out):
    """One backward pass for two optimizers, the second of which takes its time."""
    model, first = new_model()
    losses = []

    class Late(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(SLOW_S)
            return super().step(closure)

    second = Late(model.inside.parameters(), lr=1e-3)
    for at in range(STEPS):
        learn(model, first, make_batch(at), losses)
        second.step()
    return losses


def fused(out):
    """Optimizers that are stepped within the backward pass, the last layer's first."""
    model, _ = new_model()
    losses = []
    optimizers = [torch.optim.SGD(layer.parameters(), lr=1e-2) for layer in (model.last, model.inside)]

    class Stepped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows, at):
            ctx.at = at
            return rows.clone()

        @staticmethod
        def backward(ctx, grad):
            optimizers[ctx.at].step()
            time.sleep(SLOW_S)
            return grad, None

    for at in range(STEPS):
        rows, labels = make_batch(at)
        hidden = Stepped.apply(torch.relu(model.inside(Stepped.apply(rows.requires_grad_(), 1))), 0)
        time.sleep(SLOW_S)
        loss = torch.nn.functional.cross_entropy(model.last(hidden), labels)
        loss.backward()
        losses.append(loss.item())
    return losses


def loaded(out):
    """A DataLoader whose data call a module, two steps a batch, a look at the model after the second step."""
    model, optimizer = new_model()
    losses = []
    for at, batch in enumerate(DataLoader(Lazy(32), 8)):
        learn(model, optimizer, batch, losses)
        learn(model, optimizer, batch, losses)
        if at == 1:
            losses.append(estimate(model))
    return losses


def compiled(out):
    """A compiled model (where torch can), a compiled function, an evaluation. Nothing is compiled anew for a hook."""
    torch.manual_seed(5)
    losses, made = [], []

    def count(graph, _):
        made.append(graph)
        return graph.forward

    class Quick(Slow):
        def forward(self, rows):
            return self.last(torch.relu(self.inside(rows)))

    model = Quick()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    called, inner = model, lambda batch: loss_of(model, batch)
    if torch_has.find()["torch.compile"]:
        called, inner = (torch.compile(code, backend=count, fullgraph=True) for code in (called, inner))
    for at in range(STEPS):
        if at == 2:
            with torch.no_grad():
                called.eval()
                losses.append(loss_of(called, make_batch(at)).item())
                called.train()
        for step in (lambda batch: loss_of(called, batch), inner):
            optimizer.zero_grad()
            loss = step(make_batch(at))
            time.sleep(SLOW_S)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    print(len(made))
    return losses


LOOPS = [
    plain, transformed, accumulated, evaluated, inferred, careless, frozen, looked, adversarial, parted, fused, loaded,
    compiled,
]  # fmt: skip


def main(out):
    if torch_has.find()["torch.compile"]:
        importlib.import_module("torch._dynamo")  # which the first optimizer would import, in each child anew

    torch.set_num_threads(1)
    for rank, loop in enumerate(LOOPS):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK="0")
            losses = loop(out)
            (out / f"{loop.__name__}.losses").write_text(" ".join(loss.hex() for loss in losses))
            sys.stdout.flush()
            atexit._run_exitfuncs()  # as at the end of a script, less the second that torch's teardown takes
            os._exit(0)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in LOOPS]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Trains once for each guarded function of the probe, which fails there: `faults.py OUT_DIR`.

A function's child, forked after the fault was planted, writes its losses and what it said on stderr to
OUT_DIR/<function>.losses and .said; the child "none" has no fault, and is the only one where there is no probe.
"""

# ruff: noqa: PTH105, PTH108 (as scripts write it)
import atexit
import importlib
import os
import sys
from pathlib import Path
from types import FunctionType

import torch
import torch.distributed as dist
import torch_has
from loops import accumulated, loss_of, new_model, plain


def kept(out):
    """A model wrapped for one rank that restores, saves, and ends a save in every way."""
    model, optimizer = new_model()
    torch.save(model.state_dict(), out / "first")
    model.load_state_dict(torch.load(out / "first"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model, losses = torch.nn.parallel.DistributedDataParallel(model), []
    for at in range(3):
        loss = loss_of(model, (torch.ones(2, 12) * at, torch.tensor([0, 1])))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        with (out / f"{at}.tmp").open("wb") as file:
            torch.save(model.state_dict(), file)
            os.fsync(file.fileno())
        os.replace(out / f"{at}.tmp", out / f"{at}.pt")
        if at:
            os.unlink(out / f"{at - 1}.pt")
    assert sorted(path.name for path in out.iterdir()) == ["2.pt", "first"]
    if torch_has.find()["torch.distributed.checkpoint.async_save"]:
        import torch.distributed.checkpoint as dcp

        dcp.async_save({"model": model.state_dict()}, checkpoint_id=str(out / "async")).result()
    return losses


def unaided(out, bend=lambda rows: torch.sin(rows) + rows):
    """No loader: an evaluation by hand, a function called before the model, two optimizers."""
    model, first = new_model()
    second, losses = torch.optim.SGD(model.parameters(), lr=1e-3), []
    for at in range(3):
        rows, labels = torch.ones(2, 12) * at, torch.tensor([0, 1])
        with torch.no_grad():
            losses.append(loss_of(model, (rows, labels)).item())
        loss = loss_of(model, (bend(rows), labels))
        loss.backward()
        first.step()
        second.step()
        losses.append(loss.item())
    return losses


def compiled(out):
    """The same with that function compiled, where torch can: the same losses."""
    if not torch_has.find()["torch.compile"]:
        return unaided(out)
    return unaided(out, torch.compile(lambda rows: torch.sin(rows) + rows, backend="eager"))


def find_guarded():
    """(class and name, function) of all guarded functions of the probe."""
    guarding = sys.modules.get("amdahl_probe.guarding")
    if guarding is None:
        return
    mark = guarding.guarded(find_guarded).__code__
    for module in [module for name, module in sorted(sys.modules.items()) if name.startswith("amdahl_probe.")]:
        for owner in [value for value in vars(module).values() if isinstance(value, type)]:
            if owner.__module__ != module.__name__:
                continue
            for name, function in vars(owner).items():
                if isinstance(function, FunctionType) and function.__code__ is mark:
                    yield f"{owner.__name__}.{name}", function


def plant(function):
    """Let a guarded function fail; returns what undoes it."""
    cell = next(cell for cell in function.__closure__ if cell.cell_contents is function.__wrapped__)

    def fail(*_args, **_kwargs):
        raise RuntimeError("planted")

    fail.__name__ = function.__name__
    cell.cell_contents = fail
    return lambda: setattr(cell, "cell_contents", function.__wrapped__)


def train(out, name):
    losses = []
    last = compiled if name.startswith("Forwards.") else unaided  # nothing else is called for it, and it takes a second
    for loop in (plain, accumulated, kept, last):
        (out / f"{name}-{loop.__name__}").mkdir()
        losses += loop(out / f"{name}-{loop.__name__}")
    (out / f"{name}.losses").write_text(" ".join(loss.hex() for loss in losses))


def main(out):
    if torch_has.find()["torch.compile"]:
        importlib.import_module("torch._dynamo")  # which the first optimizer would import, in each child anew

    torch.set_num_threads(1)
    for rank, (name, function) in enumerate([("none", None), *find_guarded()]):
        undo = plant(function) if function else None
        os.dup2(os.open(out / f"{name}.said", os.O_WRONLY | os.O_CREAT), 2)
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK="0")
            train(out, name)
            atexit._run_exitfuncs()  # as at the end of a script, less the second that torch's teardown takes
            os._exit(0)
        if os.waitstatus_to_exitcode(os.wait()[1]):
            return 1
        if undo:
            undo()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

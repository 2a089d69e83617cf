"""What does a save cost, by who writes it? `python benchmarks/trainer/checkpoint_cost.py [--set model.d_model=768]`.

One process trains a model on random tokens, on the GPU if there is one. In each mode it saves every few steps. The
*block* is how long the training thread is held by a save, the device's work before it waited for and not counted; the
first save of a mode is apart, since it makes the host's copy and, in `process`, starts the process. The *write* is the
time from the call to the commit, waited for between two saves, so that no save waits for another. *Steps meanwhile*
are the steps taken while a save is being written, over steps taken in quiet: the interference.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from amdahl_trainer import ckpt_state, device, optim
from amdahl_trainer import config as configs
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.model import Llama

MODES = ("sync", "thread", "process")
QUIET_STEPS = 5


@dataclass
class Cost:
    """Seconds of one mode: blocks with the first apart, writes, steps in quiet and during a write."""

    first: float = 0.0
    blocks: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)


class Trainee:
    """A model that trains."""

    def __init__(self, config: configs.Config, rows: int) -> None:
        self.device = device.choose(0)
        self.model = Llama(config.model).to(self.device)
        self.optimizer = optim.build(self.model, config.optim)
        shape = (rows, config.data.seq_len)
        self._tokens = torch.randint(0, config.model.vocab_size, shape, device=self.device)

    def step(self) -> float:
        """One step, to its end on the device."""
        begun = time.perf_counter()
        loss = self.model(self._tokens, targets_bs=self._tokens) / self._tokens.numel()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wait()
        return time.perf_counter() - begun

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(trainee: Trainee, checkpoints: Checkpoints, mode: str, saves: int) -> Cost:
    """Save `saves` + 1 times."""
    cost = Cost()
    for number in range(saves + 1):
        cost.quiet += [trainee.step() for _ in range(QUIET_STEPS)]
        begun = time.perf_counter()
        checkpoints.save(trainee.model, trainee.optimizer, Progress(number + 1, 0), mode != "sync")
        block = time.perf_counter() - begun
        written = checkpoints.finished()
        meanwhile = []
        while mode != "sync" and not written:
            meanwhile.append(trainee.step())
            written = checkpoints.finished()
        if number:
            cost.meanwhile += meanwhile
            cost.blocks.append(block)
            cost.writes += [one.total_ns / 1e9 for one in written] or [block]
        else:
            cost.first = block
    return cost


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value of the trainer's configuration")
    parser.add_argument("--home", type=Path, default=None, help="the disk to write to")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="amdahl-cost-", dir=options.home))
    for mode in MODES:
        told = dict(pair.split("=", 1) for pair in options.set)
        behind = {"checkpoint.async_mode": "process" if mode == "process" else "thread"}
        config = configs.build({"run.out_dir": str(home / mode), "checkpoint.keep": "1", **behind, **told})
        trainee = Trainee(config, options.rows)
        trainee.step()
        checkpoints = Checkpoints(config)
        cost = measure(trainee, checkpoints, mode, options.saves)
        checkpoints.close()
        if mode == MODES[0]:
            size = ckpt_state.size_bytes(ckpt_state.collect(trainee.model, trainee.optimizer, 0))
            name = device.name(trainee.device)
            print(f"torch {torch.__version__}, {name}, {size / 1e6:.0f} MB a save, {options.saves} saves\n")
            print("| mode | first block | block | write | step in quiet | step meanwhile |\n|---|---|---|---|---|---|")
        seconds = [cost.first, *(statistics.median(part) for part in (cost.blocks, cost.writes, cost.quiet))]
        meanwhile = f"{statistics.median(cost.meanwhile) * 1e3:.1f} ms" if cost.meanwhile else "-"
        print(f"| {mode} | {' | '.join(f'{one * 1e3:.1f} ms' for one in seconds)} | {meanwhile} |", flush=True)
    shutil.rmtree(home)
    sys.stdout.flush()
    os._exit(0)  # threads of the process group of one abort an interpreter that says farewell


if __name__ == "__main__":
    main()

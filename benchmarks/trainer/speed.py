"""How fast is the trainer beside a bare loop, and beside picotron? Three arms that take turns, on the same shapes.

    python benchmarks/trainer/speed.py --shape tiny                        # beside a bare PyTorch loop
    python benchmarks/trainer/speed.py --shape wide --picotron ~/picotron  # and beside a clone of huggingface/picotron

Each arm is a process that trains when it is its turn and waits else. A round has every arm twice, forwards and then
backwards (ABBA), so that a drift of the machine meets all alike; a round's ratio is that of the sums of an arm's two
turns. Printed are the median of the rounds' ratios and the interval that holds the true median with 95 % (by order
statistics, which assume nothing of how times are distributed).

- *bare*: the trainer's own model in the shortest loop that trains it, its batches made before the clock runs: no
  loader, no accounts, no checkpoints. Clipping, schedule, fused AdamW and reading the loss are there.
- *kept*: the same, its memory kept from step to step as the trainer keeps its own (`device.keep_memory`). What is left
  between this and the trainer is the trainer's own cost.
- *trainer*: the whole engine as `python -m amdahl_trainer` runs it, with ledger, records, and a loader of one worker.
- *compiled*: the same with run.compile blocks.
- *picotron*: its own `train_step`, model and optimizer, by import, fed from memory. What it imports and does not need
  here (flash-attn, datasets, a tracker) is stood in for by empty modules where it is not installed.

All arms see whole rows as one document, as picotron does; --doc-mask gives bare and trainer masks, and leaves it out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor

from amdahl_trainer import config as configs
from amdahl_trainer import device as devices
from amdahl_trainer import optim, train
from amdahl_trainer.config import Config, Scalar
from amdahl_trainer.data import sources
from amdahl_trainer.documents import find_documents
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.model import Llama

#: What both shapes have in common: an untied head, as picotron's is.
COMMON: Mapping[str, Scalar] = {
    "run.max_steps": 1 << 30,
    "run.torch_threads": 1,
    "model.tie_embeddings": False,
    "data.doc_mask": False,
    "data.num_workers": 1,
    "data.prefetch_factor": 8,
    "optim.decay_steps": 1000,
    "metrics.log_every": 20,
}

#: `tiny` is the demo's model, a few milliseconds a step: what the host does shows. In `wide` products dominate.
SHAPES: Mapping[str, Mapping[str, Scalar]] = {
    "tiny": {
        "model.n_layers": 1,
        "model.d_model": 64,
        "model.n_heads": 2,
        "model.n_kv_heads": 1,
        "model.d_ff": 176,
        "model.vocab_size": 512,
        "data.seq_len": 128,
        "batch.global_sequences": 16,
    },
    "wide": {
        "model.n_layers": 4,
        "model.d_model": 256,
        "model.n_heads": 8,
        "model.n_kv_heads": 4,
        "model.d_ff": 704,
        "model.vocab_size": 4096,
        "data.seq_len": 256,
        "batch.global_sequences": 8,
    },
}

#: What a turn took: by the wall, or as the processor time of all the process's threads, where others use the machine.
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

ARMS = ("bare", "kept", "trainer", "compiled", "picotron")

#: An arm: a generator that trains a step between two `yield`s.
Steps = Iterator[None]


def bare(config: Config) -> Steps:
    """The loop that one would write by hand."""
    batches = [_place(batch, config) for batch in _batches(config, 64)]
    torch.manual_seed(config.run.seed)
    model = Llama(config.model)
    optimizer = optim.build(model, config.optim)
    weights, step = list(model.parameters()), 0
    while True:
        yield
        tokens, targets, documents = batches[step % len(batches)]
        logits = model(tokens, documents)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, config.optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate(step, config.optim, config.decay_steps)
        optimizer.step()
        optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite")
        step += 1


def _place(batch: Tensor, config: Config) -> tuple[Tensor, Tensor, Any]:
    documents = find_documents(batch[2], torch.device("cpu")) if config.data.doc_mask else None
    return batch[0].contiguous(), batch[1].contiguous(), documents


def _batches(config: Config, count: int) -> list[Tensor]:
    """(3, rows, S) inputs, targets and segments of the training rows, in order."""
    size, corpus = config.batch.global_sequences, sources.ensure(config).train
    found = np.array([corpus.row(index % len(corpus)) for index in range(count * size)])
    return list(torch.from_numpy(found).view(count, size, 3, -1).transpose(1, 2))


def engine(config: Config, turn: Callable[[], None]) -> None:
    """The trainer as it is, telling of itself to its own directory.

    `turn` is called where the engine looks for a new knob file, which it does before each step.
    """
    with patch.object(KnobFile, "poll", lambda _: turn()):
        train.train(config, {"AMDAHL_TELEMETRY_DIR": config.run.out_dir}, time.monotonic_ns())


@dataclass
class Memory:
    """Batches as picotron's loader gives them, from memory."""

    batches: Sequence[Mapping[str, Tensor]]
    grad_acc_steps: int = 1
    at: int = -1

    def __iter__(self) -> Self:
        """It is its own iterator."""
        return self

    def __next__(self) -> Mapping[str, Tensor]:
        """The next batch, for ever."""
        self.at += 1
        return self.batches[self.at % len(self.batches)]


def picotron(config: Config, clone: Path) -> Steps:
    """Its training loop without what it prints: gradients cleared, `train_step`, the loss averaged, AdamW."""
    os.environ |= {"FLASH_ATTEN": "0", "DEVICE": "cpu", "DTYPE": "float32", "LOCAL_RANK": "0"}
    sys.path.insert(0, str(clone))
    sys.meta_path.append(_Absent())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    importlib.import_module("picotron.process_group_manager").setup_process_group_manager(1, 1, 1, 1)
    script, utils = importlib.import_module("train"), importlib.import_module("picotron.utils")
    model = script.Llama(
        types.SimpleNamespace(
            vocab_size=config.model.vocab_size,
            hidden_size=config.model.d_model,
            intermediate_size=config.model.d_ff,
            num_hidden_layers=config.model.n_layers,
            num_attention_heads=config.model.n_heads,
            num_key_value_heads=config.model.n_kv_heads,
            max_position_embeddings=config.data.seq_len,
            rope_theta=config.model.rope_theta,
            rms_norm_eps=config.model.norm_eps,
        )
    )
    model.train()
    optimizer = script.AdamW(model.parameters(), lr=config.optim.lr)
    loader = Memory([{"input_ids": batch[0], "target_ids": batch[1]} for batch in _batches(config, 64)])
    while True:
        yield
        optimizer.zero_grad()
        loss = script.train_step(model, loader, torch.device("cpu"))
        utils.average_loss_across_dp_cp_ranks(loss, torch.device("cpu"))
        optimizer.step()


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules for what picotron imports, and never calls here, where they are not installed."""

    NAMES: ClassVar = ("flash_attn", "datasets", "transformers", "huggingface_hub", "wandb")

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:  # noqa: ARG002 (Python's form)
        """A spec for those names, asked for last."""
        if fullname.partition(".")[0] not in self.NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module that has every name."""
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Turns:
    """Lets a process train when it is told to: for each line on standard input so many steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """What the process prints from now on goes nowhere."""
        self._clock = clock
        self._told = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self._left = 0
        self._begun: float | None = None

    def __call__(self) -> None:
        """A step is about to begin: say how long the turn's steps took, if they are done, and wait for the next."""
        if self._left == 0:
            if self._begun is not None:
                print(self._clock() - self._begun, file=self._told, flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # in the middle of an engine
            self._left, self._begun = int(line), self._clock()
        self._left -= 1


def play(arm: str, config: Config, clone: Path, clock: str) -> None:
    """Be an arm, for ever."""
    torch.set_num_threads(1)
    turns = Turns(CLOCKS[clock])
    if arm in ("trainer", "compiled"):
        engine(config, turns)
    if arm == "kept":
        devices.keep_memory(os.environ)
    for _ in bare(config) if arm in ("bare", "kept") else picotron(config, clone):
        turns()


class Arm:
    """An arm's process."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, *arguments, "--play", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def step(self, count: int) -> float:
        """Seconds of that many steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"arm {self.name} ended with {self._process.wait()}")
        return float(line)

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def race(arms: Sequence[Arm], rounds: int, turn_s: float) -> dict[str, list[float]]:
    """Seconds a step of each arm and round. Arms are warmed up first; a turn is about `turn_s` long for each."""
    counts = {}
    for arm in arms:
        arm.step(5)
        counts[arm.name] = max(1, round(turn_s / (arm.step(5) / 5)))
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(rounds):
        spent = dict.fromkeys(found, 0.0)
        for arm in (*arms, *reversed(arms)):
            spent[arm.name] += arm.step(counts[arm.name])
        for name, seconds in spent.items():
            found[name].append(seconds / (2 * counts[name]))
    return found


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the two order statistics between which the true median lies with 95 % at least."""
    ordered, count = sorted(ratios), len(ratios)
    tail, below = 0.0, 0
    while (tail := tail + math.comb(count, below) / 2**count) <= 0.025:
        below += 1
    if below == 0:
        return statistics.median(ordered), -math.inf, math.inf  # fewer than six rounds say nothing
    return statistics.median(ordered), ordered[below - 1], ordered[count - below]


def main() -> int:
    """Race and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turn-s", type=float, default=1.0, help="seconds of a turn")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too")
    parser.add_argument("--picotron", type=Path, default=None, help="a clone of huggingface/picotron")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=None)
    parser.add_argument("--doc-mask", action="store_true", help="mask documents; not with picotron")
    parser.add_argument("--cache-dir", default="~/.cache/amdahl")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value of the trainer's configuration")
    parser.add_argument("--play", choices=ARMS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--home", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    told = dict(pair.split("=", 1) for pair in options.set)
    values = {**COMMON, **SHAPES[options.shape], "data.cache_dir": options.cache_dir, **told}
    values["data.doc_mask"] = options.doc_mask
    if options.play:
        mode = "blocks" if options.play == "compiled" else "none"
        values |= {"run.compile": mode, "run.out_dir": options.home}
        play(options.play, configs.build(values), options.picotron, options.clock)
    config = configs.build(values)
    sources.ensure(config)  # once, not in every arm
    names = options.arms or [name for name in ARMS if name != "picotron" or options.picotron]
    with tempfile.TemporaryDirectory(prefix="amdahl-speed-") as home:
        arms = [Arm(name, [*sys.argv[1:], "--home", home]) for name in names]
        found = race(arms, options.rounds, options.turn_s)
        for arm in arms:
            arm.end()
    print(
        f"torch {torch.__version__}, 1 thread, shape {options.shape}, {options.rounds} rounds, {options.clock} time\n"
    )
    show(found, config.batch.global_sequences * config.data.seq_len)
    return 0


def show(found: Mapping[str, Sequence[float]], tokens: int) -> None:
    """The table, from seconds a step by arm and round, and the tokens of a step."""
    others = [name for name in ("bare", "kept", "picotron") if name in found]
    print("| arm | ms a step | tokens/s |", *(f"times the speed of {name} |" for name in others))
    print("|" + "---|" * (3 + len(others)))
    for name, mine in found.items():
        step = statistics.median(mine)
        cells = [name, f"{step * 1e3:.2f}", f"{tokens / step:,.0f}"]
        for other in others:
            middle, low, high = interval([theirs / own for theirs, own in zip(found[other], mine, strict=True)])
            cells.append("-" if other == name else f"{middle:.3f} ({low:.3f} to {high:.3f})")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())

"""What does the trainer reach on one GPU? Four tables, each in a few minutes, without a network.

    python benchmarks/trainer/gpu.py                            # all four, as far as --budget-s goes
    python benchmarks/trainer/gpu.py --tables knobs             # one of: mfu, knobs, checkpoints, attention
    python benchmarks/trainer/gpu.py --device cpu --tiny        # that the code works, on any machine

- *mfu*: a Llama of 213 M parameters in bfloat16, compiled, by the engine as it runs, its loader and records included.
  Its time is taken from outside, the device waited for before and after. *Of the marks* is what the device's accounts
  of the steps sum to, work and idle, over the time between its first and its last mark; *of the wall* is that time over
  the one from outside. Both are 100 % if the accounts leave nothing out and count nothing twice; 1 % is allowed. *Idle*
  is the part without work; *launch-bound* the part at Python's pace, of which an unknown part is idle too.
- *knobs*: the same with one setting changed at a time; the peak of memory beside what the plan says.
- *checkpoints*: how long training is blocked by a save, at once or behind its back, the first save apart.
- *attention*: packed rows, forward and backward: the trainer's own way, a call for each document, a mask.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor

from amdahl_trainer import attention, flops, memory, train
from amdahl_trainer import config as configs
from amdahl_trainer import device as devices
from amdahl_trainer.config import Config, Scalar
from amdahl_trainer.documents import Documents, make_mask
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.mesh import Degrees

#: 213 million parameters; 32,768 tokens a step.
LLAMA: Mapping[str, Scalar] = {
    "model.n_layers": 16,
    "model.d_model": 1024,
    "model.n_heads": 16,
    "model.n_kv_heads": 4,
    "model.d_ff": 2816,
    "model.vocab_size": 32_000,
    "data.seq_len": 2048,
    "data.num_workers": 4,
    "data.pin_memory": True,
    "batch.global_sequences": 16,
    "optim.lr": 3e-4,
    "precision.compute": "bfloat16",
    "run.compile": "blocks",
}

#: In its place with --tiny.
TINY: Mapping[str, Scalar] = {
    **LLAMA,
    "model.n_layers": 2,
    "model.d_model": 64,
    "model.n_heads": 4,
    "model.d_ff": 96,
    "model.vocab_size": 320,
    "data.seq_len": 128,
    "data.num_workers": 0,
    "data.pin_memory": False,
    "data.max_documents": 300,
    "batch.global_sequences": 8,
}

#: One setting changed at a time.
KNOBS: Sequence[Mapping[str, Scalar]] = (
    {},
    {"run.compile": "none"},
    {"precision.compute": "float32"},
    {"data.doc_mask": False},
    {"memory.activation_checkpoint": "selective"},
    {"memory.activation_checkpoint": "block"},
    {"memory.loss_chunks": 4},
    {"batch.micro_batch": 8},
    {"batch.micro_batch": 4},
    {"data.num_workers": 0},
)


#: Ways to save.
SAVES: Mapping[str, Mapping[str, Scalar]] = {
    "synchronous": {},
    "by a thread": {"checkpoint.async_save": True},
    "by a process": {"checkpoint.async_save": True, "checkpoint.async_mode": "process"},
}


@dataclass(frozen=True)
class Bench:
    """Where and how long."""

    device: torch.device
    base: Mapping[str, Scalar]
    warm: int
    scored: int
    home: Path

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Device:
    """What the device's own accounts of some steps sum to, nanoseconds."""

    work_ns: int
    idle_ns: int
    launch_bound_ns: int
    wall_ns: int  # between its marks

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Device | None:
        """As the journal has them; None where the device is the host."""
        if not all("device_ns" in line for line in lines):
            return None
        idle = sum(line["device_ns"]["idle"] for line in lines)
        whole = sum(sum(line["device_ns"].values()) for line in lines)
        paced, wall = (sum(line[name] for line in lines) for name in ("launch_bound_ns", "device_wall_ns"))
        return cls(whole - idle, idle, paced, wall)

    def describe(self, seconds: float) -> list[str]:
        """Accounts over marks, marks over the time from outside, and what part of it was idle or launch-bound."""
        shares = ((self.work_ns + self.idle_ns) / self.wall_ns, self.wall_ns / seconds / 1e9)
        parts = (self.idle_ns / self.wall_ns, self.launch_bound_ns / self.wall_ns)
        return [*(f"{share:.2%}" for share in shares), *(f"{part:.1%}" for part in parts)]


@dataclass(frozen=True)
class Ran:
    """What some steps of the engine took."""

    config: Config
    seconds: float  # of the scored steps, by the clock outside
    device: Device | None  # None on a CPU
    compiling: float  # seconds
    peak_bytes: int
    blocks_s: Sequence[float]  # of saves, in order


def engine(bench: Bench, changes: Mapping[str, Scalar]) -> Ran:
    """Train warm and scored steps, and one more; time the scored ones from outside, and read their records."""
    home = tempfile.mkdtemp(dir=bench.home)
    first, last = bench.warm, bench.warm + bench.scored
    told: dict[str, Scalar] = {"run.max_steps": last + 1, "run.out_dir": home, "metrics.log_every": last + 2}
    config = configs.build({**bench.base, **told, **changes})
    passed: list[float] = []

    def note(_: KnobFile) -> None:
        """Called where the trainer looks for a new knob file: at start and before each step."""
        if len(passed) in (1 + first, 1 + last):
            bench.wait()
        passed.append(time.perf_counter())

    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with patch.object(KnobFile, "poll", note), contextlib.redirect_stdout(io.StringIO()):
        train.train(config, {"AMDAHL_TELEMETRY_DIR": home}, time.monotonic_ns())
    peak = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    records = [json.loads(line) for line in Path(home, "rank-0.jsonl").read_text().splitlines()]
    phases = [record["ph"] for record in records if record["k"] == "step"]
    journal = [json.loads(line) for line in Path(home, "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in journal if line["schema"] == "trainer.step/1"]
    torch._dynamo.reset()  # noqa: SLF001 (torch has no public name for it): the next engine's code is other code
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return Ran(
        config,
        seconds=passed[1 + last] - passed[1 + first],
        device=Device.of(lines[first:last]),
        compiling=sum(lap.get("warmup", 0) for lap in phases) / 1e9,
        peak_bytes=peak,
        blocks_s=[one["block_ns"] / 1e9 for one in records if one["k"] == "save" and not one.get("durable")],
    )


def describe(bench: Bench, ran: Ran) -> list[str]:
    """Milliseconds a step, tokens/s, utilisation by convention, memory and what was planned, the device, compiling."""
    config = ran.config
    step_s = ran.seconds / bench.scored
    rate = config.batch.global_sequences * config.data.seq_len / step_s
    cost = flops.per_token(config.model, config.data.seq_len, float(config.data.seq_len))
    peak = flops.peak_flops(devices.name(bench.device), config.precision.compute)
    share = flops.utilisation(cost, rate, peak)
    planned = memory.estimate(config, Degrees(), on_gpu=bench.device.type == "cuda").total
    return [
        f"{step_s * 1e3:.1f}",
        f"{rate:,.0f}",
        *(f"{share[name]:.1%}" if share else "-" for name in ("palm", "causal")),
        f"{ran.peak_bytes / 2**30:.2f}",
        f"{planned / 2**30:.2f}",
        *(["-"] * 4 if ran.device is None else ran.device.describe(ran.seconds)),
        f"{ran.compiling:.1f}",
    ]


#: What `describe` gives.
COLUMNS = (
    *("ms a step", "tokens/s", "MFU palm", "MFU causal", "peak GiB", "planned GiB"),
    *("of the marks", "of the wall", "idle", "launch-bound", "compiling, s"),
)


def mfu(bench: Bench) -> Iterator[Sequence[str]]:
    """One row."""
    yield ("run", *COLUMNS)
    yield ("as it is", *describe(bench, engine(bench, {"data.doc_mask": False})))


def knobs(bench: Bench) -> Iterator[Sequence[str]]:
    """A row for each change."""
    yield ("changed", *COLUMNS)
    for changes in KNOBS:
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "nothing"
        yield (name, *describe(bench, engine(bench, changes)))


def checkpoints(bench: Bench) -> Iterator[Sequence[str]]:
    """A row for each way to save; a save in so many steps that none waits for the one before."""
    yield ("save", "first block, ms", "block, ms", "of the synchronous")
    every = max(1, (bench.warm + bench.scored) // 5)
    whole = 0.0
    for name, changes in SAVES.items():
        ran = engine(bench, {"checkpoint.every_steps": every, "checkpoint.keep": 1, **changes})
        first, *others = ran.blocks_s[:-1] if len(ran.blocks_s) > 2 else ran.blocks_s  # the last is at the end
        block = statistics.median(others)
        whole = whole or block
        yield name, f"{first * 1e3:.1f}", f"{block * 1e3:.1f}", f"{block / whole:.1%}"


def attend(bench: Bench) -> Iterator[Sequence[str]]:
    """A row for each way to attend within documents, of rows with documents of several lengths."""
    config = configs.build(bench.base)
    model, tokens, rows = config.model, config.data.seq_len, min(4, config.batch.global_sequences)
    head = model.d_model // model.n_heads
    kind = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    yield ("documents a row", "the trainer's, ms", "a call each, ms", "masked, ms")
    for count in (1, 4, 16, 64):
        ends = sorted(
            {
                0,
                tokens,
                *torch.randint(1, tokens, (count - 1,), generator=torch.Generator().manual_seed(count)).tolist(),
            }
        )
        documents = Documents.within((tuple(ends),) * rows, bench.device)
        mask = make_mask(documents.bounds).to(bench.device)
        q, k, v = (
            torch.randn(rows, tokens, heads, head, device=bench.device, dtype=kind, requires_grad=True)
            for heads in (model.n_heads, model.n_kv_heads, model.n_kv_heads)
        )
        ways = (attention.attend, _each(ends), _masked(mask))
        yield str(len(ends) - 1), *(f"{_time(bench, way, (q, k, v), documents) * 1e3:.2f}" for way in ways)


Attend = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]


def _each(ends: Sequence[int]) -> Attend:
    """A call of scaled dot products for each document of all rows, which are cut alike."""

    def attend(q: Tensor, k: Tensor, v: Tensor, _: Documents) -> Tensor:
        parts = [[part[:, first:last].transpose(1, 2) for part in (q, k, v)] for first, last in pairwise(ends)]
        mixed = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in parts]
        return torch.cat(mixed, dim=2).transpose(1, 2)

    return attend


def _masked(mask: Tensor) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, _: Documents) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    return attend


def _time(bench: Bench, way: Attend, inputs: tuple[Tensor, Tensor, Tensor], documents: Documents) -> float:
    """Median seconds of a forward and a backward pass."""
    found = []
    for turn in range(bench.warm + bench.scored):
        bench.wait()
        begun = time.perf_counter()
        torch.autograd.backward(way(*inputs, documents).sum())
        bench.wait()
        if turn >= bench.warm:
            found.append(time.perf_counter() - begun)
    return statistics.median(found)


#: By name, in order.
TABLES: Mapping[str, Callable[[Bench], Iterator[Sequence[str]]]] = {
    "mfu": mfu,
    "attention": attend,
    "checkpoints": checkpoints,
    "knobs": knobs,
}


def main() -> int:
    """Print tables, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps")
    parser.add_argument("--steps", type=int, default=40, help="scored steps of a run")
    parser.add_argument("--budget-s", type=float, default=540.0, help="no row is begun after so many seconds")
    parser.add_argument("--home", type=Path, default=None, help="the disk for checkpoints")
    parser.add_argument("--cache-dir", default="~/.cache/amdahl")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value of the trainer's configuration")
    options = parser.parse_args()
    begun = time.monotonic()
    told: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the trainer takes a GPU where there is one
    device = devices.choose(0)
    base = {**(TINY if options.tiny else LLAMA), "data.cache_dir": options.cache_dir, **told}
    with tempfile.TemporaryDirectory(prefix="amdahl-gpu-", dir=options.home) as home:
        bench = Bench(device, base, 3 if options.tiny else 10, 6 if options.tiny else options.steps, Path(home))
        print(f"torch {torch.__version__}, {devices.name(device)}, {time.strftime('%Y-%m-%d')}")
        for table in options.tables:
            print(f"\n{table}\n")
            rows = TABLES[table](bench)
            print("| " + " | ".join(head := next(rows)) + " |\n" + "|---" * len(head) + "|", flush=True)
            while time.monotonic() - begun < options.budget_s and (row := next(rows, None)):
                print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

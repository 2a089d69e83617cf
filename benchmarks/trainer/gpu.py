"""What does the trainer reach on one GPU? Four tables, each in a few minutes, without a network.

    python benchmarks/trainer/gpu.py                            # all four, as far as --budget-s goes
    python benchmarks/trainer/gpu.py --tables knobs             # one of: mfu, knobs, checkpoints, attention
    python benchmarks/trainer/gpu.py --device cpu --tiny        # that the code works, on any machine

- *mfu*: a Llama of 213 M parameters in bfloat16, compiled, by the engine as it runs, its loader and records included.
  Its time is taken from outside, the device waited for before and after. *Accounted* is the sum of all phases of the
  steps' records over that time: 100 % if the accounts leave nothing out and count nothing twice.
- *knobs*: the same with one setting changed at a time; the peak of memory beside what the plan says.
- *checkpoints*: how long training is blocked by a save, at once or behind its back, the first save apart.
- *attention*: packed rows, forward and backward: the trainer's own way, a call for each document, a mask.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor

from amdahl_trainer import attention, compiled, flops, memory, train
from amdahl_trainer import config as configs
from amdahl_trainer import device as devices
from amdahl_trainer.config import Config, Scalar
from amdahl_trainer.documents import Documents, make_mask
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.peers import Alone, Place
from amdahl_trainer.report import Reporter, Telemetry

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


class Gate(KnobFile):
    """Stands where the engine looks for news before each step, and calls there."""

    def __init__(self, passed: Callable[[], None]) -> None:
        super().__init__(None)
        self._passed = passed

    def poll(self) -> str | None:
        """No news."""
        self._passed()
        return None


@dataclass(frozen=True)
class Ran:
    """What some steps of the engine took."""

    config: Config
    seconds: float  # of the scored steps, by the clock outside
    accounted: float  # seconds of all phases of their records
    compiling: float  # seconds
    peak_bytes: int
    blocks_s: Sequence[float]  # of saves, in order


def engine(bench: Bench, changes: Mapping[str, Scalar]) -> Ran:
    """Train warm and scored steps. The scored ones are timed from outside, their records read afterwards."""
    home = Path(tempfile.mkdtemp(dir=bench.home))
    steps = bench.warm + bench.scored
    told = {"run.max_steps": steps, "run.out_dir": str(home / "out"), "metrics.log_every": steps + 1}
    config = configs.build({**bench.base, **told, **changes})
    environ = {"AMDAHL_TELEMETRY_DIR": str(home)}
    reporter = Reporter(Telemetry.from_environ(environ), Place(), devices.name(bench.device), time.monotonic_ns())
    job = train.Job(config, environ, Place(), bench.device, Alone(), reporter)
    made = train.build(job, train.Startup(time.monotonic_ns()), lambda: False)
    passed: list[float] = []

    def note() -> None:
        if len(passed) in (bench.warm, steps):
            bench.wait()
        passed.append(time.perf_counter())

    made.parts = replace(made.parts, knob_file=Gate(note))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with compiled.as_warmup(made.parts.ledger) if config.run.compile != "none" else nullcontext():
        made.run(lambda: None)
    bench.wait()
    ended = time.perf_counter()
    made.parts.loader.close()
    made.parts.checkpoints.close()
    reporter.close(steps, "exit")
    records = [json.loads(line) for line in (home / "rank-0.jsonl").read_text().splitlines()]
    laps = [record for record in records if record["k"] == "step"]
    scored = laps[bench.warm :]
    saves = [record["block_ns"] / 1e9 for record in records if record["k"] == "save" and not record.get("durable")]
    peak = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    del made, job
    gc.collect()
    torch._dynamo.reset()  # noqa: SLF001 (torch has no public name for it): the next engine's code is other code
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return Ran(
        config,
        seconds=ended - passed[bench.warm],
        accounted=sum(sum(lap["ph"].values()) for lap in scored) / 1e9,
        compiling=sum(lap["ph"].get("warmup", 0) for lap in laps) / 1e9,
        peak_bytes=peak,
        blocks_s=saves,
    )


def describe(bench: Bench, ran: Ran) -> list[str]:
    """Milliseconds a step, tokens/s, utilisation by convention, memory and what was planned, accounts, compiling."""
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
        f"{ran.accounted / ran.seconds:.2%}",
        f"{ran.compiling:.1f}",
    ]


#: What `describe` gives.
COLUMNS = ("ms a step", "tokens/s", "MFU palm", "MFU causal", "peak GiB", "planned GiB", "accounted", "compiling, s")


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
    for name, changes in (
        ("synchronous", {}),
        ("by a thread", {"checkpoint.async_save": True}),
        ("by a process", {"checkpoint.async_save": True, "checkpoint.async_mode": "process"}),
    ):
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
        mixed = [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
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
        way(*inputs, documents).sum().backward()
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
    device = torch.device("cpu") if options.device == "cpu" else devices.choose(0)
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

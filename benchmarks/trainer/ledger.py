"""Is the trainer's account of time right, and what does it cost? `python benchmarks/trainer/ledger.py [PART ...]`.

*delays.* Two ranks on gloo train a small model. In pairs of neighbouring steps, in an order that a coin decides, one of
the two is delayed by a sleep of 20 ms in the loader, in the save, or on one rank before its part of the step. Within a
pair the difference of the right phase (`input`, `checkpoint`, or `comm` on the rank that waits) is what the sleep took:
medians of both must agree within 5 %, in each parallel mode.

*cost.* One process, self-timed: wall time spent in ledger, clock, digests of batches, records and journal at each of
1,000 small steps. The 99th percentile is held against 150 us. Then on and off: all of that is switched off or on anew
for each step of about 40 ms, in pairs as above. The upper end of the median difference's 95 % interval (order
statistics) is held against 1 %.

*agreement.* How long the all-reduce takes that every step begins with, by what it carries: three numbers, as many as
are sent now, and what they would be with 64 and 600 ranks. Two ranks, sizes taking turns.

Timings want a quiet machine. The exit code says whether all bars were met.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from amdahl_probe.digests import BatchDigest
from amdahl_probe.emit import Recorder
from amdahl_probe.spans import PHASES, Ledger
from amdahl_trainer import entry, loop, peers
from amdahl_trainer.ckpt import Checkpoints
from amdahl_trainer.data import loader
from amdahl_trainer.data.loader import Loader
from amdahl_trainer.device import HostClock
from amdahl_trainer.errors import Exit
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.pp import Pipeline
from amdahl_trainer.replica import Whole
from amdahl_trainer.report import Reporter

DELAY_S, WITHIN = 0.020, 0.05
BAR_US, BAR_SHARE = 150.0, 0.01
PAIRS, WARM_UP = 60, 10
COST_STEPS, TOGGLE_PAIRS = 1000, 300

SMALL = {
    "run.torch_threads": 1,
    "run.gc_every": 1_000_000,  # a collection would fall on one step of a pair
    "model.n_layers": 4,
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.n_kv_heads": 4,
    "model.tie_embeddings": False,
    "data.max_documents": 300,
    "data.seq_len": 128,
    "batch.global_sequences": 8,
    "batch.micro_batch": 2,
    "metrics.log_every": 1_000_000,
}
#: Steps of about 40 ms on one core.
DEMO = {**SMALL, "model.d_model": 96, "model.d_ff": 256, "batch.global_sequences": 8, "batch.micro_batch": 8}

MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"parallel.dp_mode": "fsdp2"},
    "tp": {"parallel.tp": 2},
    "async tp": {"parallel.tp": 2, "parallel.async_tp": True},
    "1f1b": {"parallel.pp": 2},
    "cp, all-gather": {"parallel.cp": 2},
    "cp, ring": {"parallel.cp": 2, "parallel.cp_mode": "ring"},
}

#: Place of the delay: phase that must show it, rank that sleeps (None: all), rank that is looked at.
PLACES: dict[str, tuple[str, int | None, int]] = {
    "loader": ("input", None, 0),
    "save": ("checkpoint", None, 0),
    "collective": ("comm", 1, 0),
}


def flip(pairs: int) -> list[bool]:
    """For each step whether it is the one of its pair; every rank flips alike."""
    coin = random.Random(7)
    return [is_it for _ in range(pairs) for is_it in coin.choice(((True, False), (False, True)))]


def in_order(pair: Sequence[Any], is_first: bool) -> Sequence[Any]:
    """The one that the coin chose, then the other."""
    return pair if is_first else pair[::-1]


def wrap(kind: Any, method: str, around: Callable[..., Any]) -> None:
    """Replace a method by `around(original, self, *arguments)`; or a function of a module."""
    original = getattr(kind, method)
    setattr(kind, method, lambda *arguments, **named: around(original, *arguments, **named))


# delays


def delayed_rank(place: str, out: Path, arguments: Sequence[str]) -> None:
    """Train as one rank, sleeping before every call of the place that the coin chose; leaves what the sleeps took."""
    phase_rank = PLACES[place][1]
    chosen = [False] * WARM_UP + flip(PAIRS) + [False] * 10
    calls, slept = [0], []
    rank = int(os.environ["RANK"])

    def around(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        at, calls[0] = calls[0], calls[0] + 1
        if chosen[at] and phase_rank in (None, rank):
            begun_ns = time.perf_counter_ns()
            time.sleep(DELAY_S)
            slept.append(time.perf_counter_ns() - begun_ns)
            (out / f"slept-{rank}.json").write_text(json.dumps(slept))
        return original(*arguments, **named)

    targets: dict[str, list[tuple[type, str]]] = {"loader": [(Loader, "next")], "save": [(Checkpoints, "save")]}
    for kind, method in targets.get(place, [(Whole, "accumulate"), (Pipeline, "accumulate")]):
        wrap(kind, method, around)
    entry.run(arguments, os.environ)


class Delay(NamedTuple):
    """What a sleep took, what it added to the right phase (95 % interval and median) and to all others; seconds."""

    slept: float
    right: tuple[float, float, float]
    others: float


def measure_delays(place: str, values: dict[str, Any]) -> Delay:
    """Medians over pairs of neighbouring steps, of which one is delayed."""
    out = Path(tempfile.mkdtemp(prefix="amdahl-ledger-"))
    steps = WARM_UP + 2 * PAIRS + 2
    settings = {**SMALL, **values, "run.max_steps": steps, "run.out_dir": str(out / "run")}
    settings["checkpoint.every_steps"] = 1 if place == "save" else 0
    spawn(["delayed", place, str(out), *(f"--{key}={value}" for key, value in settings.items())], out)
    phase, sleeper, seen = PLACES[place]
    records = [json.loads(line) for line in (out / f"rank-{seen}.jsonl").read_text().splitlines()]
    laps = [record["ph"] for record in records if record["k"] == "step"]
    first = WARM_UP + (place == "save")  # a save is in the lap of the step after it
    slept = json.loads((out / f"slept-{sleeper or 0}.json").read_text())
    right, others = [], []
    chosen = flip(PAIRS)
    for pair in range(PAIRS):
        at = first + 2 * pair
        late, plain = in_order(laps[at : at + 2], chosen[2 * pair])
        right.append(late.get(phase, 0) - plain.get(phase, 0))
        others.append(sum(late.values()) - sum(plain.values()) - right[-1])
    low, middle, high = (difference / 1e9 for difference in bound(sorted(right)))
    return Delay(statistics.median(slept) / 1e9, (low, middle, high), statistics.median(others) / 1e9)


def spawn(arguments: Sequence[str], out: Path) -> None:
    """Run this script as two ranks, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    with (out / "log").open("w") as log:
        for rank in ("0", "1"):
            told = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "AMDAHL_TELEMETRY_DIR": str(out)}
            command = [sys.executable, __file__, "--rank", *arguments]
            ranks.append(subprocess.Popen(command, env=told, stdout=log, stderr=log))
        codes = [rank.wait(600) for rank in ranks]
    if codes != [0, 0]:
        sys.exit(f"ranks ended with {codes}:\n{(out / 'log').read_text()[-3000:]}")


def delays() -> bool:
    """Print the table of delays."""
    print("| delay in | mode | slept | right phase | 95 % | off by | elsewhere |\n|---|---|---|---|---|---|---|")
    is_met = True
    cases = [("loader", "ddp"), ("save", "ddp"), *(("collective", mode) for mode in MODES)]
    for place, mode in cases:
        slept, (low, right, high), others = measure_delays(place, MODES[mode])
        off = right / slept - 1
        is_met &= abs(off) <= WITHIN
        said = f"{PLACES[place][0]} {right * 1e3:+.2f} ms | {low * 1e3:.1f} to {high * 1e3:.1f}"
        times = f"{slept * 1e3:.2f} ms | {said} | {off:+.1%} | {others * 1e3:+.2f} ms"
        print(f"| {place} | {mode} | {times} |", flush=True)
    return is_met


# cost


class Stopwatch:
    """Wall time, and the thread's CPU time, in the timed methods, the outermost call alone, by step."""

    def __init__(self) -> None:
        self.wall_ns = self.cpu_ns = 0
        self.by_step: list[tuple[int, int]] = []
        self._is_inside = False

    def around(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Time a call."""
        if self._is_inside:
            return original(*arguments, **named)
        self._is_inside = True
        cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
        try:
            return original(*arguments, **named)
        finally:
            self.wall_ns += time.perf_counter_ns() - wall_ns
            self.cpu_ns += time.thread_time_ns() - cpu_ns
            self._is_inside = False

    def step(self) -> None:
        """A step begins."""
        self.by_step.append((self.wall_ns, self.cpu_ns))
        self.wall_ns = self.cpu_ns = 0


#: All that accounting does in a step, with what stands in for it where it is switched off.
Timed = list[tuple[Any, str, Any]]
SPANS: Timed = [(Ledger, name, None) for name in ("push", "pop", "rest")]
LAPS: Timed = [(Ledger, "take", {}), (Ledger, "spent", 0)]
CLOCK: Timed = [(HostClock, name, None) for name in ("gradient", "begin", "backward_done")]
REPORTER: Timed = [(Reporter, "step", {}), (Reporter, "agreed", None)]
NOTHING = BatchDigest(0, 0, 0, 0, 0)
BATCH: Timed = [(loader, "digest_rows", NOTHING), (loop, "describe", NOTHING), (loop, "count_squares", 0)]


def cost_rank(part: str, arguments: Sequence[str]) -> None:
    """Train in this process, timed or switched; prints what it found and returns its bar through the exit code."""
    stopwatch, switch = Stopwatch(), Switch()
    for kind, name, instead in [*SPANS, *LAPS, *CLOCK, *REPORTER, *BATCH]:
        wrap(kind, name, stopwatch.around if part == "timed" else switch.around(instead))
    begin = stopwatch.step if part == "timed" else switch.step
    found: Sequence[Any] = stopwatch.by_step if part == "timed" else switch.took_ns
    wrap(KnobFile, "poll", after(begin))
    wrap(Recorder, "close", after(lambda: leave(part, found)))  # before the process ends itself
    entry.run(arguments, os.environ)


def after(first: Callable[[], None]) -> Callable[..., Any]:
    """What calls `first`, then the original."""

    def around(original: Callable[..., Any], *rest: Any) -> Any:
        first()
        return original(*rest)

    return around


def leave(part: str, found: Sequence[Any]) -> None:
    """Nanoseconds of each step, as JSON."""
    Path(os.environ["AMDAHL_TELEMETRY_DIR"], f"{part}.json").write_text(json.dumps(found))


class Switch:
    """Switches accounting off and on, a step at a time."""

    def __init__(self) -> None:
        self.is_on = True
        self.took_ns: list[int] = []
        self._chosen = [True] * WARM_UP + flip(TOGGLE_PAIRS) + [True] * 10
        self._begun_ns = time.perf_counter_ns()

    def around(self, instead: Any) -> Callable[..., Any]:
        """What stands for a call while it is off."""
        return lambda original, *rest, **named: original(*rest, **named) if self.is_on else instead

    def step(self) -> None:
        """A step begins, and the one before has ended."""
        now_ns = time.perf_counter_ns()
        self.took_ns.append(now_ns - self._begun_ns)
        self.is_on = self._chosen[len(self.took_ns) - 1]
        self._begun_ns = time.perf_counter_ns()


def run_alone(part: str, values: dict[str, Any]) -> list[Any]:
    """What a process of its own measured."""
    out = Path(tempfile.mkdtemp(prefix="amdahl-ledger-"))
    settings = {**values, "run.out_dir": str(out / "run")}
    command = [sys.executable, __file__, "--rank", part, *(f"--{key}={value}" for key, value in settings.items())]
    told = {**os.environ, "AMDAHL_TELEMETRY_DIR": str(out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-2000:])
    found: list[Any] = json.loads((out / f"{part}.json").read_text())
    return found


def bound(ordered: Sequence[float]) -> tuple[float, float, float]:
    """(low end, median, high end) of the 95 % interval of the median: order statistics, for any distribution."""
    reach, middle = math.ceil(0.98 * math.sqrt(len(ordered))), len(ordered) // 2
    return ordered[max(0, middle - reach)], statistics.median(ordered), ordered[min(len(ordered) - 1, middle + reach)]


def at_99(ordered: Sequence[int]) -> int:
    """The 99th percentile."""
    return ordered[int(0.99 * len(ordered))]


def cost() -> bool:
    """Print what accounting costs."""
    told = run_alone("timed", {**SMALL, "run.max_steps": COST_STEPS + WARM_UP})[WARM_UP:]
    wall, cpu = (sorted(column) for column in zip(*told, strict=True))
    p99_us = at_99(wall) / 1e3
    print(
        f"self-timed, {len(told)} steps: median {statistics.median(wall) / 1e3:.0f} us, 99 % {p99_us:.0f} us "
        f"(bar {BAR_US:.0f}); CPU time median {statistics.median(cpu) / 1e3:.0f} us, 99 % {at_99(cpu) / 1e3:.0f} us",
        flush=True,
    )
    steps = WARM_UP + 2 * TOGGLE_PAIRS + 2
    took = run_alone("toggled", {**DEMO, "run.max_steps": steps})[WARM_UP + 1 :]  # the first is until the first step
    chosen = flip(TOGGLE_PAIRS)
    pairs = [in_order(took[2 * at : 2 * at + 2], chosen[2 * at]) for at in range(TOGGLE_PAIRS)]
    bare_ns = statistics.median(off for _, off in pairs)
    low, middle, high = (difference / bare_ns for difference in bound(sorted(on - off for on, off in pairs)))
    print(
        f"on against off, {TOGGLE_PAIRS} pairs of {bare_ns / 1e6:.1f} ms: {middle * bare_ns / 1e3:+.0f} us, "
        f"{middle:+.2%}, 95 % {low:+.2%} to {high:+.2%} (bar {BAR_SHARE:.0%})"
    )
    return p99_us <= BAR_US and high <= BAR_SHARE


# agreement


def agreement_rank(rounds: int = 2000) -> None:
    """Time all-reduces of several sizes in turn."""
    torch.set_num_threads(1)
    place = peers.Place.from_environ(os.environ)
    peers.join(place, torch.device("cpu"), 60)
    now = 6 + len(PHASES)
    sizes = {"3 numbers": 3, "now, 2 ranks": now + 2, "64 ranks": now + 64, "600 ranks": now + 600}
    told: dict[str, list[int]] = {name: [] for name in sizes}
    for _ in range(rounds):
        for name, size in sizes.items():
            begun_ns = time.perf_counter_ns()
            said = torch.tensor([1] * size, dtype=torch.int64)
            dist.all_reduce(said)
            said.tolist()
            told[name].append(time.perf_counter_ns() - begun_ns)
    if place.rank == 0:
        medians = {name: statistics.median(times) / 1e3 for name, times in told.items()}
        Path(os.environ["AMDAHL_TELEMETRY_DIR"], "agreement.json").write_text(json.dumps(medians))
    entry.leave(Exit.FINISHED)


def agreement() -> bool:
    """Print what the agreement takes by size."""
    out = Path(tempfile.mkdtemp(prefix="amdahl-ledger-"))
    spawn(["agreement"], out)
    medians = json.loads((out / "agreement.json").read_text())
    print("agreement, median: " + ", ".join(f"{name} {us:.0f} us" for name, us in medians.items()))
    return True


PARTS = {"delays": delays, "cost": cost, "agreement": agreement}


def main() -> int:
    """Print the parts asked for, by default all."""
    if sys.argv[1:2] == ["--rank"]:
        part, *rest = sys.argv[2:]
        if part == "delayed":
            delayed_rank(rest[0], Path(rest[1]), rest[2:])
        elif part == "agreement":
            agreement_rank()
        else:
            cost_rank(part, rest)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="delays, cost, agreement; by default all")
    asked = parser.parse_args().parts or list(PARTS)
    if set(asked) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    met = [PARTS[part]() for part in asked]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())

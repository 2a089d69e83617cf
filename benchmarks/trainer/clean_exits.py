"""Do runs of two processes end cleanly? `python benchmarks/trainer/clean_exits.py --runs 100`.

Each run is a training of a few steps on two ranks with gloo, under DDP, FSDP2, tensor parallelism and pipeline stages
in turn, and ends as every run ends. It counts what ended how: a run is clean if both ranks end with 0 and neither said
anything of a failure. Threads of gloo abort a process now and then, and freeing a process group hangs now and then, in
ways that a single run does not show.

Ranks are forked from a process that has imported torch, so that a run takes a second instead of ten. All else about
them is real: they make their own threads, meet, train, save and leave by themselves.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch._dynamo  # noqa: F401 (the first optimizer of a process imports it, which takes a second or two)

from amdahl_trainer import entry, launch

#: A step takes a few milliseconds: the run is its beginning and its end.
TRAINING = {
    "run.torch_threads": 1,
    "run.max_steps": 3,
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.n_kv_heads": 2,
    "model.d_ff": 48,
    "model.tie_embeddings": "false",
    "data.max_documents": 150,
    "data.seq_len": 64,
    "batch.global_sequences": 8,
}

LAYOUTS: dict[str, dict[str, object]] = {
    "ddp": {},
    "fsdp2": {"parallel.dp_mode": "fsdp2"},
    "tp": {"parallel.tp": 2},
    "pp": {"parallel.pp": 2, "batch.micro_batch": 2},
}

#: A run that takes longer hangs, seconds.
LONGEST_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them one after the other; 0 if all ended cleanly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args(arguments)
    ends: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        for number in range(options.runs):
            layout = list(LAYOUTS)[number % len(LAYOUTS)]
            how, said = run(Path(home), number, layout)
            ends[how] += 1
            if how != "clean":
                print(f"run {number} ({layout}): {how}\n{said}", flush=True)
    for how, count in ends.most_common():
        print(f"{count:>5}  {how}")
    print(f"{options.runs} runs of two processes in {time.monotonic() - begun:.0f} s")
    return 0 if set(ends) == {"clean"} else 1


def run(home: Path, number: int, layout: str) -> tuple[str, str]:
    """How one run ended, and what it said."""
    keys = TRAINING | LAYOUTS[layout] | {"run.out_dir": home / str(number), "data.cache_dir": home / "cache"}
    words = [f"--{key}={value}" for key, value in keys.items()]
    log = home / f"{number}.log"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port())}
    pids = [_fork(words, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log) for rank in range(2)]
    codes = _wait(pids)
    said = log.read_text()
    if codes == [0, 0] and "finished at step" in said and "Traceback" not in said and "lost at the end" not in said:
        return "clean", said
    return ("hangs" if None in codes else f"exit codes {codes[0]} and {codes[1]}"), said


def _fork(words: Sequence[str], told: Mapping[str, str], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
    try:
        os.environ.clear()
        os.environ.update({**kept, **told})
        entry.run(words, os.environ)
    finally:
        os._exit(1)


def _wait(pids: Sequence[int]) -> list[int | None]:
    """Exit codes, -n for signal n; None for one that hangs, which is killed."""
    deadline = time.monotonic() + LONGEST_S
    codes: dict[int, int | None] = {}
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = None
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    sys.exit(main())

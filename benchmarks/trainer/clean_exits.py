"""Do runs of two processes end cleanly? `python benchmarks/trainer/clean_exits.py --runs 100`.

Each run is a training of a few steps on two ranks with gloo, under DDP, FSDP2, tensor parallelism and pipeline stages
in turn, started by the launcher and left as every run is left. It counts what ended how: a run is clean if both ranks
and the launcher end with 0, and nothing of the ranks is left. Threads of gloo abort a process now and then, and freeing
a process group hangs now and then, in ways that a single run does not show.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

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
    "limits.comm_timeout_s": 120,
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
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
    words = [sys.executable, "-m", "amdahl_trainer.launch", "--nproc", "2", "--"]
    process = subprocess.Popen(
        [*words, *(f"--{key}={value}" for key, value in keys.items())],
        env=environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate()
        return "hangs", said
    if process.returncode == 0 and "finished at step" in said and "Traceback" not in said:
        return "clean", said
    return f"exit code {process.returncode}", said


if __name__ == "__main__":
    sys.exit(main())

"""Writes the data of the jobs, once, before any of them runs: the same bytes every time. No argument: all of it."""

import subprocess
import sys

from common import write_records
from many_workers import write_shards


def write_rows() -> None:
    """Rows of Python's documentation for the scenarios of our trainer, by its own first start."""
    command = [sys.executable, "-m", "amdahl_trainer", "--config", "passes.yml", "--run.max_steps", "1"]
    for length in ("64", "256"):
        own = ["--data.seq_len", length, "--run.out_dir", f"rows/first-{length}"]
        subprocess.run([*command, *own], check=True)


WRITERS = {"records": write_records, "shards": write_shards, "rows": write_rows}

if __name__ == "__main__":
    for name in sys.argv[1:] or WRITERS:
        WRITERS[name]()

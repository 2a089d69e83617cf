"""Does a run survive kill -9 during a save? `python benchmarks/trainer/kill_during_save.py --runs 50`.

One long training in many lives: each begins where the last one's checkpoints let it, saves after every step, and is
killed with all its processes at a random instant of a save, drawn from a seed that is printed. Afterwards the same
training runs once without a kill. Every life must begin at the newest step that is on the disk, and no earlier than
the last one that the killed life had reported durable; every loss of every life must be that of the uninterrupted
run on as many ranks, to the bit.

What it cannot show: that the disk keeps what it was made to flush when the power fails. SIGKILL leaves the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdahl_trainer.ckpt_folder import DRAFT, PREFIX

MODES = ("sync", "thread", "process")

#: About 11 MB of state, so that a save is a good part of a step.
TRAINING = {
    "run.torch_threads": 1,
    "run.max_steps": 1_000_000,
    "optim.decay_steps": 1_000,
    "data.max_documents": 300,
    "data.seq_len": 64,
    "batch.global_sequences": 4,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 2,
    "metrics.log_every": 1_000,
}

#: Longest time to a life's first durable save, seconds: two imports of torch, a process group, a save.
START_S = 180.0

#: Saves over which the instant of the kill is spread, after the first one that is durable.
SPREAD = 3


@dataclass(frozen=True)
class Life:
    """What one process, or several ranks, did from start to kill."""

    mode: str
    resumed: int
    durable: int
    newest: int
    losses: tuple[float, ...]
    instant: str

    @property
    def wrong(self) -> str | None:
        """What the kill broke."""
        if self.newest < self.durable:
            return f"step {self.durable} was said to be durable, {self.newest} is the newest on the disk"
        return None


class Training:
    """The training that is killed again and again."""

    def __init__(self, home: Path, ranks: int) -> None:
        self.home, self.ranks = home, ranks

    def start(self, name: str, mode: str, changes: Mapping[str, object]) -> subprocess.Popen[bytes]:
        """All ranks in one process group."""
        keys = TRAINING | {
            "run.out_dir": self.home / "out",
            "data.cache_dir": self.home / "cache",
            "checkpoint.async_save": str(mode != "sync").lower(),
            "checkpoint.async_mode": "process" if mode == "process" else "thread",
            **changes,
        }
        records = self.home / name
        records.mkdir()
        told = {"AMDAHL_TELEMETRY_DIR": str(records), "OMP_NUM_THREADS": "1"}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")} | told
        module = ["-m", "amdahl_trainer.launch", "--nproc", str(self.ranks), "--"]
        command = [sys.executable, *module, *(f"--{key}={value}" for key, value in keys.items())]
        with (records / "log").open("wb") as log:
            return subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def records(self, name: str) -> list[dict[str, Any]]:
        """What rank 0 wrote; its last line may be cut."""
        path = self.home / name / "rank-0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def log(self, name: str) -> str:
        """What it printed."""
        return (self.home / name / "log").read_text()

    def live(self, name: str, mode: str, chance: random.Random) -> Life:
        """Start, kill during a save, and look at what is left."""
        before = self.newest()
        process = self.start(name, mode, {})
        try:
            saves = self._first_durable(name, process)
            period_s = (saves[-1]["t"] - saves[0]["t"]) / 1e9 if len(saves) > 1 else 0.2
            time.sleep(chance.uniform(0, SPREAD * max(0.05, period_s)))
        finally:
            kill_group(process)
        instant = self.instant()
        records = self.records(name)
        found = re.search(r"resumed .*: step (\d+),", self.log(name))
        resumed = int(found[1]) if found else 0
        if resumed != before:
            raise SystemExit(f"{name} began at step {resumed}, step {before} was on the disk:\n{self.log(name)}")
        return Life(
            mode=mode,
            resumed=resumed,
            durable=max((one["step"] for one in records if one.get("durable")), default=resumed),
            newest=self.newest(),
            losses=tuple(one["loss"] for one in records if one["k"] == "step"),
            instant=instant,
        )

    def _first_durable(self, name: str, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            saves = [one for one in self.records(name) if one["k"] == "save"]
            if sum(bool(one.get("durable")) for one in saves) >= 2:
                return [one for one in saves if one.get("durable")]
            if process.poll() is not None:
                raise SystemExit(f"{name} ended by itself with {process.returncode}:\n{self.log(name)}")
            time.sleep(0.005)
        raise SystemExit(f"{name} saved nothing in {START_S:g} s:\n{self.log(name)}")

    @property
    def checkpoints(self) -> Path:
        """Where they are."""
        return self.home / "out" / "checkpoints"

    def newest(self) -> int:
        """The newest step on the disk, by the names alone; 0 where there is none."""
        found = [
            int(re.sub(r"\..*", "", path.name.removeprefix(PREFIX))) for path in self.checkpoints.glob(f"{PREFIX}*")
        ]
        return max(found, default=0)

    def instant(self) -> str:
        """How far the save had come that the kill met, by what it left."""
        for draft in self.checkpoints.glob(f"{DRAFT}*"):
            files = {path.name for path in draft.iterdir()}
            if int(draft.name.removeprefix(DRAFT + PREFIX)[:8]) <= self.newest() - 1:
                return "an old one half deleted"
            if "meta.json" in files:
                return "all files there, no rename"
            if ".metadata" in files or ".metadata.tmp" in files:
                return "shards and metadata"
            return "shards" if files else "an empty draft"
        return "between two saves"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """All ranks, launcher, loaders and writers at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def compare(lives: Sequence[Life], reference: Sequence[float]) -> Iterator[str]:
    """What is wrong with the lives, each in a line."""
    for number, life in enumerate(lives, start=1):
        if life.wrong is not None:
            yield f"life {number}: {life.wrong}"
        expected = reference[life.resumed : life.resumed + len(life.losses)]
        worst = max((abs(a - b) for a, b in zip(life.losses, expected, strict=True)), default=0.0)
        if worst > 0:
            yield f"life {number}: a loss differs by {worst:.2g} from the uninterrupted run"


def table(lives: Sequence[Life]) -> str:
    """Instants by mode."""
    instants = sorted({life.instant for life in lives})
    modes = [mode for mode in MODES if any(life.mode == mode for life in lives)]
    counts = Counter((life.instant, life.mode) for life in lives)
    rows = [f"| the kill met | {' | '.join(modes)} |", f"|---|{'---|' * len(modes)}"]
    rows += [f"| {instant} | {' | '.join(str(counts[instant, mode]) for mode in modes)} |" for instant in instants]
    rows.append(f"| lives | {' | '.join(str(sum(life.mode == mode for life in lives)) for mode in modes)} |")
    lost = [
        max((life.resumed + len(life.losses) - life.newest for life in lives if life.mode == m), default=0)
        for m in modes
    ]
    rows.append(f"| most steps lost in one kill | {' | '.join(map(str, lost))} |")
    return "\n".join(rows)


def main() -> int:
    """Live, die, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="kills in all, dealt to the modes in turn")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="leave the files for a look")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a life that is under way is ended with this process
    modes = options.modes.split(",")
    home = Path(tempfile.mkdtemp(prefix="amdahl-kill-"))
    print(
        f"seed {options.seed}, {options.runs} kills, modes {', '.join(modes)}, ranks {options.ranks}, files in {home}"
    )
    chance = random.Random(options.seed)
    training = Training(home, options.ranks)
    lives = []
    for number in range(options.runs):
        life = training.live(f"life-{number + 1}", modes[number % len(modes)], chance)
        lives.append(life)
        steps = f"steps {life.resumed} to {life.resumed + len(life.losses)}"
        print(f"{number + 1:>4} {life.mode:<8} {steps:<20} durable {life.newest:<6} {life.instant}", flush=True)
    last = max(life.resumed + len(life.losses) for life in lives)
    end = {"run.max_steps": last, "run.out_dir": home / "whole-out", "checkpoint.every_steps": 0}
    if training.start("whole", "sync", end).wait() != 0:
        raise SystemExit(training.log("whole"))
    reference = [one["loss"] for one in training.records("whole") if one["k"] == "step"]
    wrong = list(compare(lives, reference))
    print(f"\n{table(lives)}\n")
    print("\n".join(wrong) or f"all {len(lives)} lives went on from the last durable step; {last} steps, curve equal")
    if not options.keep:
        shutil.rmtree(home)
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())

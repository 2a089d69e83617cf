"""A process that speaks the telemetry contract and then does what it is told: `fake_trainer.py DIR BEHAVIOUR`.

Real in everything the supervisor sees (records, memory, children, signals, output); only the training is missing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from amdahl_probe.emit import Batches, Recorder, StepRecord
from amdahl_probe.spans import Ledger

HOME, BEHAVIOUR = Path(sys.argv[1]), sys.argv[2]
STEP_S = 0.005


class Trainer:
    def __init__(self, rank=0, world=1, live=False, crawl=1):
        self.recorder = Recorder(os.environ["AMDAHL_TELEMETRY_DIR"], rank, world)
        self.recorder.start("cpu", live=live, by="trainer")
        self.ledger = Ledger()
        self.crawl, self.done, self.seq = crawl, 0, 0
        self.recorder.startup(5)

    def step(self, count=1):
        for _ in range(count):
            with self.ledger.span("input"):
                time.sleep(STEP_S / 2)
            self.ledger.rest("compute")
            time.sleep(STEP_S / 2)
            phases = {phase: ns // self.crawl for phase, ns in self.ledger.take().items()}
            end_ns = self.ledger.mark_ns // self.crawl
            wall_ns, before = sum(phases.values()), getattr(self, "end_ns", None)
            if before is not None:  # rounding must not make the clock jump
                phases["compute"] += end_ns - before - wall_ns
            self.end_ns = end_ns
            digest = f"{self.done:08x}"
            self.recorder.step(
                StepRecord(
                    self.done,
                    end_ns,
                    phases,
                    8,
                    64,
                    digest,
                    "0000abcd",
                    digest,
                    1 / (self.done + 1),
                    self.seq,
                    Batches(1, 2_500_000, 6_250_000),
                )
            )
            self.done += 1

    def train(self):
        while True:
            self.step()

    def follow_knobs(self):
        """Switch live, as our trainer does."""
        while True:
            told = json.loads(Path(os.environ["AMDAHL_KNOBS_FILE"]).read_text())
            if told["seq"] != self.seq:
                self.seq = told["seq"]
                (HOME / f"seen-{self.seq}").write_text(json.dumps(told))
                self.recorder.knob(self.seq, told["knobs"])
            if told["knobs"].get("dataloaderWorkers") == 9:
                sys.exit(9)
            self.step()


def rest():
    time.sleep(600)


def burn():
    while True:
        sum(range(1000))


def leave_daemon():
    """Run in a child of its own session whose parent is gone: a daemon that does not listen to SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            draft = HOME / "daemon.draft"
            draft.write_text(str(os.getpid()))
            draft.rename(HOME / "daemon")
            rest()
        os._exit(0)
    os.wait()


def train():
    Trainer().train()


def pair():
    rank = 0 if os.fork() else 1
    Trainer(rank, world=2).train()


def crash(words="boom"):
    Trainer().step(3)
    raise RuntimeError(words)


def fall_silent(then):
    Trainer().step(3)
    then()


def disable():
    Trainer().recorder.disabled("a reason")
    burn()


def grow():
    Trainer().step(3)
    held = [os.urandom(1) * (32 << 20) for _ in range(40)]
    time.sleep(600 + len(held))


def garble():
    Trainer().step(3)
    with Path(os.environ["AMDAHL_TELEMETRY_DIR"], "rank-0.jsonl").open("a") as file:
        file.write('{"k":"step","w":NaN}\n')
    rest()


def chatter():
    print("first line\n" + "x" * 3_000_000 + "\nlast line", flush=True)
    train()


def write_scratch():
    (HOME / "scratch" / "checkpoint").mkdir(parents=True)
    (HOME / "scratch" / "checkpoint" / "weights").write_text(os.environ["AMDAHL_DATA_OFFSET"])
    train()


BEHAVIOURS = {
    "": train,
    "silent": rest,
    "idle": lambda: (Trainer(), rest()),
    "busy": lambda: (Trainer(), burn()),
    "pair": pair,
    "lonely": lambda: Trainer(world=2).train(),
    "crawl": lambda: Trainer(crawl=10).train(),
    "live": lambda: Trainer(live=True).follow_knobs(),
    "daemon": lambda: (leave_daemon(), train()),
    "stubborn": lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), train()),
    "short": lambda: Trainer().step(3),
    "crash": crash,
    "cuda_oom": lambda: crash("torch.OutOfMemoryError: CUDA out of memory"),
    "hang": lambda: fall_silent(rest),
    "vanish": lambda: fall_silent(burn),
    "disable": disable,
    "oom": grow,
    "nan": garble,
    "chatty": chatter,
    "scratch": write_scratch,
}

(HOME / "pid").write_text(str(os.getpid()))
BEHAVIOURS[BEHAVIOUR]()

"""Run in place of the trainer: on the rank TROUBLE_RANK something goes wrong, as TROUBLE says; once under torchrun."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from amdahl_trainer import entry, replica
from amdahl_trainer.data import loader
from amdahl_trainer.errors import DataError


def hang():
    while True:
        time.sleep(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def lose_data():
    raise DataError("there are no rows")


def crash():
    raise ValueError("what is this?")


def lack_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")


def limit_memory():
    """The address space ends 256 MiB above what is in use: the CPU's own allocator refuses what does not fit."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))


#: What goes wrong, in which call of whom, and after how many good ones.
TROUBLES = {
    "hang": (hang, loader.Loader, "next", 3),
    "die": (die, loader.Loader, "next", 3),
    "data": (lose_data, loader.Loader, "next", 3),
    "crash": (crash, replica.Whole, "accumulate", 3),
    "lack": (lack_memory, replica.Whole, "accumulate", 3),
    "limit": (limit_memory, replica.Whole, "accumulate", 0),
}


def install(trouble, owner, name, good):
    calls = 0
    whole = getattr(owner, name)

    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls == good + 1:
            trouble()
        return whole(*arguments)

    setattr(owner, name, call)


if __name__ == "__main__":
    is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if is_first_start and os.environ.get("RANK", "0") == os.environ["TROUBLE_RANK"]:
        install(*TROUBLES[os.environ["TROUBLE"]])
    entry.run(sys.argv[1:], os.environ)

"""What does a process do before and after training? Arguments in, exit code out, and a clean end in every case."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from amdahl_probe.emit import process_start_ns
from amdahl_trainer import config as configs
from amdahl_trainer.errors import Exit, TrainerError
from amdahl_trainer.train import train


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Train as the arguments say, then leave the process."""
    begun_ns = process_start_ns()
    try:
        path, overrides = split_arguments(arguments)
        code = train(configs.load(path, environ, overrides), environ, begun_ns)
    except TrainerError as error:
        code = _fail(error.code, str(error), environ)
    except BaseException as error:  # noqa: BLE001 (the end of the process: every failure gets a code and its traceback)
        traceback.print_exc()
        code = _fail(code_of(error), f"{type(error).__name__}: {error}", environ)
    leave(code)


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """`--config FILE` or `--config=FILE`, and the rest."""
    rest = list(arguments)
    for at, argument in enumerate(rest):
        if argument == "--config" and at + 1 < len(rest):
            return rest[at + 1], rest[:at] + rest[at + 2 :]
        if argument.startswith("--config="):
            return argument.removeprefix("--config="), rest[:at] + rest[at + 1 :]
    return None, rest


def code_of(error: BaseException) -> Exit:
    """The exit code of an unexpected failure. The CPU's allocator raises a plain RuntimeError."""
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return Exit.OUT_OF_MEMORY if is_memory else Exit.CRASHED


def leave(code: Exit) -> NoReturn:
    """End the process with everything flushed.

    Ranks that ended well part together; without that, and in the interpreter's own farewell, threads of gloo abort
    about one process in seven (pytorch#179291).
    """
    gc.collect()  # gradient buckets and the model hold references to the process group
    if dist.is_initialized() and code in (Exit.FINISHED, Exit.YIELDED):
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(code: Exit, message: str, environ: Mapping[str, str]) -> Exit:
    rank = environ.get("RANK")
    where = "amdahl_trainer" if rank is None else f"amdahl_trainer: rank {rank}"
    print(f"{where}: {message} (exit code {int(code)}, {code.name.lower()})", file=sys.stderr)
    return code

"""What does a process do before and after training? Arguments in, exit code out, and a clean end in every case."""

from __future__ import annotations

import contextlib
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
        code = error.code
        if not error.is_common or environ.get("LOCAL_RANK", "0") == "0":
            _say(code, str(error), environ)
    except BaseException as error:  # noqa: BLE001 (the end of the process: every failure gets a code and its traceback)
        traceback.print_exc()
        code = Exit.CRASHED
        _say(code, f"{type(error).__name__}: {error}", environ)
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


def leave(code: Exit) -> NoReturn:
    """End the process with everything flushed.

    Ranks that ended well part together: a connection that closes while another rank still waits would fail it. The
    process group is left to the kernel. In the interpreter's own farewell threads of gloo abort about one process in
    seven (pytorch#179291), and freeing the group first hangs now and then while its thread drops the last work
    (torch 2.13, seen within 150 rounds).
    """
    if dist.is_initialized() and code in (Exit.FINISHED, Exit.YIELDED):
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:  # this rank has done its work, and what there was to save is durable
            print(f"amdahl_trainer: another rank was lost at the end: {error}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code)


def _say(code: Exit, message: str, environ: Mapping[str, str]) -> None:
    rank = environ.get("RANK")
    where = "amdahl_trainer" if rank is None else f"amdahl_trainer: rank {rank}"
    with contextlib.suppress(OSError):
        print(f"{where}: {message} (exit code {int(code)}, {code.name.lower()})", file=sys.stderr)

"""Compiling: how do a block's many small operations become few? On torch.compile, a block at a time, and the loss.

Blocks share their code, so the first one compiled serves all of them: a deep model compiles no longer than a shallow
one. Everything else stays as it was. Hooks of data parallelism surround the compiled code, activations are checkpointed
within it, and the attention of packed rows that no graph can hold (a call for each document, on a CPU) leaves it. A
loss whose logits are split over ranks is left alone.

Fused operations round otherwise than single ones, and change nothing else.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from amdahl_probe.spans import Ledger
from amdahl_trainer import seams
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.loss import Criterion
from amdahl_trainer.model import Llama


def check(device: torch.device) -> None:
    """Torch compiles with the machine's own compiler, against Python's headers. Raises ConfigError without."""
    # torch._inductor takes a second to import, which only runs that compile pay.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = get_cpp_compiler() if device.type == "cpu" else os.environ.get("CC") or _c_compiler()
    except InvalidCxxCompiler:
        found = None
    if found is None:
        lack = f"there is no {'C++' if device.type == 'cpu' else 'C'} compiler on this machine: install g++ (gcc)"
    elif not Path(sysconfig.get_path("include"), "Python.h").exists():
        lack = "Python's headers are not on this machine: install python3-dev"
    else:
        return
    raise ConfigError(f"run.compile is blocks, but {lack}, or set run.compile to none")


def _c_compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("clang")


def compile_blocks(model: Llama) -> None:
    """Let each block's forward pass, and with it the backward pass, be compiled when it is first called."""
    # DDP would cut graphs at the edges of its messages. Each block is a graph of its own: messages leave in between.
    torch._dynamo.config.optimize_ddp = False  # noqa: SLF001 (torch has no public name for it)
    for block in model.blocks.values():
        block.forward = torch.compile(block.forward)


def fuse(criterion: Criterion) -> seams.Criterion:
    """The same, compiled when it is first called: logits are turned to float32 as they are read, not before."""
    return torch.compile(criterion.__call__)


@contextmanager
def as_warmup(ledger: Ledger) -> Iterator[None]:
    """Count the time in which torch compiles as `warmup`, whichever phase asked for it.

    A backward pass is compiled when it is first run, on a GPU in a thread of autograd's. The training thread waits for
    it meanwhile, so that thread may count for it.
    """
    from torch._dynamo.callback import callback_handler

    owner, depths = ledger.owner, list[int]()

    def begin(_: object) -> None:
        ledger.adopt()
        depths.append(ledger.push("warmup"))

    def end(_: object) -> None:
        ledger.pop(depths.pop())
        ledger.owner = owner

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)

"""The memory is at its end: how much was asked for, how much is held, and which setting would help?

The remedies are not a list of hints: each is tried on the memory model (`memory`), and told with what it would save.
"""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import torch

from amdahl_trainer import fit, memory, parallel
from amdahl_trainer.config import Config
from amdahl_trainer.errors import ConfigError, OutOfMemoryError
from amdahl_trainer.memory import Needs
from amdahl_trainer.place import Place

#: Remedies that a message names at most.
NAMED = 3

_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

#: As the CPU's allocator and the GPU's say it.
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB)")

#: As everything says it that has no exception of its own for it: the CPU's allocator, a GPU's driver (also where
#: another process holds its memory), the libraries of products and the one of collectives.
_FULL = re.compile(
    r"can't allocate memory|(CUDA|HIP)( driver)? error: out of memory|ALLOC(ATION)?_FAILED|"
    r"(Cuda|CUDA|HIP) failure( \d+)? 'out of memory'|Failed to (CUDA|HIP) calloc"
)


def explain(error: BaseException, config: Config, place: Place, device: torch.device) -> OutOfMemoryError | None:
    """What to tell the person whose run has no more memory; None if that is not what the error tells of."""
    if not is_memory(error):
        return None
    asked = _asked_bytes(str(error))
    more = f"{_size(asked)} more were asked for" if asked is not None else "more was asked for"
    text = f"out of memory on rank {place.rank} ({device}): {more}, {_held(device)}"
    try:
        text += _predict(config, place, device)
    except ConfigError:
        text += "; a smaller batch.micro_batch needs less"
    return OutOfMemoryError(text)


def is_memory(error: BaseException) -> bool:
    """Whether an allocation failed. Most allocators raise some RuntimeError, a fork an OSError."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None)
    )


def remedies(config: Config, place: Place, on_gpu: bool) -> list[tuple[str, int]]:
    """Settings that would need less, each alone, with the bytes a rank would need; the best first."""
    now = _needs(config, place, on_gpu).total
    found = []
    for text, changed in _changes(config, place):
        try:
            total = _needs(changed, place, on_gpu).total
        except ConfigError:
            continue  # does not fit the other settings
        if total < now:
            found.append((text, total))
    return sorted(found, key=lambda one: one[1])


def _predict(config: Config, place: Place, device: torch.device) -> str:
    on_gpu = device.type != "cpu"
    needs = _needs(config, place, on_gpu)
    here = [part.name for part in fields(needs) if part.name != "host"]
    most = max(here, key=lambda part: int(getattr(needs, part)))
    text = f"; by the memory model training needs {_size(needs.total)} here, {most} {_size(getattr(needs, most))} of it"
    cures = [f"{name} ({_size(total)})" for name, total in remedies(config, place, on_gpu)[:NAMED]]
    return text + (f"; less would do with {', or '.join(cures)}" if cures else "; no setting needs less")


def _needs(config: Config, place: Place, on_gpu: bool) -> Needs:
    degrees = parallel.fit(config, place)
    return memory.estimate(config, degrees, degrees.seat(place.rank).pp, on_gpu=on_gpu)


def _changes(config: Config, place: Place) -> Iterator[tuple[str, Config]]:
    """Each setting that saves memory and changes nothing of what is trained, one step further."""
    degrees = parallel.fit(config, place)
    share = config.batch.global_sequences // degrees.dp
    rows = fit.check_batch(config.batch, degrees.dp)
    for fewer in [count for count in range(rows - 1, 0, -1) if share % count == 0][:2]:
        yield f"batch.micro_batch={fewer}", replace(config, batch=replace(config.batch, micro_batch=fewer))
    for mode in ("selective", "block"):
        kept = replace(config.memory, activation_checkpoint=mode)
        if config.memory.activation_checkpoint != "block":
            yield f"memory.activation_checkpoint={mode}", replace(config, memory=kept)
    chunks = replace(config.memory, loss_chunks=config.memory.loss_chunks * 8)
    yield f"memory.loss_chunks={chunks.loss_chunks}", replace(config, memory=chunks)
    if config.parallel.dp_mode != "fsdp2" and degrees.dp > 1:
        yield "parallel.dp_mode=fsdp2", replace(config, parallel=replace(config.parallel, dp_mode="fsdp2"))
    if degrees.is_sharded(config.parallel.dp_mode) and config.parallel.dp_mode != "ddp":
        yield "memory.cpu_offload=true", replace(config, memory=replace(config.memory, cpu_offload=True))


def _asked_bytes(text: str) -> int | None:
    found = _ASKED.search(text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _held(device: torch.device) -> str:
    if device.type == "cuda":
        try:
            free, whole = torch.cuda.mem_get_info(device)
        except RuntimeError:
            return "and the GPU has none left to say how much is held"
        mine = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return f"{_size(mine[0])} are held ({_size(mine[1])} reserved), {_size(free)} of {_size(whole)} are free"
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    text = f"{_size(_kib(status['VmRSS']))} are held"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        text += f", {_size(_kib(status['VmSize']))} of {_size(soft)} of address space"
    return text


def _kib(text: str) -> int:
    """Bytes, from `  1234 kB`."""
    return int(text.split()[0]) << 10


def _size(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MiB"

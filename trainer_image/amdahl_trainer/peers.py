"""Who are the others, and what do ranks tell each other each step?

`Group` is a real process group, `Alone` a single process; the loop does not know which it has. Control messages go
through gloo on the CPU, so that reading them never waits for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from amdahl_probe.spans import PHASES
from amdahl_trainer.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """Where this process stands among all, from the environment that torchrun and our launcher set."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Place:
        """Parse RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; absent ones say a single process."""
        try:
            rank, world = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
            local = int(environ.get("LOCAL_RANK", str(rank)))
            return cls(rank, world, local, int(environ.get("LOCAL_WORLD_SIZE", str(world))))
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error


class Told(NamedTuple):
    """What a rank tells the others of its work, beside what they must agree on. Numbers are summed over ranks.

    Attributes:
        squares: of the lengths of the step's documents, in tokens, summed: what attention within them costs.
        spent: nanoseconds by phase, in the order of `PHASES`, of the laps that ended since the rank last told.
    """

    squares: int = 0
    spent: Sequence[int] = (0,) * len(PHASES)

    @property
    def busy_ns(self) -> int:
        """Time that the others may have waited for: all but start-up and waiting for them."""
        return sum(ns for phase, ns in zip(PHASES, self.spent, strict=True) if phase not in ("startup", "comm"))


#: A rank that has nothing to tell.
NOTHING = Told()


class Agreement(NamedTuple):
    """What the ranks told each other before a step; `busy_ns` is each rank's own."""

    valid: int
    stop: bool
    news: bool
    told: Told = NOTHING
    busy_ns: Sequence[int] = (0,)


class Peers(Protocol):
    """The other ranks."""

    def agree(self, valid: int, stop: bool, news: bool, told: Told = NOTHING) -> Agreement:
        """Sum of valid tokens; whether any rank must stop; whether rank 0 has news to broadcast; what all told."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks, on the tensor's device."""

    def broadcast(self, text: str | None) -> str | None:
        """Rank 0's text."""

    def barrier(self) -> None:
        """Wait for all."""


class Alone:
    """A single process."""

    def agree(self, valid: int, stop: bool, news: bool, told: Told = NOTHING) -> Agreement:
        """What it says itself."""
        return Agreement(valid, stop, news, told, (told.busy_ns,))

    def total(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def broadcast(self, text: str | None) -> str | None:
        """The text."""
        return text

    def barrier(self) -> None:
        """Nobody to wait for."""


class Group:
    """The default process group."""

    def __init__(self, device: torch.device, timeout_s: int) -> None:
        """Join. Raises ConfigError if the rendezvous cannot be reached."""
        if not os.environ.get("MASTER_ADDR"):
            raise ConfigError("WORLD_SIZE is set but MASTER_ADDR is not; start with amdahl_trainer.launch or torchrun")
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))

    def agree(self, valid: int, stop: bool, news: bool, told: Told = NOTHING) -> Agreement:
        """One small all-reduce. A rank's own number has a place for each rank, and zeros in the others'."""
        busy_ns = [0] * dist.get_world_size()
        busy_ns[dist.get_rank()] = told.busy_ns
        said = torch.tensor([valid, stop, news, told.squares, *told.spent, *busy_ns], dtype=torch.int64)
        dist.all_reduce(said)
        tokens, stops, tells, squares, *rest = said.tolist()
        spent, busy_ns = rest[: len(PHASES)], rest[len(PHASES) :]
        return Agreement(tokens, stops > 0, tells > 0, Told(squares, spent), busy_ns)

    def total(self, value: Tensor) -> Tensor:
        """One all-reduce, in place."""
        dist.all_reduce(value)
        return value

    def broadcast(self, text: str | None) -> str | None:
        """Any text, None included."""
        box = [text]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """An all-reduce on the CPU: `dist.barrier` would use the GPU where there is one."""
        dist.all_reduce(torch.zeros(1))


def join(place: Place, device: torch.device, timeout_s: int) -> Peers:
    """The peers of this process."""
    return Group(device, timeout_s) if place.world > 1 else Alone()

"""Who are the others, and what do ranks tell each other each step?

`Group` is a real process group, `Alone` a single process; the loop does not know which it has. Control messages go
through gloo on the CPU, so that reading them never waits for a GPU.

A GPU's collectives are issued ahead of the control message that follows them, and NCCL ends the whole process when one
of them is late, before anybody can ask which rank was the cause. So control messages have a group of their own there,
with the time limit that was asked for, and all others have as much more as it takes to ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from amdahl_probe.spans import PHASES
from amdahl_trainer.blame import failure_of
from amdahl_trainer.errors import PeerError
from amdahl_trainer.heartbeat import Heartbeat, Spot
from amdahl_trainer.place import Meeting, Place

__all__ = ["NOTHING", "Agreement", "Alone", "Group", "Peers", "Place", "Spot", "Told", "join"]


T = TypeVar("T")

#: What groups are made of, by device.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

#: By how much a GPU's collectives may be issued ahead of the next control message, seconds: a step and its next batch.
AHEAD_S = 60.0

_STARTUP, _COMM = PHASES.index("startup"), PHASES.index("comm")


class Told(NamedTuple):
    """What a rank tells the others of its work, beside what they must agree on. Numbers are summed over ranks.

    Attributes:
        squares: of the lengths of the step's documents, in tokens, summed: what attention within them costs.
        spent: nanoseconds by phase, in the order of `PHASES`, of the laps that ended since the rank last told.
        bad: samples left out that the rank has not told of.
        launch_ns: of `compute` in `spent`, what was done at Python's pace.
        due: whether its clock says that a checkpoint is due after this step.
    """

    squares: int = 0
    spent: Sequence[int] = (0,) * len(PHASES)
    bad: int = 0
    launch_ns: int = 0
    due: int = 0

    @property
    def busy_ns(self) -> int:
        """Time that the others may have waited for: all but start-up and waiting for them."""
        return sum(self.spent) - self.spent[_STARTUP] - self.spent[_COMM]


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

    def gather(self, items: Sequence[T]) -> list[T]:
        """What all ranks have, rank by rank."""

    def barrier(self) -> None:
        """Wait for all."""

    def watch(self, spot: Callable[[], Spot]) -> None:
        """Let the others know where this rank is; another thread asks `spot` now and then."""

    def blame(self, error: BaseException) -> PeerError | None:
        """Which rank made a collective fail, if that is what the error tells of."""

    def part(self, code: int) -> None:
        """Tell the others that this rank ends by its own fault."""


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

    def gather(self, items: Sequence[T]) -> list[T]:
        """What it has itself."""
        return list(items)

    def barrier(self) -> None:
        """Nobody to wait for."""

    def watch(self, spot: Callable[[], Spot]) -> None:
        """Nobody asks."""

    def blame(self, error: BaseException) -> PeerError | None:  # noqa: ARG002 (the protocol's; nobody to blame)
        """Nobody."""
        return None

    def part(self, code: int) -> None:
        """Nobody to tell."""


class Group:
    """The default process group, and on GPUs another one for control messages."""

    def __init__(self, place: Place, device: torch.device, timeout_s: int) -> None:
        """Join.

        Raises:
            ConfigError: the environment does not say where ranks meet, or that port is taken.
            PeerError: a rank did not come.
        """
        self._heartbeat = Heartbeat(Meeting.from_environ(os.environ), place, timeout_s)
        is_ahead, limit = device.type != "cpu", timedelta(seconds=timeout_s)
        others_limit = limit + timedelta(seconds=AHEAD_S + self._heartbeat.longest_s) if is_ahead else limit
        _limit_waits(others_limit)
        try:
            self._heartbeat.meet()
            dist.init_process_group(
                BACKENDS[device.type],
                store=self._heartbeat.store,
                rank=place.rank,
                world_size=place.world,
                timeout=others_limit,
            )
            self._control = dist.new_group(backend="gloo", timeout=limit) if is_ahead else None
        except RuntimeError as error:
            raise self.blame(error) or error from error

    def agree(self, valid: int, stop: bool, news: bool, told: Told = NOTHING) -> Agreement:
        """One small all-reduce. A rank's own number has a place for each rank, and zeros in the others'."""
        busy_ns = [0] * dist.get_world_size()
        busy_ns[dist.get_rank()] = told.busy_ns
        own = (told.squares, told.bad, told.launch_ns, told.due)
        said = torch.tensor([valid, stop, news, *own, *told.spent, *busy_ns], dtype=torch.int64)
        dist.all_reduce(said, group=self._control)
        tokens, stops, tells, squares, bad, launch_ns, due, *rest = said.tolist()
        spent, busy_ns = rest[: len(PHASES)], rest[len(PHASES) :]
        return Agreement(tokens, stops > 0, tells > 0, Told(squares, spent, bad, launch_ns, due), busy_ns)

    def total(self, value: Tensor) -> Tensor:
        """One all-reduce, in place."""
        dist.all_reduce(value)
        return value

    def broadcast(self, text: str | None) -> str | None:
        """Any text, None included."""
        box = [text]
        dist.broadcast_object_list(box, src=0, group=self._control, device=torch.device("cpu"))
        return box[0]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Anything that can be pickled."""
        boxes: list[Sequence[T]] = [()] * dist.get_world_size()
        dist.all_gather_object(boxes, items, group=self._control)
        return [item for box in boxes for item in box]

    def barrier(self) -> None:
        """An all-reduce on the CPU: `dist.barrier` would use the GPU where there is one."""
        dist.all_reduce(torch.zeros(1), group=self._control)

    def watch(self, spot: Callable[[], Spot]) -> None:
        """See `Peers`."""
        self._heartbeat.watch(spot)

    def blame(self, error: BaseException) -> PeerError | None:
        """See `Peers`. It takes a few seconds to find out."""
        failure = failure_of(error)
        if failure is None:
            return None
        verdict = self._heartbeat.inquire(failure)
        return PeerError(verdict.code, verdict.text)

    def part(self, code: int) -> None:
        """See `Peers`."""
        self._heartbeat.end(code)


def join(place: Place, device: torch.device, timeout_s: int) -> Peers:
    """The peers of this process; nothing that they tell each other takes longer than `timeout_s`."""
    return Group(place, device, timeout_s) if place.world > 1 else Alone()


def _limit_waits(limit: timedelta) -> None:
    """Give every group that is made from now on, and is told none, the same time limit.

    A new group does not take over the limit of the default one but torch's own (gloo: 30 minutes), and a device mesh
    has no way to say another for the groups that it makes.
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, limit)

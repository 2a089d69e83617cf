"""How do ranks find one another, and which of them has not come?

Ranks meet in a store that rank 0 holds, or torchrun. A name that does not resolve yet, as that of a pod that is still
to be scheduled, or a port that nobody listens to yet, is waited for. Everything here waits in Python, a little at a
time, so that a signal is heard at once.

A store may outlive the processes: torchrun starts ranks anew beside what the dead ones wrote, and tells each machine
another count of its restarts. So rank 0 numbers each start in the store and tells the number to those who ask, and
ranks keep what they say under it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]  # public, though its module does not say so
    PrefixStore,
    Store,
    TCPStore,
)

from amdahl_trainer.errors import ConfigError, Exit, PeerError
from amdahl_trainer.place import Meeting, Place

#: Between two looks, seconds.
LOOK_S = 0.1

#: Longest wait for one connection, seconds.
CONNECT_S = 5.0

#: Starts of rank 0, those of other ranks, and the number of rank 0's that the n-th of these belongs to.
_STARTS, _ASKED, _TOLD = "amdahl/starts", "amdahl/asked", "amdahl/told/{}"


def find(meeting: Meeting, place: Place, timeout_s: int) -> TCPStore:
    """The store, once it is there. Rank 0 makes it where it is ours to make.

    Raises:
        ConfigError: the port is taken.
        PeerError: nobody held it in time.
    """
    is_holder = meeting.is_held_by_first and place.rank == 0
    _wait(meeting, timeout_s, is_holder)
    try:
        return connect(meeting, place.world, timeout_s, is_holder)
    except dist.DistNetworkError as error:
        if is_holder:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"MASTER_PORT {meeting.port} cannot be listened to ({reason}); set another") from error
        raise


def connect(meeting: Meeting, world: int, timeout_s: float, is_holder: bool = False) -> TCPStore:
    """A connection of its own to the store: one that waits for an answer makes no other wait."""
    return TCPStore(
        meeting.host,
        meeting.port,
        world,
        is_holder,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=is_holder,
    )


def is_there(meeting: Meeting) -> str | None:
    """None if something listens where ranks meet, else why not."""
    try:
        socket.create_connection((meeting.host, meeting.port), CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _wait(meeting: Meeting, timeout_s: int, is_holder: bool) -> None:
    """Until the name resolves, and for all but the holder until somebody listens. Raises PeerError."""
    deadline = time.monotonic() + timeout_s
    while (reason := _resolve(meeting) if is_holder else is_there(meeting)) is not None:
        if time.monotonic() > deadline:
            holder = "rank 0" if meeting.is_held_by_first else "torchrun"
            raise PeerError(
                Exit.PEER_HUNG,
                f"{holder} was not at {meeting} for {timeout_s} s (limits.comm_timeout_s): {reason}; "
                "are MASTER_ADDR and MASTER_PORT right, and have all ranks been started?",
            )
        time.sleep(LOOK_S)


def _resolve(meeting: Meeting) -> str | None:
    try:
        socket.getaddrinfo(meeting.host, meeting.port)
    except OSError as error:
        return error.strerror or str(error)
    return None


def enter(store: Store, place: Place, timeout_s: int) -> str:
    """The number of this start, by which it is told from those before it. Raises PeerError."""
    if place.rank == 0:
        return str(store.add(_STARTS, 1))
    told = _TOLD.format(store.add(_ASKED, 1))
    _until(lambda: store.check([told]), lambda: [0], place.world, timeout_s)
    return store.get(told).decode()


def within(store: Store, start: str) -> PrefixStore:
    """The part of a store that belongs to a start."""
    return PrefixStore(f"amdahl/start/{start}", store)


def await_all(store: Store, start: str, keys: Sequence[str], timeout_s: int, *, tells: bool) -> None:
    """Until each rank has set its key within the start, whose number those who ask are told meanwhile, by rank 0.

    Raises:
        PeerError: a rank has not come in time; it is named.
    """
    ours, told = within(store, start), 0

    def have_come() -> bool:
        nonlocal told
        asked = store.add(_ASKED, 0) if tells else 0
        for number in range(told + 1, asked + 1):  # of earlier starts too, where nobody listens any more
            store.set(_TOLD.format(number), start)
        told = asked
        return ours.check(list(keys))

    def missing() -> list[int]:
        return [rank for rank, key in enumerate(keys) if not ours.check([key])]

    _until(have_come, missing, len(keys), timeout_s)


def _until(is_done: Callable[[], bool], missing: Callable[[], list[int]], world: int, timeout_s: int) -> None:
    """Look now and then. Raises PeerError, with the ranks that are missing."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            ranks = missing()
            raise PeerError(
                Exit.PEER_HUNG,
                f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} of {world} did not come for "
                f"{timeout_s} s (limits.comm_timeout_s); have all ranks been started, and can they reach this machine?",
            )
        time.sleep(LOOK_S)

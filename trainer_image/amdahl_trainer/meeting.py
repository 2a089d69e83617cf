"""How do ranks find one another, and which of them has not come?

Ranks meet in a store that rank 0 holds, or torchrun. A name that does not resolve yet, as that of a pod that is still
to be scheduled, or a port that nobody listens to yet, is waited for. Everything here waits in Python, a little at a
time, so that a signal is heard at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]  # public, though its module does not say so
    Store,
    TCPStore,
)

from amdahl_trainer.errors import ConfigError, Exit, PeerError
from amdahl_trainer.place import Meeting, Place

#: Between two looks, seconds.
LOOK_S = 0.1

#: Longest wait for one connection, seconds.
CONNECT_S = 5.0


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


def await_all(store: Store, keys: Sequence[str], timeout_s: int) -> None:
    """Until each rank has set its key. Raises PeerError, with the ranks that have not."""
    deadline = time.monotonic() + timeout_s
    while not store.check(list(keys)):
        if time.monotonic() > deadline:
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            noun = "rank" if len(missing) == 1 else "ranks"
            raise PeerError(
                Exit.PEER_HUNG,
                f"{noun} {', '.join(missing)} of {len(keys)} did not come for {timeout_s} s (limits.comm_timeout_s); "
                "have all ranks been started, and can they reach this machine?",
            )
        time.sleep(LOOK_S)

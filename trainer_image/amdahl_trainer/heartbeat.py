"""Is every rank still there? A thread that renews this rank's card in the store, and the inquiry when all is lost.

Nothing is added to a step. The thread reads, about once a second, where the training thread is, and tells the store;
that is all until a collective fails. Then the ranks that waited in it say so on their cards, look at the others' twice,
and agree on the cause without a word (`blame`). A barrier with a monitor before each step would say the same for one
more collective a step; a rank that hangs in the loader cannot answer one, but its thread can say where it is.

A rank that the others have given up on ends itself, with the stack of each of its threads: where no launcher would end
it, it would keep its place for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from torch.distributed import Store  # type: ignore[attr-defined]  # public, though its module does not say so

from amdahl_trainer import blame, meeting
from amdahl_trainer.blame import Card, Failure, Verdict
from amdahl_trainer.errors import Exit
from amdahl_trainer.place import Meeting, Place

#: Between two renewals, seconds, of up to `CROWD` ranks; more take turns, so that the store has as much to do.
RENEW_S = 1.0
CROWD = 64

#: Renewals that a rank may miss before it counts as silent.
MISSED = 3

#: Longest wait for the store, seconds.
STORE_S = 5.0

_VERDICT = "amdahl/verdict"

T = TypeVar("T")


class Spot(NamedTuple):
    """Where a rank is: optimizer steps done over every restart, -1 before training; phase of the ledger."""

    step: int
    phase: str


class Heartbeat:
    """This rank's card, and the others'."""

    def __init__(self, at: Meeting, place: Place, timeout_s: int) -> None:
        """Reach the store. Raises PeerError, ConfigError."""
        self._connection = meeting.find(at, place, timeout_s)
        self._meeting, self._place, self._timeout_s = at, place, timeout_s
        self._start = ""  # until the ranks meet
        self._spot: Callable[[], Spot] = lambda: Spot(-1, "startup")
        self._card = Card(host=socket.gethostname())
        self._unchanged_since = time.monotonic()
        self._first: Card | None = None  # of rank 0, when its store could last be read
        self._verdict: Verdict | None = None  # of the rank that came to one first
        self._ending = threading.Event()
        self._lock = threading.Lock()

    def meet(self) -> None:
        """Wait for all ranks, then renew the card until the process ends. Raises PeerError."""
        self._start = meeting.enter(self._connection, self._place, self._timeout_s)
        own = self._open()  # whoever waits in the training thread's would let nobody else in
        self._renew(own)
        keys = [_key(rank) for rank in range(self._place.world)]
        meeting.await_all(self._connection, self._start, keys, self._timeout_s, tells=self._place.rank == 0)
        self._first = Card.parse(own.get(_key(0)))
        threading.Thread(target=self._run, args=(own,), name="heartbeat", daemon=True).start()

    @property
    def store(self) -> Store:
        """What belongs to this start of the ranks, once they have met."""
        return meeting.within(self._connection, self._start)

    def watch(self, spot: Callable[[], Spot]) -> None:
        """Ask `spot` from now on where this rank is. It is called by another thread."""
        self._spot = spot

    def end(self, code: int) -> None:
        """Tell the others that this rank ends by its own fault."""
        _within(STORE_S, lambda: self._renew(self._open(), ended=code))
        if self._place.rank == 0 and self._meeting.is_held_by_first:
            time.sleep(self._linger_s)  # the store ends with this process: let the others look once more
        self._ending.set()

    def inquire(self, failure: Failure) -> Verdict:
        """Who made a collective fail, told by the cards. Takes a few seconds."""
        self._ending.set()
        verdict = _within(self.longest_s, lambda: self._look_around(failure))
        return verdict or self._without_store(failure)

    @property
    def _every_s(self) -> float:
        return RENEW_S * max(1.0, self._place.world / CROWD)

    @property
    def _linger_s(self) -> float:
        return 1.5 * self._every_s

    @property
    def longest_s(self) -> float:
        """An inquiry, or the wait of rank 0 for those of the others."""
        return MISSED * self._every_s + 2 * STORE_S

    def _look_around(self, failure: Failure) -> Verdict:
        store = self._open()
        self._renew(store, failed=failure)
        before = after = self._read(store)
        deadline = time.monotonic() + MISSED * self._every_s
        while (verdict := _read_verdict(store)) is None:
            if time.monotonic() > deadline or _is_clear(after):
                verdict = blame.judge(self._place.rank, before, after, self._timeout_s)
                store.set(_VERDICT, verdict.to_json())
                break
            time.sleep(meeting.LOOK_S)
            after = self._read(store)
        self._renew(store, is_done=True)
        if self._place.rank == 0 and self._meeting.is_held_by_first:
            self._hold_store(store, verdict.ranks)
        return verdict

    def _hold_store(self, store: Store, gone: Sequence[int]) -> None:
        """Let the others read what they need: the store ends with this process. One that hangs looks by its thread."""
        earliest, latest = time.monotonic() + self._linger_s, time.monotonic() + STORE_S
        waits_for = set(range(self._place.world)) - set(gone)
        while time.monotonic() < latest:
            cards = self._read(store)
            if time.monotonic() > earliest and all(cards[rank].is_done for rank in waits_for):
                break
            time.sleep(meeting.LOOK_S)

    def _run(self, store: Store) -> None:
        """The thread."""
        while not self._ending.wait(self._every_s):
            try:
                self._renew(store)
                self._first = Card.parse(store.get(_key(0)))
                self._verdict = _read_verdict(store)
                is_over = self._verdict is not None
            except RuntimeError:
                is_over = True
            if is_over and not self._ending.wait(self.longest_s):
                self._abandon()

    def _abandon(self) -> None:
        """End this process: its training thread is where nobody waits for it any more."""
        verdict = self._without_store("closed")
        text, code = verdict.text, verdict.code
        if self._place.rank in verdict.ranks or not verdict.ranks:
            text, code = "the other ranks waited for this one in vain, and have ended", Exit.PEER_HUNG
        print(
            f"amdahl_trainer: rank {self._place.rank}: {text}; this rank is {blame.where(self._card)} "
            f"(exit code {int(code)}, {code.name.lower()}). Its threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        os._exit(code)

    def _without_store(self, failure: Failure) -> Verdict:
        """From what the thread has read while it could."""
        if self._verdict is not None:
            return self._verdict
        host = self._first.host if self._first else self._meeting.host
        holder = f"rank 0 on {host}" if self._meeting.is_held_by_first else "torchrun, which holds the store,"
        return blame.without_store(holder, self._first, failure, self._timeout_s)

    def _renew(self, store: Store, **told: object) -> None:
        """Say where this rank is now, and what else there is to say of it."""
        with self._lock:
            spot, now = self._spot(), time.monotonic()
            if spot != (self._card.step, self._card.phase):
                self._unchanged_since = now
            unchanged_s = int(now - self._unchanged_since)
            fresh = {"renewed": self._card.renewed + 1, "unchanged_s": unchanged_s, **spot._asdict(), **told}
            self._card = replace(self._card, **fresh)
            store.set(_key(self._place.rank), self._card.to_json())

    def _open(self) -> Store:
        if (reason := meeting.is_there(self._meeting)) is not None:
            raise RuntimeError(f"the store is gone: {reason}")  # sooner than torch, which would try again and again
        connection = meeting.connect(self._meeting, self._place.world, STORE_S)
        return meeting.within(connection, self._start)

    def _read(self, store: Store) -> list[Card]:
        return [Card.parse(text) for text in store.multi_get([_key(rank) for rank in range(self._place.world)])]


def _read_verdict(store: Store) -> Verdict | None:
    """That of the rank that came to one first: the others adopt it."""
    return Verdict.parse(store.get(_VERDICT)) if store.check([_VERDICT]) else None


def _is_clear(cards: Sequence[Card]) -> bool:
    """Whether waiting longer would tell nothing new."""
    return any(card.ended is not None for card in cards) or all(card.is_settled for card in cards)


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns, None if the store is gone or does not answer in time: a thread may wait for it for ever."""
    found: list[T] = []

    def attempt() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(work())

    thread = threading.Thread(target=attempt, name="inquiry", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _key(rank: int) -> str:
    return f"amdahl/rank/{rank}"

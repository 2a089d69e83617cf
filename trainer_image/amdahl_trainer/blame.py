"""A collective has failed: which rank is the cause? The verdict over what the ranks last told about themselves.

Each rank has a card in the rendezvous store, renewed by a thread of it (`heartbeat`). When a collective fails, the
ranks that were waiting in it say so on their cards. The cause is, in this order,

1. a rank that ended by its own fault: it said so;
2. a rank whose card is no longer renewed: its process was killed or stopped, or its machine is gone;
3. a rank that is elsewhere than in a collective while the others wait: it hangs in that phase;
4. any rank that is not known to wait.

What ended the run is a death (80) if no rank ran into the time limit of a collective: a process that dies closes its
connections at once. It is a hang (81) if one did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from amdahl_trainer.errors import Exit

#: How a collective fails: a connection was closed, or the time limit passed.
Failure = Literal["closed", "late"]

#: Ranks that a message names at most.
NAMED = 5


@dataclass(frozen=True)
class Card:
    """What a rank tells about itself.

    Attributes:
        host: name of its machine.
        renewed: counts renewals.
        step: optimizer steps done over every restart; -1 before training.
        phase: of the ledger, at the last renewal.
        unchanged_s: seconds for which step and phase have been these.
        ended: exit code of a rank that ended by its own fault.
        failed: how a collective failed on a rank that waited in it.
        is_done: it has read the others' cards and needs the store no more.
    """

    host: str
    renewed: int = 0
    step: int = -1
    phase: str = "startup"
    unchanged_s: int = 0
    ended: int | None = None
    failed: Failure | None = None
    is_done: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Card:
        """Read what `to_json` wrote; ranks of one run have one version."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The text in the store."""
        return json.dumps(asdict(self))

    @property
    def is_settled(self) -> bool:
        """Whether it is known why this rank goes on no more."""
        return self.ended is not None or self.failed is not None


@dataclass(frozen=True)
class Verdict:
    """Which ranks were the cause, the exit code of the others, and what they say."""

    code: Exit
    ranks: tuple[int, ...]
    text: str

    @classmethod
    def parse(cls, text: bytes) -> Verdict:
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        return cls(Exit(raw["code"]), tuple(raw["ranks"]), raw["text"])

    def to_json(self) -> str:
        """The text in the store, by which all ranks say the same."""
        return json.dumps(asdict(self))


def judge(me: int, before: Sequence[Card], after: Sequence[Card], timeout_s: int) -> Verdict:
    """Who is to blame, from the cards as they were when this rank failed and as they are some renewals later."""
    is_late = any(card.failed == "late" for card in after)
    code = Exit.PEER_HUNG if is_late else Exit.PEER_DIED
    open_ = {rank: card for rank, card in enumerate(after) if rank != me and not card.is_settled}
    ended = {rank: card for rank, card in enumerate(after) if rank != me and card.ended is not None}
    silent = {rank: card for rank, card in open_.items() if card.renewed == before[rank].renewed}
    elsewhere = {rank: card for rank, card in open_.items() if card.phase != "comm"}
    if ended:
        return Verdict(_code_beside(ended), *_name(ended, lambda card: f"ended with {_describe(card.ended)}"))
    if silent:
        fate = f"did not answer for {_limit(timeout_s)}: it is stopped, or its machine is gone" if is_late else "died"
        return Verdict(code, *_name(silent, lambda card: f"{fate}; it was last seen {where(card)}"))
    if elsewhere or open_:
        return Verdict(
            code,
            *_name(elsewhere or open_, lambda card: f"kept the others waiting for {_limit(timeout_s)}: {_since(card)}"),
        )
    how = f"no rank came on for {_limit(timeout_s)}" if is_late else "connections between ranks were lost"
    return Verdict(code, (), f"{how}, though all ranks live")


def without_store(holder: str, last: Card | None, failure: Failure, timeout_s: int) -> Verdict:
    """Whoever holds the store is to blame when it cannot be read. `last` is the card of rank 0 as last seen."""
    if last is not None and last.ended is not None:
        return Verdict(_code_beside({0: last}), (0,), f"{holder} ended with {_describe(last.ended)}")
    if last is not None and last.failed is not None:
        code = Exit.PEER_HUNG if last.failed == "late" else Exit.PEER_DIED
        return Verdict(code, (), f"another rank was lost; {holder} has said which")
    seen = f"; it was last seen {where(last)}" if last is not None else ""
    if failure == "closed":
        return Verdict(Exit.PEER_DIED, (0,), f"{holder} died{seen}")
    fate = f"did not answer for {_limit(timeout_s)}: it is stopped, or its machine is gone"
    return Verdict(Exit.PEER_HUNG, (0,), f"{holder} {fate}{seen}")


def failure_of(error: BaseException | None) -> Failure | None:
    """How a collective failed, if that is what an exception, or a cause of it, tells of.

    The store and NCCL raise `DistError`s, gloo plain RuntimeErrors that name its source file.
    """
    for one in _causes(error):
        text = str(one)
        is_ours = isinstance(one, dist.DistError) or (isinstance(one, RuntimeError) and "gloo" in text)
        if is_ours:
            return "late" if "timeout" in text.lower() or "timed out" in text.lower() else "closed"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, those of other ranks that it carries, and what it came of."""
    while error is not None:
        yield error
        if isinstance(error, CheckpointException):
            for cause, _ in error.failures.values():
                yield from _causes(cause)
        error = error.__cause__ or error.__context__


def _code_beside(ended: Mapping[int, Card]) -> Exit:
    """What others end with. A step that is not finite is so on all ranks; on a GPU one may hear of it sooner."""
    is_common = all(card.ended == Exit.NON_FINITE for card in ended.values())
    return Exit.NON_FINITE if is_common else Exit.PEER_DIED


def _name(cards: Mapping[int, Card], say: Callable[[Card], str]) -> tuple[tuple[int, ...], str]:
    """The ranks, and a clause for each."""
    ranks = sorted(cards)
    told = [f"rank {rank} on {cards[rank].host} {say(cards[rank])}" for rank in ranks[:NAMED]]
    more = f", and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return tuple(ranks), "; ".join(told) + more


def where(card: Card) -> str:
    """Step and phase, in words."""
    return "at start-up" if card.step < 0 else f"after step {card.step} in phase {card.phase}"


def _since(card: Card) -> str:
    return f"it is {where(card)} since {card.unchanged_s} s"


def _limit(timeout_s: int) -> str:
    return f"{timeout_s} s (limits.comm_timeout_s)"


def _describe(code: int | None) -> str:
    known = {int(one): one.name.lower() for one in Exit}
    return f"exit code {code} ({known.get(code or 0, 'unknown')})"

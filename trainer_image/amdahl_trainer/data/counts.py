"""What did the making of batches take, and what did it come across?

Counted where rows are made, added up where they are consumed: batches made ahead and dropped count for nothing.
"""

from __future__ import annotations

import time
from operator import add
from typing import Literal, NamedTuple

Part = Literal["read_ns", "tokenize_ns", "pack_ns"]


class Bad(NamedTuple):
    """A piece of a document that cannot be trained on. `first` and `end` are its tokens within the document."""

    source: str
    shard: str
    document: int
    first: int
    end: int
    why: str

    def __str__(self) -> str:
        """Where it is and what is wrong with it."""
        place = f"shard {self.shard}, document {self.document}, tokens {self.first} to {self.end - 1}"
        return f"{self.source}: {place}: {self.why}"


class Counts(NamedTuple):
    """Sums over rows. `tokens` are those that have a target, out of `slots`; `bytes` were read from files or texts."""

    samples: int = 0
    slots: int = 0
    tokens: int = 0
    pieces: int = 0
    sum_len_sq: int = 0
    bytes: int = 0
    read_ns: int = 0
    tokenize_ns: int = 0
    pack_ns: int = 0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*map(add, self, other))

    def describe(self) -> str:
        """One line for the console: what was consumed, how well it was packed, and what making it took."""
        made_ns = self.read_ns + self.tokenize_ns + self.pack_ns
        padding = 1 - self.tokens / max(1, self.slots)
        shares = (("read", self.read_ns), ("tokenize", self.tokenize_ns), ("pack", self.pack_ns))
        parts = ", ".join(f"{name} {ns / max(1, made_ns):.0%}" for name, ns in shares)
        return (
            f"{self.samples} rows, {self.tokens} tokens, {padding:.1%} padding, "
            f"mean document {self.sum_len_sq / max(1, self.tokens):.0f} tokens; {self.bytes / 2**20:.1f} MiB read, "
            f"{self.tokens / max(1, made_ns) * 1e3:.2f} M tokens/s a loader ({parts})"
        )


class Meter:
    """What one batch takes while it is made: laps that follow one another, so their sum is the whole."""

    def __init__(self) -> None:
        """The first lap begins."""
        self.bytes = self.pieces = self.sum_len_sq = 0
        self.bad: list[Bad] = []
        self.spent_ns: dict[Part, int] = {"read_ns": 0, "tokenize_ns": 0, "pack_ns": 0}
        self._mark_ns = time.monotonic_ns()

    def end(self, part: Part) -> None:
        """What passed since the last lap was `part`."""
        now_ns = time.monotonic_ns()
        self.spent_ns[part] += now_ns - self._mark_ns
        self._mark_ns = now_ns

    @property
    def total_ns(self) -> int:
        """From the beginning to the end of the last lap."""
        return sum(self.spent_ns.values())

    def counts(self, samples: int, slots: int, tokens: int) -> Counts:
        """The sums, given what the batch holds."""
        return Counts(samples, slots, tokens, self.pieces, self.sum_len_sq, self.bytes, **self.spent_ns)

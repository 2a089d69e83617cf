"""Which sample comes at which position? A pure function, so that one integer is the whole state of the data.

The position counts samples consumed by all ranks together. Each epoch is its own permutation of the samples, computed
where it is asked for (a Feistel network with cycle walking), never stored: workers, prefetching and the number of
ranks cannot change it, and resuming costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

#: Four rounds make a permutation that is pseudo-random for our purpose (Luby and Rackoff 1988).
ROUNDS = 4


class Sequence(Protocol):
    """Sample numbers without end, a function of the position."""

    @property
    def samples(self) -> int:
        """How many different ones there are."""

    def sample(self, position: int) -> int:
        """The sample at a position of 0 or more."""

    def with_seed(self, seed: int) -> Sequence:
        """The same samples in another order."""

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source had been read when `position` was reached; one without a name is ''."""


@dataclass(frozen=True)
class Order:
    """An endless sequence of sample numbers 0 to `samples` - 1, every epoch a permutation of all."""

    samples: int
    seed: int

    def sample(self, position: int) -> int:
        """The sample at a position of 0 or more."""
        epoch, at = divmod(position, self.samples)
        keys = _round_keys(self.seed, epoch)
        half_bits = max(1, ((self.samples - 1).bit_length() + 1) // 2)
        while True:  # cycle walking: the network permutes a power of four of at most 4 times the samples
            at = _feistel(at, half_bits, keys)
            if at < self.samples:
                return at

    def with_seed(self, seed: int) -> Order:
        """The same samples in another order."""
        return replace(self, seed=seed)

    def epochs(self, position: int) -> dict[str, float]:
        """How often the samples had been read when `position` was reached."""
        return {"": position / self.samples}


@dataclass(frozen=True)
class Share:
    """The positions that one rank takes of each global batch: equal, contiguous and disjoint."""

    rank: int
    world: int
    global_batch: int

    def positions(self, begin: int) -> range:
        """The rank's positions of the global batch that begins at `begin`."""
        size = self.global_batch // self.world
        first = begin + self.rank * size
        return range(first, first + size)

    def batches(self, begin: int) -> Iterator[range]:
        """The rank's positions of every batch from `begin` on, without end."""
        while True:
            yield self.positions(begin)
            begin += self.global_batch


@lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(ROUNDS))


def _feistel(value: int, half_bits: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return left << half_bits | right


def _mix(value: int) -> int:
    """The finaliser of SplitMix64: each bit of the input stirs all of the output."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)

"""Which source does the row at a position come from? A pattern that repeats: shares are exact and need no state.

Shares are rational numbers that sum to one. Their common denominator P is the length of the pattern: of every P rows,
source i gives exactly share_i * P, spread as evenly as whole rows can be (after any number of rows each source is less
than one row from its share, or nearly: tests bound it). Position p is row c of its source, where c is the number of
that source's places before p: whole patterns times its places in one, and its places in the begun one. Within a source
each epoch is a permutation of its own, as everywhere.

    books=3/4, code=1/4        P = 4, pattern b c b b        position  0 1 2 3  4 5 6 7
                                                             row of    b c b b  b c b b
                                                             number c  0 0 1 2  3 1 4 5
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import lcm

from amdahl_trainer.data.order import Order
from amdahl_trainer.errors import ConfigError

#: The longest pattern: shares with four decimals.
LONGEST = 10_000


@dataclass(frozen=True)
class Mix:
    """An endless sequence of sample numbers from several sources, numbered one source after another."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shares: tuple[Fraction, ...]
    seed: int

    @property
    def samples(self) -> int:
        """How many there are in all sources."""
        return sum(self.sizes)

    def sample(self, position: int) -> int:
        """The sample at a position of 0 or more."""
        source, number = self.source(position)
        return self._firsts[source] + self._orders[source].sample(number)

    def source(self, position: int) -> tuple[int, int]:
        """Which source the position takes from, and how many it has taken from it before."""
        whole, at = divmod(position, len(self._pattern))
        source = self._pattern[at]
        return source, whole * self._places[source] + self._before[at]

    def with_seed(self, seed: int) -> Mix:
        """The same shares, each source in another order."""
        return replace(self, seed=seed)

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source had been read when `position` was reached."""
        whole, at = divmod(position, len(self._pattern))
        begun = self._pattern[:at]
        taken = (whole * places + begun.count(source) for source, places in enumerate(self._places))
        return {name: count / size for name, count, size in zip(self.names, taken, self.sizes, strict=True)}

    @cached_property
    def _pattern(self) -> tuple[int, ...]:
        return spread(self.shares)

    @cached_property
    def _before(self) -> tuple[int, ...]:
        """At each place of the pattern, how many places of the same source precede it."""
        seen = [0] * len(self.shares)
        before = []
        for source in self._pattern:
            before.append(seen[source])
            seen[source] += 1
        return tuple(before)

    @cached_property
    def _places(self) -> tuple[int, ...]:
        return tuple(int(share * len(self._pattern)) for share in self.shares)

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes, initial=0))

    @cached_property
    def _orders(self) -> tuple[Order, ...]:
        """Sources are shuffled apart, or two of one size would be read in step."""
        return tuple(Order(size, self.seed * 1_000_003 + number) for number, size in enumerate(self.sizes))

    def source_of(self, sample: int) -> str:
        """The name of the source that a sample number belongs to."""
        return self.names[bisect_right(self._firsts, sample) - 1]


def spread(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """The pattern: at each place the source that is furthest behind its share, the first of equals."""
    length = lcm(*(share.denominator for share in shares))
    places = [int(share * length) for share in shares]
    taken = [0] * len(places)
    pattern = []
    for at in range(1, length + 1):
        source = max(range(len(places)), key=lambda i: (places[i] * at - taken[i] * length, -i))
        taken[source] += 1
        pattern.append(source)
    return tuple(pattern)


def parse(text: str) -> dict[str, Fraction]:
    """Shares by name from `books=0.7, code=0.3`; thirds may be written `1/3`.

    Raises:
        ConfigError: not of this form, not positive, a name twice, or the sum is not one.
    """
    shares: dict[str, Fraction] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            share = Fraction(number)
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"data.mix is {text!r}; write it as books=0.7, code=0.3 (or 1/3)") from error
        if not name or share <= 0 or name in shares:
            raise ConfigError(f"data.mix is {text!r}; every source is named once, with a share above 0")
        shares[name] = share
    if sum(shares.values()) != 1:
        found = float(sum(shares.values()))
        nearest = ", ".join(f"{name}={_short(share / sum(shares.values()))}" for name, share in shares.items())
        raise ConfigError(f"data.mix is {text!r}, whose shares sum to {found:g} and not to 1; in proportion: {nearest}")
    if (length := lcm(*(share.denominator for share in shares.values()))) > LONGEST:
        raise ConfigError(
            f"data.mix is {text!r}, which repeats only after {length} rows, more than {LONGEST}; use four decimals"
        )
    return shares


def _short(share: Fraction) -> str:
    return str(share) if share.denominator > 100 or 100 % share.denominator else f"{float(share):g}"


__all__ = ["LONGEST", "Mix", "parse", "spread"]

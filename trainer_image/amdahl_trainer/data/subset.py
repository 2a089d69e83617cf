"""Which documents of a source are trained on? A share or a number of them, drawn by seed, the same everywhere.

Each document has a draw, a hash of the seed and its number in the source; the subset is those with the lowest draws. So
a larger subset of one seed holds every smaller one, and documents appended to a source change no one else's draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from amdahl_trainer.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Subset:
    """A share of the documents, or a number of them, or (neither) all."""

    share: Fraction | None = None
    count: int | None = None
    seed: int = 0

    def limit(self, documents: int) -> int:
        """The highest draw that belongs to the subset of the first `documents` of a source."""
        if self.share is not None:
            return int(self.share * _MASK)
        if self.count is None or self.count >= documents:
            return _MASK
        return int(np.partition(self.draws(0, documents), self.count - 1)[self.count - 1])

    def draws(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        """The draws of documents `first` to `last` - 1: SplitMix64's numbers at those places."""
        value = np.arange(first + 1, last + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
            value = value * np.uint64(_GOLDEN) + np.uint64(_mix(self.seed))
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return np.asarray(value ^ (value >> np.uint64(31)))


def parse(text: str, seed: int) -> Subset:
    """`all`, a share such as `10%`, or a number of documents such as `5000`. Raises ConfigError."""
    words = text.strip()
    try:
        if words == "all":
            return Subset()
        if words.endswith("%") and 0 < (share := Fraction(words[:-1].strip()) / 100) <= 1:
            return Subset(share=share, seed=seed)
        if words.isdigit() and int(words):
            return Subset(count=int(words), seed=seed)
    except (ValueError, ZeroDivisionError):
        pass  # the same refusal for all that is no number
    raise ConfigError(f"data.subset is {text!r}; write all, a share such as 10%, or a number of documents such as 5000")


def _mix(seed: int) -> int:
    """Seeds that follow one another must not give shifted draws."""
    value = (seed + 1) * 0xD1342543DE82EF95 & _MASK
    return (value ^ (value >> 32)) * 0xDABA0B6EB09322E3 & _MASK

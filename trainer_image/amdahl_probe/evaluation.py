"""Is this training or evaluation? What looks like evaluation may turn out to have been training.

A loader not met before, once the training's are known, counts as evaluation, unless a backward pass follows its batch.
So does a module called in evaluation mode between two steps; one called without gradients is evaluation for certain.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

from amdahl_probe import digests
from amdahl_probe.digests import BatchDigest
from amdahl_probe.draft import Draft
from amdahl_probe.spans import Ledger

#: A loader that is not (yet) known to feed the training may give this many batches before it counts as evaluation.
MAX_PROVISIONAL = 4


class Evaluation:
    """The evaluation that goes on, if any: the ledger's bottom is `eval` then."""

    def __init__(self, ledger: Ledger, rest: Callable[[str], None]) -> None:
        """`rest` changes the ledger's bottom."""
        self._ledger = ledger
        self._rest = rest
        self._provisional: List[BatchDigest] = []
        self._is_doubtful = False
        self._begun_ns = self._wait_ns = 0

    @property
    def is_provisional(self) -> bool:
        """Whether a backward pass would make training of it."""
        return bool(self._provisional) or self._is_doubtful

    def begin(self) -> None:
        """A batch is asked for that is not known to be for training."""
        if self._ledger.bottom != "eval":
            self._begun_ns, self._wait_ns = self._ledger.spent("eval"), 0
        self._rest("eval")

    def add(self, batch: Any, indices: Optional[Any], wait_ns: int, in_startup: bool) -> None:
        """Such a batch is in hand, after `wait_ns`."""
        self._wait_ns += wait_ns
        if not in_startup and len(self._provisional) < MAX_PROVISIONAL:
            self._provisional.append(digests.digest(batch, indices))

    def call(self, is_certain: bool) -> None:
        """A module is called that does not look like training."""
        if is_certain:
            self._provisional.clear()
            self._is_doubtful = False
        elif not self.is_provisional:  # what was evaluation for certain stays so
            self._begun_ns, self._wait_ns = self._ledger.spent("eval"), 0
            self._is_doubtful = True
        self._rest("eval")

    def interrupt(self) -> None:
        """A module is called that does look like training: its batch may be one that was provisional."""
        self._is_doubtful = False
        self._rest("compute")

    def promote(self, draft: Draft) -> None:
        """It was training: charge its time anew."""
        draft.batches += tuple(self._provisional)
        self._provisional.clear()
        self._is_doubtful = False
        self._rest("compute")
        took_ns = self._ledger.spent("eval") - self._begun_ns
        if self._wait_ns:
            draft.moves += (("eval", "input", self._wait_ns),)
        draft.moves += (("eval", "compute", took_ns - self._wait_ns),)

    def end(self) -> None:
        """A training batch is asked for, or the loader is exhausted."""
        self._provisional.clear()
        self._is_doubtful = False
        if self._ledger.bottom == "eval":
            self._rest("other")

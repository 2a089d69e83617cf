"""Is a batch for training or for evaluation? One that looks like evaluation may turn out to have been training.

A loader not met before, once the training's are known, counts as evaluation, unless a backward pass follows its batch.
"""

from __future__ import annotations

from typing import Any, List, Optional

from amdahl_probe import digests
from amdahl_probe.digests import BatchDigest
from amdahl_probe.draft import Draft
from amdahl_probe.spans import Ledger

#: A loader that is not (yet) known to feed the training may give this many batches before it counts as evaluation.
MAX_PROVISIONAL = 4


class Evaluation:
    """The evaluation that goes on, if any: the ledger's bottom is `eval` then."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._provisional: List[BatchDigest] = []
        self._begun_ns = self._wait_ns = 0

    @property
    def is_provisional(self) -> bool:
        """Whether batches are in hand that a backward pass would make training."""
        return bool(self._provisional)

    def begin(self) -> None:
        """A batch is asked for that is not known to be for training."""
        if self._ledger.bottom != "eval":
            self._begun_ns, self._wait_ns = self._ledger.spent("eval"), 0
        self._ledger.rest("eval")

    def add(self, batch: Any, indices: Optional[Any], wait_ns: int, in_startup: bool) -> None:
        """Such a batch is in hand, after `wait_ns`."""
        self._wait_ns += wait_ns
        if not in_startup and len(self._provisional) < MAX_PROVISIONAL:
            self._provisional.append(digests.digest(batch, indices))

    def promote(self, draft: Draft) -> None:
        """It was training on a loader not met before: charge its time anew."""
        draft.batches += self._provisional
        self._provisional.clear()
        self._ledger.rest("compute")
        took_ns = self._ledger.spent("eval") - self._begun_ns
        draft.moves.append(("eval", "input", self._wait_ns))
        draft.moves.append(("eval", "compute", took_ns - self._wait_ns))

    def end(self) -> None:
        """A training batch is asked for, or the loader is exhausted."""
        self._provisional.clear()
        if self._ledger.bottom == "eval":
            self._ledger.rest("other")

"""Which jobs does a pass go over, and what is said of those that it cannot go over?

A job that is gone is let go, one that is at rest is left alone, and one whose spec or ledger cannot be used is told so.
"""

import contextlib
import logging
from dataclasses import dataclass

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.jobs import SeenJob, ShownJob, show
from amdahl_loop.adapters.kube.ledger import (
    KubeLedger,
    LedgerConflictError,
    LedgerRefusedError,
)
from amdahl_loop.adapters.kube.orphans import let_go
from amdahl_loop.adapters.kube.recall import LedgerUnreadableError
from amdahl_loop.adapters.kube.standing_down import stand_down
from amdahl_loop.domain.api.parts import clip
from amdahl_loop.domain.conditions import Note
from amdahl_loop.domain.policy import constrain
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.passing import Means, Pass
from amdahl_loop.recollection import JobKey
from amdahl_loop.resting import RESYNC_ACTIVE_S, RESYNC_IDLE_S

MAX_FAILURE = 300
"""So much of an error's own words goes into a status."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Operator(Means):
    """Passes over jobs, one at a time each."""

    async def advance(self, key: JobKey) -> float | None:
        """One pass; seconds until the next one, None where the job is gone. ApiUnavailable where the server is.

        Whatever else ends a pass can only be a fault of ours: the job's owner is told, and the queue tries again.
        """
        try:
            return await self._advance(key)
        except ApiUnavailable:
            raise
        except Exception as error:
            await self._tell_failure(key, error)
            raise

    async def _advance(self, key: JobKey) -> float | None:
        shown = await show(self.client, *key)
        if shown is not None and self._is_at_rest(key, shown):
            return RESYNC_IDLE_S
        seen = None if shown is None else shown.see()
        if seen is None or seen.is_deleting:
            self.recollection.forget(key)
            await let_go(self.client, self.recollection.index, key.namespace, key.name, self.clock)
            return None
        if seen.job is None:
            self.recollection.give_way(key)
            await stand_down(self.client, seen)
            return await self.tell(seen, Note(reason=Reason.INVALID_SPEC, sentence=seen.faults))
        index = self.recollection.index
        if index.has_open_of_another(key.namespace, key.name, seen.uid):  # deleted and made anew between two passes
            await let_go(self.client, index, key.namespace, key.name, self.clock, keep_uid=seen.uid)
        held = constrain(seen.job, self.recollection.policies.get(key.namespace, {}))
        ledger = KubeLedger(self.client, self.recollection.index, seen, self.clock)
        try:
            return await Pass(self, key, ledger, held).run()
        except (LedgerConflictError, LedgerRefusedError, LedgerUnreadableError) as error:
            if isinstance(error, LedgerUnreadableError):
                self.recollection.give_way(key)
            _log.warning("%s: %s", key, error)
            note = Note(reason=Reason.REFUSED_BY_SERVER, sentence=str(error))
            return await self.tell(ledger.seen, note)
        except ApiUnavailable as error:
            if error.refused is None or not error.refused.lacks_right:
                raise
            _log.warning("%s: %s", key, error)
            note = Note(reason=Reason.REFUSED_BY_SERVER, sentence=str(error))
            await self.tell(ledger.seen, note)
            return RESYNC_ACTIVE_S

    async def _tell_failure(self, key: JobKey, error: Exception) -> None:
        """Say that the pass failed, by the job as it is now. It is tried again whether that can be said or not."""
        with contextlib.suppress(ApiUnavailable):
            shown = await show(self.client, *key)
            if shown is not None and not shown.is_deleting:
                seen = SeenJob(document=shown.document, job=None, status=shown.read_status())
                sentence = f"The operator fails at this job and tries again; its log says where. {say_failure(error)}"
                await self.tell(seen, Note(reason=Reason.OPERATOR_FAULT, sentence=sentence))

    def _is_at_rest(self, key: JobKey, job: ShownJob) -> bool:
        """Whether a whole pass would find what the last one found, which was nothing to do."""
        rest = self.recollection.rests.find(key, job.digest, self.clock())
        if rest is not None:
            self.count_time(key, rest.breakdown)
        return rest is not None


def say_failure(error: Exception) -> str:
    """An error that nobody has foreseen, in a line: its type, and so much of its words."""
    return clip(f"{type(error).__name__}: {error}", MAX_FAILURE)

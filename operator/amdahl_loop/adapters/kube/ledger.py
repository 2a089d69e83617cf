"""How are the loop's facts kept in a cluster, each exactly once?

The `LedgerStore` port on Experiment objects and one field of the TrainingJob's status. Everything is created by its
name, or appended with the version that was read. Where an answer is lost or somebody was faster, the object is read
again: what is there already with the same content is no error, other content is refused, nothing is ever overwritten.
"""

from collections.abc import Callable

from amdahl_loop.adapters.kube.client import ApiUnavailable, Refused
from amdahl_loop.adapters.kube.closing import mark_closed, unmark
from amdahl_loop.adapters.kube.experiments import (
    NO_ROOM,
    diff,
    fit,
    is_one,
    is_try,
    render,
    say_closed,
)
from amdahl_loop.adapters.kube.index import Key, key_of
from amdahl_loop.adapters.kube.jobs import see
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.recall import LedgerReader, believe
from amdahl_loop.domain.api import records
from amdahl_loop.domain.api.experiment import ExperimentStatus, Reservation
from amdahl_loop.domain.api.parts import MAX_PHRASE, clip
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.training_job import report_observation
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
from amdahl_loop.domain.ledger import Application, Observation
from amdahl_loop.domain.telemetry import BlockReport
from amdahl_loop.domain.verdicts import Verdict

TRIES = 5
"""Reads and writes of one change while others keep being faster; then the queue comes back later."""
STEP_S = 0.001
"""A later application never bears an earlier moment than the one before it, whatever the clock does."""

Change = Callable[[StoredExperiment], ExperimentStatus]


class LedgerConflictError(ValueError):
    """What was to be recorded contradicts what is recorded already; nothing was changed."""


class LedgerRefusedError(Exception):
    """The API server does not let the operator record this; the message is the server's."""


class KubeLedger(LedgerReader):
    """The `LedgerStore` port for one pass over one job."""

    async def add_plan(self, plan: Plan) -> None:
        """Create the plan's Experiment; the same plan twice is no error, another one under its name is."""
        self._own = None
        key = Key(self.seen.namespace, plan.name)
        body = render(plan, key.namespace, self.seen.status.observation)
        self._index.expect(key, plan.job_uid)
        answer = await self._client.create(Kind.EXPERIMENT, key.namespace, body)
        if not isinstance(answer, Refused):
            self._index.learn(answer)
            return
        if not answer.is_taken:
            self._index.forget(key)
            raise LedgerRefusedError(f"Experiment {plan.name}: {answer.message}")
        document = await self._get(key)
        if document is None:
            raise ApiUnavailable(f"Experiment {key.namespace}/{key.name} was taken, and is gone")
        stored = self._index.parse(document)
        if isinstance(stored, Unreadable) or stored.experiment.plan != plan:
            raise LedgerConflictError(f"plan {plan.name} is recorded with other content; delete Experiment {plan.name}")

    async def add_block(self, experiment: str, record: BlockRecord) -> None:
        """Append a finished block once, to an open experiment; a holdout block to a closed one."""

        def append(stored: StoredExperiment) -> ExperimentStatus:
            finished = {block.name: block for block in (*stored.status.blocks, *stored.status.holdouts)}
            known, written = finished.get(record.spec.name), records.write_block(record)
            if known is not None:
                if known.failure == NO_ROOM:
                    written = written.model_copy(update={"summary": None, "node": None, "failure": NO_ROOM})
                elif known.summary is None and written.summary is not None:
                    written = written.model_copy(update={"summary": None, "failure": known.failure})
                return _settle(stored, known == written, f"block {record.spec.name} of {experiment}")
            is_closed, is_holdout = stored.status.verdict is not None, record.spec.stage is Stage.HOLDOUT
            if is_closed is not is_holdout:
                state = "closed" if is_closed else "still open"
                raise LedgerConflictError(f"experiment {experiment} is {state}; it takes no block {record.spec.name}")
            added = records.add_block(stored.status, record)
            losses = tuple(loss for loss in added.losses if not is_one(experiment, written, loss.run, loss.started_at))
            return added.model_copy(update={"reserved": None, "losses": losses})

        await self._change(experiment, append)

    async def add_loss(self, experiment: str, loss: Loss) -> None:
        """Charge a run that was stopped; the same one twice is no error.

        One that is on record as a block is paid for: another operator has recorded it before this one stopped it.
        """
        started_at = to_timestamp(loss.started_at_s)

        def charge(stored: StoredExperiment) -> ExperimentStatus:
            blocks = (*stored.status.blocks, *stored.status.holdouts)
            if any(is_one(experiment, block, loss.run, started_at) for block in blocks):
                return stored.status
            reserved = stored.status.reserved
            if reserved is not None and reserved.run == loss.run:
                reserved = None
            return records.add_loss(stored.status, loss).model_copy(update={"reserved": reserved})

        await self._change(experiment, charge)

    async def add_verdict(self, experiment: str, verdict: Verdict, now_s: float) -> None:
        """Close an experiment once; the same verdict twice is no error, whenever it came."""

        def close(stored: StoredExperiment) -> ExperimentStatus:
            if stored.status.verdict is not None:
                return _settle(stored, stored.status.verdict == verdict, f"the verdict of {experiment}")
            return say_closed(records.close(stored.status, verdict, now_s))

        await self._change(experiment, close)

    async def add_application(self, application: Application) -> None:
        """Record that values were applied, rolled back or put back; the same decision twice is kept once.

        ApiUnavailable where something else was recorded since this pass recalled the experiment.
        """
        others = [a for stored in self._recalled.values() for a in stored.applications]
        least_s = max((other.at_s + STEP_S for other in others), default=0.0)
        kept = application.model_copy(update={"failing": clip(application.failing, MAX_PHRASE)})
        written = kept.model_copy(update={"at_s": max(application.at_s, least_s)})
        recalled = self._recalled.get(application.experiment)

        def append(stored: StoredExperiment) -> ExperimentStatus:
            newest = stored.applications[-1:]
            is_repeated = [a.model_copy(update={"at_s": application.at_s}) for a in newest] == [kept]
            if is_repeated or kept in stored.applications:
                return stored.status
            if recalled is not None and recalled.applications != stored.applications:
                raise ApiUnavailable(f"applications of {application.experiment} have changed since they were recalled")
            return records.add_application(stored.status, written)

        await self._change(application.experiment, append)

    async def reserve(self, experiment: str, run: str, device_s: float) -> bool:
        """Set device-time aside before a run is created; its block or its loss clears it.

        False, and nothing is set aside, where the block is on record: another operator has run it meanwhile.
        """
        reserved, is_due = Reservation(run=run, device_s=device_s), True

        def put_aside(stored: StoredExperiment) -> ExperimentStatus:
            nonlocal is_due
            finished = (*stored.status.blocks, *stored.status.holdouts)
            is_due = not any(is_try(experiment, block, run) for block in finished)
            return stored.status.model_copy(update={"reserved": reserved}) if is_due else stored.status

        await self._change(experiment, put_aside)
        return is_due

    async def add_observation(self, job_uid: str, observation: Observation) -> None:
        """Keep an observation of the job; the one before it is replaced. A job that is gone keeps nothing."""
        reported = report_observation(observation)
        if reported is None:
            failed = BlockReport(run=observation.run, state="error", why="the summary is too long to be kept")
            reported = report_observation(observation.model_copy(update={"report": failed}))
        assert reported is not None, "a report without windows is short"
        wanted = to_wire(reported)
        for _ in range(TRIES):
            if self.seen.uid != job_uid:
                return
            metadata = {"resourceVersion": self.seen.resource_version}
            body: Object = {"metadata": metadata, "status": {"observation": wanted}}
            answer = await self._client.patch_status(Kind.TRAINING_JOB, self.seen.namespace, self.seen.name, body)
            if not isinstance(answer, Refused):
                self.seen = see(answer)
                return
            if not (answer.is_outdated or answer.is_gone):
                raise LedgerRefusedError(f"status of {self.seen.name}: {answer.message}")
            document = await self._client.get(Kind.TRAINING_JOB, self.seen.namespace, self.seen.name)
            if document is None:
                return
            self.seen = see(document)
        raise ApiUnavailable(f"others keep writing TrainingJob {self.seen.namespace}/{self.seen.name}")

    async def _change(self, experiment: str, change: Change) -> None:
        """Read, change, write with the version that was read; again where somebody was faster or an answer was lost."""
        self._own = None
        key = Key(self.seen.namespace, experiment)
        for _ in range(TRIES):
            document = await self._get(key)
            if document is None:
                raise LedgerConflictError(f"experiment {experiment} has no plan; record the plan first")
            stored = believe(self._index.parse(document))
            status = fit(document, stored, change(stored))
            answer = await self._write(document, stored.status, status)
            if not isinstance(answer, Refused):
                if status.verdict is not None:
                    self._index.learn(await mark_closed(self._client, answer))
                return
            if not (answer.is_outdated or answer.is_gone):
                raise LedgerRefusedError(f"Experiment {experiment}: {answer.message}")
        raise ApiUnavailable(f"others keep writing Experiment {key.namespace}/{key.name}")

    async def _write(self, document: Object, before: ExperimentStatus, after: ExperimentStatus) -> Object | Refused:
        """Write a status where it changes; the Experiment as it is then."""
        if before == after:
            return document
        key = key_of(document)
        self._index.doubt(key)
        unmarked = await unmark(self._client, document)
        if isinstance(unmarked, Refused):
            return unmarked
        answer = await self._client.patch_status(Kind.EXPERIMENT, *key, diff(unmarked, before, after))
        if not isinstance(answer, Refused):
            self._index.learn(answer)
        return answer


def _settle(stored: StoredExperiment, is_same: bool, what: str) -> ExperimentStatus:
    """What is recorded already stays; it is a contradiction unless it is the same."""
    if not is_same:
        raise LedgerConflictError(f"{what} is recorded with other content; nothing was changed")
    return stored.status

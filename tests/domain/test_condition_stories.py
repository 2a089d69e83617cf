"""What story do the conditions of a job tell, from its first measurement to the end of the loop?"""

import asyncio
from collections.abc import Sequence

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.api.conditions import JobConditionType
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.conditions import Facts, Note
from amdahl_loop.domain.plan import look
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.status import describe
from amdahl_loop.reconcile import Identity, Ports, Tick, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, compute_bound, loader_bound

T = JobConditionType

RUNNING = Note(reason=Reason.AS_DECLARED, sentence="1 of 1 pods run.")


def watch(job: TrainingJob, truth: Truth) -> list[TrainingJobStatus]:
    """Every status of a whole loop on a simulated machine, one a pass, without repeats."""
    runner, ledger = SimulatedRunner(truth), MemoryLedger()
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    identity = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
    statuses = [TrainingJobStatus()]

    async def loop() -> None:
        for _ in range(400):
            seen: Tick = await tick(job, identity, ports)
            observation = seen.snapshot.observation
            review = look(seen.snapshot, observation) if observation is not None else None
            facts = Facts(standing=RUNNING, snapshot=seen.snapshot, action=seen.action, review=review)
            status = describe(facts, statuses[-1], 1, 1000.0)
            if status != statuses[-1]:
                statuses.append(status)
            if seen.is_over:
                return
        raise AssertionError("the loop does not end")

    asyncio.run(loop())
    return statuses[1:]


def story(statuses: Sequence[TrainingJobStatus], type_name: JobConditionType) -> list[str]:
    """The reasons that one condition went through."""
    reasons = [next(c.reason for c in status.conditions if c.type is type_name) for status in statuses]
    return [reason for n, reason in enumerate(reasons) if n == 0 or reasons[n - 1] != reason]


def test_the_conditions_tell_the_story_of_a_win() -> None:
    """From the first measurement through the experiment to a proven value in force."""
    statuses = watch(make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), Truth(phases_s=loader_bound))
    assert story(statuses, T.OBSERVED) == ["Measuring", "Measured", "Measuring", "Measured"]
    assert story(statuses, T.TUNED) == ["NoWin", "WonUnapplied", "ProvenValues"]
    experimenting = story(statuses, T.EXPERIMENTING)
    assert experimenting[:4] == ["NotMeasuredYet", "Deciding", "BlockRunning", "Deciding"]
    assert experimenting[-1] == "NothingToTry"
    assert "dataloaderWorkers 0 -> 3 saves" in next(c.message for c in statuses[-1].conditions if c.type is T.TUNED)


def test_a_compute_bound_job_has_a_short_story() -> None:
    """Measured, and nothing to try."""
    statuses = watch(make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), Truth(phases_s=compute_bound))
    assert story(statuses, T.EXPERIMENTING) == ["NotMeasuredYet", "NothingToTry"]
    assert story(statuses, T.TUNED) == ["NoWin"]

"""A block that finds no place costs nothing, uses up nothing, and is tried again: later each time, and not for ever."""

import asyncio
from dataclasses import dataclass, field

import pytest

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.experiments import Experiment, Loss
from amdahl_loop.domain.plan import Challenge, Halt, Wait
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.room import BESIDE, JITTER, PATIENCE_H, STOPPING, Pace, find_waiting, wait_s
from amdahl_loop.domain.runs import Finished, RunRequest, RunState, Unplaced
from amdahl_loop.domain.tuning import Placement
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, loader_bound
from judge_builders import make_plan

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
JOB = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
FULL = "unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
PENDING_S = 600.0


@dataclass
class FullCluster(SimulatedRunner):
    """A cluster without room until a moment, or of the very same blocks again and again."""

    free_from_s: float = 0.0
    why: str = FULL
    refused: list[tuple[float, str]] = field(default_factory=list)

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Blocks find no place before that moment; the running job is there."""
        if "-o" in request.run or self.now_s >= self.free_from_s:
            await super().submit(job, request)
            return
        self.refused.append((self.now_s, request.run))
        self.runs[request.run] = Unplaced(why=self.why)
        self.now_s += PENDING_S


def live(
    runner: FullCluster, ledger: MemoryLedger, job: TrainingJob = JOB, ticks: int = 500
) -> tuple[list[Wait], list[Reason]]:
    """The loop to its end; its waits, and their reasons."""
    waits: list[Wait] = []

    async def loop() -> None:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        for _ in range(ticks):
            seen = await tick(job, IDENTITY, ports)
            if isinstance(seen.action, Wait):
                waits.append(seen.action)
                runner.now_s = seen.action.until_s
            if isinstance(seen.action, Halt):
                return
        raise AssertionError("the loop does not end")

    asyncio.run(loop())
    return waits, [wait.reason for wait in waits]


def the_experiment(ledger: MemoryLedger) -> Experiment:
    """The only one."""
    (experiment,) = ledger.state.experiments.values()
    return experiment


def test_a_full_cluster_is_waited_for_and_changes_nothing() -> None:
    """The first block is tried until there is room; then blocks, evidence and verdict are those of an empty cluster."""
    empty, full = MemoryLedger(), MemoryLedger()
    live(FullCluster(Truth(phases_s=loader_bound), now_s=1e6), empty)
    runner = FullCluster(Truth(phases_s=loader_bound), now_s=1e6, free_from_s=1e6 + 3 * 3600)
    waits, reasons = live(runner, full)

    found, expected = the_experiment(full), the_experiment(empty)
    assert found.verdict is not None
    assert found.verdict.word is VerdictWord.WON
    assert [record.report for record in found.blocks] == [record.report for record in expected.blocks]
    assert found.held_device_s == expected.held_device_s
    assert {loss.why for loss in found.losses} == {FULL}
    assert set(reasons) == {Reason.NO_SPARE_DEVICES}
    assert len(runner.refused) == len(found.losses) == len(waits) == 6
    assert "2 Insufficient nvidia.com/gpu" in waits[-1].sentence
    assert "tried 6 times" in waits[-1].sentence


@pytest.mark.parametrize(
    ("why", "reason", "said"),
    [
        pytest.param(FULL, Reason.NO_SPARE_DEVICES, "no spare devices", id="no devices"),
        pytest.param(
            "no_checkpoint: the job wrote none for 30 min",
            Reason.NOT_SAVED,
            "has not saved its work",
            id="no checkpoint",
        ),
    ],
)
def test_a_cluster_that_stays_full_ends_the_experiment_undecided(why: str, reason: Reason, said: str) -> None:
    """After a day of tries: Inconclusive, with the reason in words, and not a device-second spent."""
    ledger = MemoryLedger()
    runner = FullCluster(Truth(phases_s=loader_bound), now_s=1e6, free_from_s=1e12, why=why)
    _, reasons = live(runner, ledger)

    experiment = the_experiment(ledger)
    assert experiment.verdict is not None
    assert (experiment.verdict.word, experiment.verdict.reason) == (VerdictWord.INCONCLUSIVE, reason.value)
    assert said in experiment.verdict.sentence
    assert why in experiment.verdict.sentence
    assert (experiment.blocks, experiment.held_device_s) == ((), 0)
    assert set(reasons) == {reason}
    first_s, last_s = runner.refused[0][0], runner.refused[-1][0]
    assert 3600 * (PATIENCE_H - 3) < last_s - first_s < 3600 * (PATIENCE_H + 3)
    assert len(runner.refused) < 24


@dataclass
class TakingCluster(SimulatedRunner):
    """A cluster that takes the first block away so often, with a word of its own."""

    failure: str = ""
    times: int = 0
    taken: int = 0

    async def find(self, run: str) -> RunState:
        """What was submitted of the first block is taken."""
        state = await super().find(run)
        if not (run.endswith("-p0") and isinstance(state, Finished) and self.taken < self.times):
            return state
        self.taken += 1
        return Finished(failure=self.failure, started_at_s=self.now_s, held_device_s=30.0, is_taken=True)


TAKEN = ["preempted", "node_lost: its pod is gone", "evicted: its pod was deleted", "image_pull: x", "rejected: no"]


@pytest.mark.parametrize("failure", TAKEN)
def test_a_first_block_that_the_cluster_takes_is_tried_again(failure: str) -> None:
    """It says nothing of the program: the proof runs later, what was held is charged, and the win is found."""
    ledger = MemoryLedger()
    runner = TakingCluster(Truth(phases_s=loader_bound), now_s=1e6, failure=failure, times=3)
    _, reasons = live(runner, ledger)
    experiment = the_experiment(ledger)
    assert experiment.verdict is not None
    assert experiment.verdict.word is VerdictWord.WON
    assert [loss.why for loss in experiment.losses] == [failure] * 3
    assert set(reasons) == {Reason.NOT_LET_RUN}


def test_a_first_block_that_is_taken_for_a_day_leaves_its_question_open() -> None:
    """Inconclusive, with the cluster's word in the sentence: it is asked again in two weeks, as after any such end."""
    ledger = MemoryLedger()
    live(TakingCluster(Truth(phases_s=loader_bound), now_s=1e6, failure="preempted: by x", times=10**6), ledger)
    experiment = the_experiment(ledger)
    assert experiment.verdict is not None
    assert (experiment.verdict.word, experiment.verdict.reason) == (VerdictWord.INCONCLUSIVE, "NotLetRun")
    assert "preempted: by x" in experiment.verdict.sentence
    assert experiment.blocks == ()


@pytest.mark.parametrize("pace", [BESIDE, STOPPING])
def test_waits_grow_are_bounded_and_spread(pace: Pace) -> None:
    """Twice as long each time, up to a bound; each block spreads by its own name, the same after every restart."""
    for tries in range(1, 60):
        planned_s = min(pace.longest_s, pace.first_s * 2 ** (tries - 1))
        assert (1 - JITTER) * planned_s <= wait_s("e-d0", tries, pace) <= (1 + JITTER) * planned_s
    assert len({wait_s(f"e{number}-d0", 3, pace) for number in range(100)}) > 90


@pytest.mark.parametrize(
    ("placement", "why", "pace"),
    [
        pytest.param(Placement.SPARE, FULL, BESIDE, id="beside the job"),
        pytest.param(Placement.IN_TURN, FULL, STOPPING, id="the job stood still for it"),
        pytest.param(Placement.IN_TURN, "no_checkpoint: none for 30 min", BESIDE, id="the job ran on"),
    ],
)
def test_a_try_for_which_the_job_stood_still_is_not_soon_made_again(placement: Placement, why: str, pace: Pace) -> None:
    """Each one stops training and starts it anew."""
    plan = make_plan()
    run = plan.run_name(plan.blocks[0])
    tried = Experiment(plan=plan).with_loss(Loss(run=run, started_at_s=1000.0, held_device_s=0, why=why))
    waiting = find_waiting(tried, run, placement)
    assert waiting is not None
    assert waiting.wait_s == wait_s(run, 1, pace)


def test_a_job_stands_still_a_few_times_a_day_for_a_trial_that_finds_no_place() -> None:
    """Where it takes turns with its trials; beside them there are three times as many tries, which cost it nothing."""
    tries = {}
    for placement in Placement:
        job = make_job({"dataloaderWorkers": 0}, {"profile": "quick", "trial": {"placement": placement.value}})
        runner = FullCluster(Truth(phases_s=loader_bound), now_s=1e6, free_from_s=1e12)
        live(runner, MemoryLedger(), job)
        tries[placement] = len(runner.refused)
    assert tries[Placement.IN_TURN] <= 7
    assert tries[Placement.SPARE] > 2 * tries[Placement.IN_TURN]


@pytest.mark.parametrize(
    ("now_s", "holds", "is_over"),
    [
        pytest.param(1000.0, True, False, id="just tried"),
        pytest.param(1000.0 + 2 * BESIDE.first_s, False, False, id="tried a while ago"),
        pytest.param(1000.0 - 7 * 86400, False, False, id="a clock that was set back is not waited for"),
        pytest.param(1000.0 + 3600 * PATIENCE_H, False, True, id="tried a day ago for the first time"),
    ],
)
def test_when_a_try_is_due(now_s: float, holds: bool, is_over: bool) -> None:
    """From what is on record alone; a run that was stopped for another reason is no try."""
    plan = make_plan()
    run = plan.run_name(plan.blocks[0])
    experiment = Experiment(plan=plan).with_loss(Loss(run=run, started_at_s=900.0, held_device_s=5.0))
    assert find_waiting(experiment, run, Placement.SPARE) is None
    tried = experiment.with_loss(Loss(run=run, started_at_s=1000.0, held_device_s=0, why=FULL))
    waiting = find_waiting(tried, run, Placement.SPARE)
    assert waiting is not None
    assert waiting.tries == 1
    assert (waiting.holds(now_s), waiting.is_over(now_s)) == (holds, is_over)


def test_a_holdout_block_without_room_does_not_stop_the_loop() -> None:
    """A win in force is tested on when there is room again; nothing waits for it meanwhile."""
    ledger, job = MemoryLedger(), make_job({"dataloaderWorkers": 0}, {"profile": "standard"})
    runner = FullCluster(Truth(phases_s=loader_bound), now_s=1e6)
    live(runner, ledger, job)

    async def later() -> list[object]:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        return [(await tick(job, IDENTITY, ports)).action for _ in range(3)]

    runner.now_s += 30 * 86400
    runner.free_from_s = runner.now_s + 10 * 86400
    submitted, found_full, waiting = asyncio.run(later())
    assert isinstance(submitted, Challenge)
    assert isinstance(found_full, Challenge)
    assert isinstance(waiting, Halt)
    won = next(e for e in ledger.state.experiments.values() if e.verdict and e.verdict.word is VerdictWord.WON)
    assert won.losses[-1].why == FULL


def test_a_block_in_turn_reserves_what_the_job_stands_still() -> None:
    """The budget carries the devices of the job that waits, beside those of the block."""
    spare, in_turn = (
        make_job({"dataloaderWorkers": 0}, {"profile": "quick", "trial": {"placement": placement.value}})
        for placement in Placement
    )
    assert [job.spec.tuning.trial.placement for job in (spare, in_turn)] == list(Placement)
    reserved = []
    for job in (spare, in_turn):

        async def first_block(job: TrainingJob = job) -> float:
            runner, ledger = FullCluster(Truth(phases_s=loader_bound), now_s=1e6), MemoryLedger()
            ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
            for _ in range(10):
                seen = await tick(job, IDENTITY, ports)
                if hasattr(seen.action, "request") and hasattr(seen.action, "spec"):
                    return float(seen.action.request.reserved_device_s())
            raise AssertionError("no block")

        reserved.append(asyncio.run(first_block()))
    assert reserved[1] > reserved[0] + 240

"""The loop killed before and after every write, and every pair of a sample: the end is the same, nothing is run again."""

import asyncio

import pytest

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.plan import Halt, Wait
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import Fuse, Killed, SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
JOB = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})


def live(runner: SimulatedRunner, ledger: MemoryLedger, fuse: Fuse) -> bool:
    """One life of the loop; True when it came to its end."""

    async def loop() -> bool:
        ports = Ports(runner=fuse.wrap(runner), ledger=fuse.wrap(ledger), clock=lambda: 1000.0)
        for _ in range(400):
            if isinstance((await tick(JOB, IDENTITY, ports)).action, Halt):
                return True
        raise AssertionError("the loop does not end")

    try:
        return asyncio.run(loop())
    except Killed:
        return False


def facts(ledger: MemoryLedger) -> Facts:
    """All that is recorded."""
    return ledger.state


def undisturbed() -> tuple[Facts, list[str], int]:
    """Facts, runs and number of writes of a loop that nobody kills."""
    runner, ledger, fuse = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger(), Fuse(None, after=False)
    assert live(runner, ledger, fuse)
    return facts(ledger), runner.submitted, fuse.count


def test_there_is_enough_to_sweep() -> None:
    """A full scenario holds at least forty writes, through a win and its application."""
    recorded, _, writes = undisturbed()

    assert writes >= 40
    assert recorded.applications


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_the_end_is_the_same(after: bool) -> None:
    """Same names, orders, seeds, plans, blocks, verdicts and applications; no finished block is run again."""
    expected, runs, writes = undisturbed()
    for at in range(writes):
        runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()

        assert not live(runner, ledger, Fuse(at, after=after))
        assert live(runner, ledger, Fuse(None, after=False))

        assert facts(ledger) == expected, f"killed at write {at}"
        assert runner.submitted == runs, f"killed at write {at}"


def test_killed_twice_the_end_is_the_same() -> None:
    """The second life is cut as well, at a sample of places."""
    expected, runs, writes = undisturbed()
    for first in range(1, writes, 7):
        for second in range(0, writes - first, 11):
            runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
            assert not live(runner, ledger, Fuse(first, after=True))
            live(runner, ledger, Fuse(second, after=False))
            live(runner, ledger, Fuse(None, after=False))

            assert facts(ledger) == expected, f"killed at writes {first} and {second}"
            assert runner.submitted == runs


def test_a_run_that_died_with_the_loop_is_run_again_under_its_name() -> None:
    """The machine went down with the loop: the unrecorded block is repeated, with the same name and the same plan."""
    expected, runs, writes = undisturbed()
    for at in range(0, writes, 3):
        runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
        live(runner, ledger, Fuse(at, after=True))
        runner.runs.clear()
        live(runner, ledger, Fuse(None, after=False))

        assert list(facts(ledger).experiments) == list(expected.experiments)
        assert [e.plan for e in facts(ledger).experiments.values()] == [e.plan for e in expected.experiments.values()]
        assert [e.verdict and e.verdict.word for e in facts(ledger).experiments.values()] == ["Won"]
        assert sorted(set(runner.submitted)) == sorted(set(runs))
        assert len(runner.submitted) <= len(runs) + 1


TUNED = make_job({"dataloaderWorkers": 0}, {"profile": "standard"})
DAY_S = 86_400.0
DAYS = 5


def no_gain(_: Knobs) -> dict[Phase, float]:
    """The input has become fast."""
    return {Phase.COMPUTE: 0.05, Phase.INPUT: 0.0}


def tune() -> tuple[Facts, float]:
    """What is recorded once a win was applied under a profile that tests it on, and when that was."""
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()

    async def loop() -> None:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        while not isinstance(action := (await tick(TUNED, IDENTITY, ports)).action, Halt):
            runner.now_s = action.until_s if isinstance(action, Wait) else runner.now_s

    asyncio.run(loop())
    return ledger.state, runner.now_s


def live_on(start_s: float, runner: SimulatedRunner, ledger: MemoryLedger, fuse: Fuse) -> None:
    """The days after: a loop a day, started anew at once where it is killed."""

    async def loop() -> None:
        ports = Ports(runner=fuse.wrap(runner), ledger=fuse.wrap(ledger), clock=lambda: runner.now_s)
        for day in range(1, DAYS + 1):
            runner.now_s = max(runner.now_s, start_s + 1.01 * day * DAY_S)
            is_over = False
            while not is_over:
                try:
                    is_over = (await tick(TUNED, IDENTITY, ports)).is_over
                except Killed:
                    continue

    asyncio.run(loop())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_a_win_is_tested_on_the_end_is_the_same(after: bool) -> None:
    """Holdout blocks, the roll-back and the observation after it: each exactly once, under the same names."""
    tuned, start_s = tune()
    truth, fuse = Truth(phases_s=no_gain), Fuse(None, after=False)
    expected, undisturbed_runner = MemoryLedger(tuned), SimulatedRunner(truth, now_s=start_s)
    live_on(start_s, undisturbed_runner, expected, fuse)
    assert [application.kind.value for application in facts(expected).applications] == ["applied", "rolledBack"]
    assert fuse.count >= 10

    for at in range(fuse.count):
        runner, ledger = SimulatedRunner(truth, now_s=start_s), MemoryLedger(tuned)
        live_on(start_s, runner, ledger, Fuse(at, after=after))

        assert facts(ledger) == facts(expected), f"killed at write {at}"
        assert runner.submitted == undisturbed_runner.submitted, f"killed at write {at}"

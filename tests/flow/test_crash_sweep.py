"""The loop killed before and after every write, and every pair of a sample: the end is the same, nothing is run again."""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.domain.plan import Halt
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
JOB = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
WRITES = ("add_observation", "add_plan", "add_block", "add_verdict", "add_application", "submit", "stop")


class Killed(BaseException):
    """SIGKILL: nothing catches it."""


class Fuse:
    """Counts writes of the loop and kills it before or after a given one."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.count, self.at, self.after = 0, at, after

    def wrap(self, target: Any) -> Any:
        """The same object, its writes counted."""
        return _Fused(target, self)


class _Fused:
    def __init__(self, target: Any, fuse: Fuse) -> None:
        self._target, self._fuse = target, fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if name not in WRITES:
            return method

        async def counted(*args: Any) -> Any:
            mine = self._fuse.count
            self._fuse.count += 1
            if mine == self._fuse.at and not self._fuse.after:
                raise Killed
            result = await method(*args)
            if mine == self._fuse.at and self._fuse.after:
                raise Killed
            return result

        return counted


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

"""A loop that waits for its next check holds nothing, and can be stopped and started again."""

import asyncio

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.cli.chronicle import Chronicle
from amdahl_loop.cli.drive import drive
from amdahl_loop.domain.plan import Wait
from amdahl_loop.domain.runs import RunState
from amdahl_loop.reconcile import Identity, Ports, Tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)


class StopAtWait:
    """A watch that stops the loop at its first wait, as a user with Ctrl-C would."""

    def __init__(self) -> None:
        self.stop, self.lines, self._chronicle = asyncio.Event(), list[str](), Chronicle()

    def ticked(self, latest: Tick) -> None:
        """Keep what the log would say."""
        self.lines.extend(self._chronicle.tell(latest))
        if isinstance(latest.action, Wait):
            self.stop.set()

    def polled(self, state: RunState) -> None:
        """Nothing to see."""


def test_a_waiting_loop_stops_at_once_and_says_when_it_would_go_on() -> None:
    """The wait is told with its reason and its end; a loop started at that time runs the check."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "standard"})
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)

    async def watch_once() -> tuple[Tick, list[str]]:
        watch = StopAtWait()
        return await drive(job, IDENTITY, ports, watch, watch.stop), watch.lines

    first, lines = asyncio.run(watch_once())
    assert isinstance(first.action, Wait)
    assert runner.runs == {}
    assert "check 1 of 5 waits" in lines[-1]

    runner.now_s = first.action.until_s
    second, _ = asyncio.run(watch_once())
    assert isinstance(second.action, Wait)
    assert "check 2 of 5 waits" in second.action.sentence

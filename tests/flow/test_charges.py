"""Device time that brought no evidence is charged as well: what a run had held when it was stopped with its loop."""

import asyncio
from pathlib import Path

import pytest

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import Lost, parse_export
from amdahl_loop.cli.drive import drive
from amdahl_loop.cli.replay import replay
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import Experiment, Loss, Plan, find_owner
from amdahl_loop.domain.plan import Launch
from amdahl_loop.domain.runs import Finished, RunState
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.ports import LedgerStore
from amdahl_loop.reconcile import Identity, Ports, Tick, sweep
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, loader_bound
from judge_builders import make_plan, make_record

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
JOB = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})


class StopAtLaunch:
    """A watch that stops the loop while block number `at` is in flight; never, where `at` is None."""

    def __init__(self, at: int | None) -> None:
        self.stop, self._at, self._seen = asyncio.Event(), at, set[str]()

    def ticked(self, latest: Tick) -> None:
        """Count the blocks that were launched."""
        if isinstance(latest.action, Launch) and latest.is_waiting:
            self._seen.add(latest.action.request.run)
            if len(self._seen) == self._at:
                self.stop.set()

    def polled(self, state: RunState) -> None:
        """Nothing to see."""


def live(ledger: LedgerStore, runner: SimulatedRunner, stop_at: int | None = None) -> Tick:
    """One loop, stopped while a block runs or left to its end."""

    async def turn() -> Tick:
        watch = StopAtLaunch(stop_at)
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
        return await drive(JOB, IDENTITY, ports, watch, watch.stop)

    return asyncio.run(turn())


def test_a_block_that_is_stopped_with_its_loop_is_charged() -> None:
    """The experiment pays for it, the block is run again under its name, and the verdict is the same."""
    undisturbed = MemoryLedger()
    live(undisturbed, SimulatedRunner(Truth(phases_s=loader_bound)))
    (expected,) = undisturbed.state.experiments.values()

    ledger, runner = MemoryLedger(), SimulatedRunner(Truth(phases_s=loader_bound))
    live(ledger, runner, stop_at=3)
    (stopped,) = ledger.state.experiments.values()
    assert [loss.run for loss in stopped.losses] == [
        stopped.plan.run_name(stopped.plan.stage_blocks(Stage.DISCOVERY)[1])
    ]
    assert len(stopped.blocks) == 2

    live(ledger, runner)
    (found,) = ledger.state.experiments.values()
    assert found.verdict is not None
    assert found.verdict.word is VerdictWord.WON
    assert [record.report for record in found.blocks] == [record.report for record in expected.blocks]
    (loss,) = found.losses
    assert loss.held_device_s > 0
    assert found.held_device_s == pytest.approx(expected.held_device_s + loss.held_device_s)


def test_a_stopped_observation_is_charged_to_no_experiment() -> None:
    """Observing a job is no experiment's cost, stopped or not."""
    ledger, runner = MemoryLedger(), SimulatedRunner(Truth(phases_s=loader_bound))
    watch = StopAtLaunch(None)
    watch.stop.set()
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    asyncio.run(drive(JOB, IDENTITY, ports, watch, watch.stop))

    assert runner.submitted
    assert runner.runs == {}
    assert not ledger.state.experiments


def test_what_is_recorded_is_not_charged_twice() -> None:
    """A loop was killed between the record of a block and the end of its traces: the next one sweeps them for free."""
    plan = make_plan()
    record = make_record(plan, plan.blocks[0])
    ledger, runner = MemoryLedger(), SimulatedRunner(Truth(phases_s=loader_bound))

    async def scenario() -> None:
        await ledger.add_plan(plan)
        await ledger.add_block(plan.name, record)
        for spec in plan.blocks[:2]:
            runner.runs[plan.run_name(spec)] = Finished(started_at_s=5.0, held_device_s=7.0)
        await sweep(Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0))

    asyncio.run(scenario())
    (experiment,) = ledger.state.experiments.values()
    lost = plan.run_name(plan.blocks[1])
    assert experiment.losses == (Loss(run=lost, started_at_s=5.0, held_device_s=7.0),)


@pytest.mark.parametrize(
    ("run", "owner"),
    [
        pytest.param("job-e1-d3", "job-e1", id="a block"),
        pytest.param("job-e1-r0-1", "job-e1", id="a check"),
        pytest.param("job-e1-h0", "job-e1", id="a holdout block"),
        pytest.param("job-e1-x-d0", "job-e1-x", id="an experiment whose name begins with another's"),
        pytest.param("job-e1-p0", None, id="recorded already"),
        pytest.param("job-ffffffff-o0", None, id="an observation"),
        pytest.param("job-e10-d0", None, id="an experiment of another ledger"),
    ],
)
def test_a_run_tells_whose_it_is(run: str, owner: str | None) -> None:
    """By the experiment's name that it begins with."""
    plans: list[Plan] = [make_plan(name=name) for name in ("job-e1", "job-e1-x")]
    recorded = Experiment(plan=plans[0], blocks=(make_record(plans[0], plans[0].blocks[0]),))

    found = find_owner(run, (recorded, Experiment(plan=plans[1])))

    assert (found.name if found else None) == owner


def test_a_stopped_run_is_kept_exported_and_replayed(tmp_path: Path) -> None:
    """The charge is part of the record; a replay derives every decision around it and comes to the same entries."""
    runner = SimulatedRunner(Truth(phases_s=loader_bound))
    with SqliteLedger.open(tmp_path / "ledger.db") as ledger:
        live(ledger, runner, stop_at=4)
        live(ledger, runner)
        bodies = tuple(parse_export(ledger.export_lines()))

    decisions = asyncio.run(replay(bodies))

    assert sum(isinstance(body, Lost) for body in bodies) == 1
    assert len(decisions) == len(bodies) - 1
    assert [decision.difference for decision in decisions if decision.difference] == []

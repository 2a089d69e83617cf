"""The whole loop on a simulated machine: from a manifest to a proven, applied win, and never further."""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import effective_knobs
from amdahl_loop.domain.plan import Halt, Wait
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Phase, WindowOutcome
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, compute_bound, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
MANY_TICKS = 400


def run_loop(job: TrainingJob, runner: SimulatedRunner, ledger: MemoryLedger) -> Halt:
    """Tick until nothing is left to do."""

    async def loop() -> Halt:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
        for _ in range(MANY_TICKS):
            seen = await tick(job, IDENTITY, ports)
            if isinstance(seen.action, Halt):
                return seen.action
        raise AssertionError("the loop does not end")

    return asyncio.run(loop())


def knobs_in_force(job: TrainingJob, ledger: MemoryLedger) -> Knobs:
    """Declared values under the ledger's overlay."""
    return effective_knobs(job.spec.knobs, ledger.state.applications)


def verdicts(ledger: MemoryLedger) -> list[tuple[str, VerdictWord]]:
    """Every experiment's question and answer, in order."""
    closed: list[Experiment] = [e for e in ledger.state.experiments.values() if e.verdict is not None]
    return [(e.plan.hypothesis.key, e.verdict.word) for e in closed if e.verdict is not None]


def test_an_input_bound_job_is_tuned_and_the_win_is_applied() -> None:
    """The loader law's worker count is proposed, survives every check and takes effect."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()

    halt = run_loop(job, runner, ledger)

    assert verdicts(ledger) == [("dataloaderWorkers:0>3", VerdictWord.WON)]
    assert knobs_in_force(job, ledger).dataloader_workers == 3
    assert not halt.failed


def short_passes(knobs: Knobs) -> dict[Phase, float]:
    """10 ms to issue each of a step's passes, and 5 ms of arithmetic a sample, a third more where it is done again."""
    passes = 16 / (knobs.micro_batch or 16)
    again = 4 / 3 if knobs.activation_checkpointing == "block" else 1.0
    return {Phase.COMPUTE: 0.010 * passes + 0.005 * 16 * again}


def test_knobs_of_the_step_are_tuned_one_after_the_other() -> None:
    """Passes first, which promise more; then what is computed twice. A word of a knob is applied as a number is."""
    job = make_job({"microBatch": 1, "activationCheckpointing": "block"}, {"profile": "quick"})
    runner, ledger = SimulatedRunner(Truth(phases_s=short_passes, live=True)), MemoryLedger()

    run_loop(job, runner, ledger)

    won = [key for key, word in verdicts(ledger) if word is VerdictWord.WON]
    assert won[:2] == ["microBatch:1>8", "activationCheckpointing:block>none"]
    assert knobs_in_force(job, ledger).activation_checkpointing == "none"
    assert all(not e.plan.live for e in ledger.state.experiments.values())


def test_a_compute_bound_job_costs_no_trial() -> None:
    """Nothing to win, nothing spent [P]; the sentence says so."""
    job = make_job({"dataloaderWorkers": 0, "gpusPerReplica": 1}, {"profile": "quick"})
    runner, ledger = SimulatedRunner(Truth(phases_s=compute_bound)), MemoryLedger()

    halt = run_loop(job, runner, ledger)

    assert len(runner.submitted) == 1
    assert verdicts(ledger) == []
    assert "computes" in halt.sentence


def test_nothing_is_run_twice() -> None:
    """A second loop on the same ledger starts no process and ends with the same sentence."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    ledger = MemoryLedger()
    first = run_loop(job, SimulatedRunner(Truth(phases_s=loader_bound)), ledger)

    runner = SimulatedRunner(Truth(phases_s=loader_bound))
    second = run_loop(job, runner, ledger)

    assert runner.submitted == []
    assert second == first


def test_a_knob_without_effect_is_no_gain_and_stays_so() -> None:
    """The job ignores the knob: the verdict is NoGain, the value stays, and the question is never asked again."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    truth = Truth(phases_s=lambda _: loader_bound(Knobs(dataloader_workers=0)))
    ledger = MemoryLedger()

    run_loop(job, SimulatedRunner(truth), ledger)

    assert verdicts(ledger) == [("dataloaderWorkers:0>3", VerdictWord.NO_GAIN)]
    assert knobs_in_force(job, ledger).dataloader_workers == 0


@pytest.mark.parametrize("outcome", [WindowOutcome.CRASH, WindowOutcome.OOM, WindowOutcome.HANG])
def test_a_variant_that_fails_loses(outcome: WindowOutcome) -> None:
    """A crash, an exhausted memory or a hang of the variant is a finding, never missing data."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    truth = Truth(
        phases_s=loader_bound, outcome=lambda knobs: outcome if knobs.dataloader_workers else WindowOutcome.OK
    )
    ledger = MemoryLedger()

    run_loop(job, SimulatedRunner(truth), ledger)

    assert verdicts(ledger) == [("dataloaderWorkers:0>3", VerdictWord.VETOED)]
    assert knobs_in_force(job, ledger).dataloader_workers == 0


def test_less_work_is_vetoed_before_any_statistics() -> None:
    """A variant that halves its batch is four times as fast and wins nothing."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    truth = Truth(phases_s=loader_bound, batch=lambda knobs: 8 if knobs.dataloader_workers else 16)
    ledger = MemoryLedger()

    run_loop(job, SimulatedRunner(truth), ledger)

    (experiment,) = ledger.state.experiments.values()
    assert experiment.verdict is not None
    assert (experiment.verdict.word, experiment.verdict.vetoes[0].name) == (VerdictWord.VETOED, "work")


def test_a_job_that_cannot_be_observed_fails_in_words() -> None:
    """A training that crashes by itself is nobody's experiment."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    truth = Truth(phases_s=loader_bound, outcome=lambda _: WindowOutcome.CRASH)

    halt = run_loop(job, SimulatedRunner(truth), MemoryLedger())

    assert halt.failed
    assert "the training process failed, exit code 1" in halt.sentence


def test_an_applied_value_under_which_the_job_dies_is_taken_back() -> None:
    """The re-observation fails after the win was applied: back to the old value at once."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    ledger = MemoryLedger()
    runner = SimulatedRunner(Truth(phases_s=loader_bound))
    asyncio.run(_until_applied(job, runner, ledger))
    runner.truth = Truth(
        phases_s=loader_bound, outcome=lambda k: WindowOutcome.CRASH if k.dataloader_workers else WindowOutcome.OK
    )

    run_loop(job, runner, ledger)

    assert [application.kind.value for application in ledger.state.applications] == ["applied", "rolledBack"]
    assert knobs_in_force(job, ledger).dataloader_workers == 0


async def _until_applied(job: TrainingJob, runner: SimulatedRunner, ledger: MemoryLedger) -> None:
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    for _ in range(MANY_TICKS):
        await tick(job, IDENTITY, ports)
        if ledger.state.applications:
            return
    raise AssertionError("nothing was applied")


@pytest.mark.parametrize("mode", ["Observe", "Recommend"])
def test_modes_that_may_not_apply_do_not(mode: str) -> None:
    """Observe starts no trial; Recommend proves the win and leaves it to the owner."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick", "mode": mode})
    ledger = MemoryLedger()

    run_loop(job, SimulatedRunner(Truth(phases_s=loader_bound)), ledger)

    assert ledger.state.applications == ()
    assert bool(verdicts(ledger)) == (mode == "Recommend")


def test_the_budget_ends_an_experiment() -> None:
    """When the device-hours are gone, the open experiment closes as inconclusive and says so."""
    ledger, runner = MemoryLedger(), SimulatedRunner(Truth(phases_s=loader_bound))
    asyncio.run(_until_blocks(make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), runner, ledger, count=3))

    run_loop(
        make_job({"dataloaderWorkers": 0}, {"profile": "quick", "budget": {"deviceHours": "0.001"}}), runner, ledger
    )

    (experiment,) = ledger.state.experiments.values()
    assert experiment.verdict is not None
    assert (experiment.verdict.word, experiment.verdict.reason) == (VerdictWord.INCONCLUSIVE, "BudgetExhausted")
    assert "0.001 device-hours (tuning.budget.deviceHours) is spent" in experiment.verdict.sentence


async def _until_blocks(job: TrainingJob, runner: SimulatedRunner, ledger: MemoryLedger, count: int) -> None:
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    while sum(len(experiment.blocks) for experiment in ledger.state.experiments.values()) < count:
        await tick(job, IDENTITY, ports)


def test_an_owner_s_change_cancels_the_open_experiment() -> None:
    """A third value in the manifest is a new baseline: what was running compared something else."""
    ledger, runner = MemoryLedger(), SimulatedRunner(Truth(phases_s=loader_bound))
    asyncio.run(_until_experiment(make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), runner, ledger))

    run_loop(make_job({"dataloaderWorkers": 1}, {"profile": "quick"}), runner, ledger)

    first = next(iter(ledger.state.experiments.values()))
    assert first.verdict is not None
    assert (first.verdict.word, first.verdict.reason) == (VerdictWord.INCONCLUSIVE, "Cancelled")


async def _until_experiment(job: TrainingJob, runner: SimulatedRunner, ledger: MemoryLedger) -> None:
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    while not ledger.state.experiments:
        await tick(job, IDENTITY, ports)


def test_a_past_win_of_the_family_comes_first_and_skips_only_discovery() -> None:
    """Another job of the same family starts from the kin's win; every refute check and veto still has to pass."""
    ledger = MemoryLedger()
    run_loop(
        make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), SimulatedRunner(Truth(phases_s=loader_bound)), ledger
    )
    kin = Identity(job_uid="local-kin", fingerprint="b" * 16, family=FAMILY)
    runner = SimulatedRunner(Truth(phases_s=loader_bound))

    async def loop() -> None:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: 2000.0)
        for _ in range(MANY_TICKS):
            seen = await tick(make_job({"dataloaderWorkers": 0}, {"profile": "quick"}), kin, ports)
            if seen.is_over:
                return

    asyncio.run(loop())

    second = list(ledger.state.experiments.values())[1]
    assert (second.plan.hypothesis.source, second.verdict and second.verdict.word) == ("prior", VerdictWord.WON)
    assert not any("-d" in run for run in runner.submitted)


def test_another_job_s_win_on_the_same_work_is_proven_again_before_it_is_applied() -> None:
    """The same fingerprint under another name: the kin's win is a first hypothesis, not an answer."""
    ledger = MemoryLedger()
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
    run_loop(job, SimulatedRunner(Truth(phases_s=loader_bound)), ledger)
    twin = Identity(job_uid="local-twin", fingerprint=FINGERPRINT, family=FAMILY)

    async def loop() -> None:
        ports = Ports(runner=SimulatedRunner(Truth(phases_s=loader_bound)), ledger=ledger, clock=lambda: 2000.0)
        for _ in range(MANY_TICKS):
            if (await tick(job, twin, ports)).is_over:
                return

    asyncio.run(loop())

    second = list(ledger.state.experiments.values())[1]
    assert (second.plan.job_uid, second.plan.hypothesis.source) == ("local-twin", "prior")
    assert [application.job_uid for application in ledger.state.applications] == [UID, "local-twin"]


@pytest.mark.parametrize(
    ("tuning", "budget_h", "origin"),
    [
        ({}, 10.0, "a twentieth of 200 device-hours ahead, assumed; set tuning.expectedDeviceHours"),
        ({"expectedDeviceHours": "2"}, 0.1, "a twentieth of 2 device-hours ahead, tuning.expectedDeviceHours"),
        ({"budget": {"deviceHours": "3"}}, 3.0, "tuning.budget.deviceHours"),
    ],
)
def test_a_default_budget_is_a_share_of_the_work_ahead(tuning: dict[str, Any], budget_h: float, origin: str) -> None:
    """No figure: a twentieth of the device-hours ahead, and it says where that came from."""
    assert make_job(tuning=tuning).budget_device_hours == (pytest.approx(budget_h), origin)


def test_an_experiment_that_the_budget_cannot_carry_is_not_begun() -> None:
    """The sentence names the figures and the field to raise."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "quick", "budget": {"deviceHours": "0.001"}})
    ledger = MemoryLedger()

    halt = run_loop(job, SimulatedRunner(Truth(phases_s=loader_bound)), ledger)

    assert verdicts(ledger) == []
    assert "Budget exhausted: 0 of 0.001 device-hours (tuning.budget.deviceHours)" in halt.sentence
    assert "Raise tuning.budget.deviceHours" in halt.sentence


def test_checks_of_the_standard_profile_are_spread_over_the_day() -> None:
    """The loop waits for each check, holds nothing meanwhile, and the win then stands at five times of the day."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "standard"})
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
    waits: list[Wait] = []

    async def loop() -> None:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        for _ in range(MANY_TICKS):
            seen = await tick(job, IDENTITY, ports)
            if isinstance(seen.action, Wait):
                assert not runner.runs
                waits.append(seen.action)
                runner.now_s = seen.action.until_s
            if isinstance(seen.action, Halt):
                return

    asyncio.run(loop())

    assert verdicts(ledger)[0][1] is VerdictWord.WON
    assert len(waits) == 5
    assert waits[-1].until_s - waits[0].until_s >= 16 * 3600
    assert "check 1 of 5 waits: checks keep 4 h from each other" in waits[0].sentence


def test_a_clock_that_went_back_does_not_make_the_loop_wait_for_years() -> None:
    """Discovery is dated in the future: the check runs now; whether it counts is the judge's to say."""
    job = make_job({"dataloaderWorkers": 0}, {"profile": "standard"})
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound), now_s=1e9), MemoryLedger()

    halt = run_loop(job, runner, ledger)

    assert verdicts(ledger)
    assert not halt.failed

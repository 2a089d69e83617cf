"""Life after a win: it is tested on, taken back once its saving is gone, and nothing is run that nobody asked for."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import parse_export
from amdahl_loop.cli.replay import replay
from amdahl_loop.domain.bank import balance
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, effective_knobs
from amdahl_loop.domain.plan import Admission, Challenge, Halt, Rollback, Wait
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Running
from amdahl_loop.domain.telemetry import Phase, WindowOutcome
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.ports import LedgerStore
from amdahl_loop.reconcile import Identity, Ports, Tick, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import COMPUTE_S, SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
DAY_S = 86400.0
START_S = 1_000_000.0
MANY_TICKS = 400
REFUSED = Admission(admitted=False, reason=Reason.OWNER_FIRST, sentence="2 pods of default wait for devices")

Phases = Callable[[Knobs], dict[Phase, float]]


def no_gain(_: Knobs) -> dict[Phase, float]:
    """The input is fast again: workers change nothing."""
    return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0}


def make_tuned_job(profile: str = "standard", mode: str = "Auto", **knobs: int) -> TrainingJob:
    """An input-bound job."""
    return make_job({"dataloaderWorkers": 0, **knobs}, {"profile": profile, "mode": mode})


def settle(job: TrainingJob, runner: SimulatedRunner, ledger: LedgerStore) -> Halt:
    """Tick until nothing is left to do, waiting where the loop waits."""

    async def loop() -> Halt:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        for _ in range(MANY_TICKS):
            seen = await tick(job, IDENTITY, ports)
            if isinstance(seen.action, Halt):
                return seen.action
            if isinstance(seen.action, Wait):
                runner.now_s = seen.action.until_s
        raise AssertionError("the loop does not end")

    return asyncio.run(loop())


def look(job: TrainingJob, runner: SimulatedRunner, ledger: LedgerStore, **known: object) -> Tick:
    """One pass with what a cluster may know."""
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
    return asyncio.run(tick(job, IDENTITY, ports, **known))  # type: ignore[arg-type] # the test names its own


def tune(job: TrainingJob, phases_s: Phases = loader_bound) -> tuple[SimulatedRunner, MemoryLedger]:
    """A job whose win was proven and applied; the same job is tuned once for all tests."""
    key = (job.model_dump_json(), phases_s)
    if key not in TUNED:
        runner, ledger = SimulatedRunner(Truth(phases_s=phases_s), now_s=START_S), MemoryLedger()
        settle(job, runner, ledger)
        assert ledger.state.applications
        TUNED[key] = (ledger.state, runner.now_s)
    facts, now_s = TUNED[key]
    return SimulatedRunner(Truth(phases_s=phases_s), now_s=now_s), MemoryLedger(facts)


TUNED: dict[tuple[str, Phases], tuple[Facts, float]] = {}


def pass_days(
    count: int, job: TrainingJob, runner: SimulatedRunner, ledger: LedgerStore, start_s: float | None = None
) -> None:
    """The loop is started once on each of the following days."""
    start_s = runner.now_s if start_s is None else start_s
    for day in range(1, count + 1):
        runner.now_s = max(runner.now_s, start_s + day * 1.01 * DAY_S)
        settle(job, runner, ledger)


def holdouts(ledger: MemoryLedger, number: int = 0) -> list[str]:
    """Names of the blocks after the verdict of experiment `number`."""
    experiment = list(ledger.state.experiments.values())[number]
    return [record.spec.name for record in experiment.stage_records(Stage.HOLDOUT)]


def kinds(ledger: MemoryLedger) -> list[str]:
    """What happened to values in force, in order."""
    return [application.kind.value for application in ledger.state.applications]


def in_force(job: TrainingJob, ledger: MemoryLedger) -> Knobs:
    """Declared values under the ledger's overlay."""
    return effective_knobs(job.spec.knobs, ledger.state.applications)


def test_a_win_is_tested_on_once_a_day_for_a_month() -> None:
    """Each start runs the block that is due and ends; after thirty there are no more; the win stands."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    assert holdouts(ledger) == []

    pass_days(5, job, runner, ledger)
    assert holdouts(ledger) == [f"h{index}" for index in range(5)]
    pass_days(30, job, runner, ledger)

    assert holdouts(ledger) == [f"h{index}" for index in range(30)]
    assert kinds(ledger) == ["applied"]


def test_a_loop_that_was_away_runs_one_block_not_all_that_were_due() -> None:
    """On one machine nobody starts the loop every day: what is due runs first at the next start, once."""
    job = make_tuned_job()
    runner, ledger = tune(job)

    runner.now_s += 10 * DAY_S
    halt = settle(job, runner, ledger)

    assert holdouts(ledger) == ["h0"]
    assert not halt.failed


def test_nothing_is_waited_for_between_two_blocks() -> None:
    """With no experiment open the loop ends; it does not wait a day for the next block."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    runner.now_s += 0.9 * DAY_S

    assert isinstance(look(job, runner, ledger).action, Halt)
    assert holdouts(ledger) == []


def test_a_win_that_is_gone_is_taken_back_and_not_tried_again() -> None:
    """The input becomes fast: three blocks say so, the old value is back, the reason holds the numbers."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    pass_days(4, job, runner, ledger)
    runner.truth = Truth(phases_s=no_gain)
    applied = ledger.state.applications[0]

    pass_days(10, job, runner, ledger)

    assert kinds(ledger) == ["applied", "rolledBack"]
    assert in_force(job, ledger).dataloader_workers == 0
    assert holdouts(ledger) == [f"h{index}" for index in range(7)]
    assert ledger.state.applications[1].experiment == applied.experiment
    experiments = list(ledger.state.experiments.values())
    assert [e.verdict and e.verdict.word for e in experiments] == [VerdictWord.WON]


def test_its_credit_is_clawed_back_and_its_blocks_are_paid_for() -> None:
    """Gross less claw-back is nothing; what testing cost stays spent."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    (won,) = ledger.state.experiments.values()
    before = balance([won], ledger.state.applications, 200.0, run_h={won.name: 100.0})
    assert before.net_h > 0

    runner.truth = Truth(phases_s=no_gain)
    pass_days(4, job, runner, ledger)
    (faded,) = ledger.state.experiments.values()
    after = balance([faded], ledger.state.applications, 200.0, run_h={won.name: 100.0})

    assert after.accrued == after.clawed_back
    assert after.projected.expected_h == 0
    assert after.spent_h > before.spent_h
    assert after.net_h == pytest.approx(-after.spent_h)


def test_a_win_of_which_a_part_is_left_stays_and_is_credited_with_that_part() -> None:
    """Half of the saving is gone: taking it back would lose the other half; the bank stops claiming the first."""

    def half_as_slow(knobs: Knobs) -> dict[Phase, float]:
        return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0 if knobs.dataloader_workers else 0.02}

    job = make_tuned_job()
    runner, ledger = tune(job)
    (won,) = ledger.state.experiments.values()
    claimed_h = balance([won], ledger.state.applications, 100.0).projected.expected_h
    runner.truth = Truth(phases_s=half_as_slow)

    pass_days(12, job, runner, ledger)

    assert kinds(ledger) == ["applied"]
    (kept,) = ledger.state.experiments.values()
    assert claimed_h > 60
    assert balance([kept], ledger.state.applications, 100.0).projected.expected_h == pytest.approx(28.6, abs=2)


def test_a_variant_that_fails_in_a_row_is_taken_back() -> None:
    """One crash may be the machine's; three blocks in a row are the value's."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    pass_days(1, job, runner, ledger)
    runner.truth = Truth(
        phases_s=loader_bound, outcome=lambda k: WindowOutcome.OOM if k.dataloader_workers else WindowOutcome.OK
    )

    pass_days(2, job, runner, ledger)
    assert kinds(ledger) == ["applied"]
    pass_days(1, job, runner, ledger)

    assert kinds(ledger) == ["applied", "rolledBack"]


def test_a_variant_that_does_other_work_is_taken_back_at_once() -> None:
    """Half the samples a step is no win, however fast: one block is enough."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    runner.truth = Truth(phases_s=loader_bound, batch=lambda knobs: 8 if knobs.dataloader_workers else 16)

    pass_days(1, job, runner, ledger)

    assert (holdouts(ledger), kinds(ledger)) == (["h0"], ["applied", "rolledBack"])


def test_the_quick_profile_tests_nothing_on() -> None:
    """Its loop ends with its last idea, and costs nothing afterwards."""
    job = make_tuned_job("quick")
    runner, ledger = tune(job)
    submitted = len(runner.submitted)

    pass_days(3, job, runner, ledger)

    assert len(runner.submitted) == submitted


@pytest.mark.parametrize("mode", ["Observe", "Recommend"])
def test_modes_that_may_not_apply_take_nothing_back(mode: str) -> None:
    """An owner who changes the mode keeps the values in force, and pays for no block."""
    runner, ledger = tune(make_tuned_job())
    submitted = len(runner.submitted)
    runner.truth = Truth(phases_s=no_gain)

    pass_days(5, make_tuned_job(mode=mode), runner, ledger)

    assert len(runner.submitted) == submitted
    assert kinds(ledger) == ["applied"]


def test_an_owner_s_third_value_ends_the_testing() -> None:
    """The value that was proven is not in force any more; should it be won again, it is that new win that is tested."""
    runner, ledger = tune(make_tuned_job())
    job = make_job({"dataloaderWorkers": 2}, {"profile": "standard"})

    pass_days(5, job, runner, ledger)

    assert in_force(job, ledger).dataloader_workers == 3
    assert holdouts(ledger, 0) == []
    assert holdouts(ledger, 1) != []


def test_a_budget_that_does_not_carry_the_block_is_not_exceeded() -> None:
    """The win stays untested; nothing is spent that was not granted."""
    runner, ledger = tune(make_tuned_job())
    spent_h = sum(e.held_device_s for e in ledger.state.experiments.values()) / 3600
    job = make_job(
        {"dataloaderWorkers": 0}, {"profile": "standard", "budget": {"deviceHours": f"{spent_h + 0.05:.4f}"}}
    )

    pass_days(3, job, runner, ledger)

    assert holdouts(ledger) == []


def test_a_clock_that_was_set_back_starts_no_series_of_blocks() -> None:
    """One block at once at the new time, then the usual distance."""
    job = make_tuned_job()
    runner, ledger = tune(job)
    runner.now_s -= 100 * DAY_S

    settle(job, runner, ledger)
    settle(job, runner, ledger)

    assert holdouts(ledger) == ["h0"]


def test_a_small_win_is_tested_less_often() -> None:
    """A block may cost a tenth of what the win saves: at 4 % saved, more than a day lies between two."""

    def small(knobs: Knobs) -> dict[Phase, float]:
        return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0055 if knobs.dataloader_workers else 0.008}

    job = make_job({"dataloaderWorkers": 0}, {"profile": "standard", "expectedDeviceHours": "2000"})
    runner, ledger = tune(job, small)

    pass_days(12, job, runner, ledger)

    assert 4 <= len(holdouts(ledger)) <= 9


class TestTogether:
    """Two wins in force, the second proven on top of the first."""

    @staticmethod
    def both(knobs: Knobs) -> dict[Phase, float]:
        """Workers hide the loader; fewer processes do not take turns."""
        processes = knobs.gpus_per_replica or 1
        return {
            Phase.COMPUTE: COMPUTE_S,
            Phase.INPUT: 0.0 if knobs.dataloader_workers else 0.06,
            Phase.COMM: 0.09 if processes > 1 else 0.0,
        }

    @staticmethod
    def without_loader(knobs: Knobs) -> dict[Phase, float]:
        """The first win is gone, the second stays."""
        return TestTogether.both(knobs) | {Phase.INPUT: 0.0}

    def test_each_win_is_tested_and_only_the_one_that_faded_is_undone(self) -> None:
        """The later win's value stays in force when the earlier one is taken back."""
        job = make_job(
            {"dataloaderWorkers": 0, "gpusPerReplica": 2}, {"profile": "standard", "budget": {"deviceHours": "100"}}
        )
        runner, ledger = tune(job, self.both)
        won = [e.plan.hypothesis.knob.value for e in ledger.state.experiments.values() if is_won(e)]
        assert sorted(won) == ["dataloaderWorkers", "gpusPerReplica"]
        tuned = in_force(job, ledger)

        pass_days(2, job, runner, ledger)
        assert [len(holdouts(ledger, number)) for number in range(2)] == [2, 2]
        runner.truth = Truth(phases_s=self.without_loader)
        pass_days(8, job, runner, ledger)

        assert kinds(ledger).count("rolledBack") == 1
        assert in_force(job, ledger) == tuned.model_copy(update={"dataloader_workers": 0})


def is_won(experiment: Experiment) -> bool:
    """Whether it ended as a win."""
    return experiment.verdict is not None and experiment.verdict.word is VerdictWord.WON


class TestInACluster:
    """What only a cluster knows: others come first, and a job that crashes under its new value."""

    def test_a_block_that_is_not_admitted_waits_and_gives_up_what_runs(self) -> None:
        """The run is stopped within the pass, its time is charged, the same block runs later under its name."""
        job = make_tuned_job()
        runner, ledger = tune(job)
        runner.now_s += 1.01 * DAY_S
        first = look(job, runner, ledger).action
        assert isinstance(first, Challenge)
        held_s = runner.runs[first.request.run].held_device_s  # type: ignore[union-attr] # it has just finished

        class Slow(SimulatedRunner):
            async def find(self, run: str) -> Running:
                del run
                return Running()

        slow = Slow(runner.truth, now_s=runner.now_s, runs=runner.runs)
        waits = look(job, slow, ledger, admit=lambda _: REFUSED).action

        assert isinstance(waits, Wait)
        assert (waits.gives_up, waits.sentence) == (first.request.run, REFUSED.sentence)
        (experiment,) = ledger.state.experiments.values()
        assert [(loss.run, loss.held_device_s) for loss in experiment.losses] == [(first.request.run, held_s)]
        assert holdouts(ledger) == []
        settle(job, runner, ledger)
        assert holdouts(ledger) == ["h0"]

    def test_a_run_that_was_over_before_others_came_is_kept(self) -> None:
        """Its evidence is there already: it is recorded once trials may run again."""
        job = make_tuned_job()
        runner, ledger = tune(job)
        runner.now_s += 1.01 * DAY_S
        look(job, runner, ledger)
        submitted = len(runner.submitted)

        assert isinstance(look(job, runner, ledger, admit=lambda _: REFUSED).action, Wait)
        look(job, runner, ledger)

        assert holdouts(ledger) == ["h0"]
        assert len(runner.submitted) == submitted

    def test_a_crash_looping_value_is_taken_back_at_once(self) -> None:
        """No block and no statistics: the pass that hears of it takes the value back, the next one has nothing left."""
        job = make_tuned_job()
        runner, ledger = tune(job)

        action = look(job, runner, ledger, failing="the trainer crashed 4 times in 5 min").action
        assert isinstance(action, Rollback)
        assert kinds(ledger) == ["applied", "rolledBack"]

        halt = look(job, runner, ledger, failing="the trainer crashed 5 times in 6 min").action
        assert isinstance(halt, Halt)
        assert (halt.failed, halt.sentence) == (True, "the trainer crashed 5 times in 6 min")

    def test_why_it_was_taken_back_is_kept_and_replayed(self, tmp_path: Path) -> None:
        """What the cluster reported is part of the record, so that a replay comes to the same roll-back."""
        job = make_tuned_job("quick")
        runner = SimulatedRunner(Truth(phases_s=loader_bound), now_s=START_S)
        with SqliteLedger.open(tmp_path / "ledger.db") as ledger:
            settle(job, runner, ledger)
            look(job, runner, ledger, failing="the trainer crashed 4 times in 5 min")
            bodies = tuple(parse_export(ledger.export_lines()))

        decisions = asyncio.run(replay(bodies))

        assert isinstance(bodies[-1], Application)
        assert bodies[-1].failing == "the trainer crashed 4 times in 5 min"
        assert [decision.difference for decision in decisions if decision.difference] == []

    def test_nothing_is_opened_without_admission(self) -> None:
        """The job is observed, which costs it nothing; the first trial waits for its turn, and says why."""
        job = make_tuned_job()
        runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound), now_s=START_S), MemoryLedger()
        for _ in range(2):
            look(job, runner, ledger, admit=lambda _: REFUSED)

        action = look(job, runner, ledger, admit=lambda _: REFUSED).action

        assert isinstance(action, Halt)
        assert action.sentence == REFUSED.sentence
        assert ledger.state.experiments == {}


def test_the_whole_life_of_a_win_can_be_replayed(tmp_path: Path) -> None:
    """Won, applied, tested on, faded, taken back: every entry is derived anew from those before it."""
    job = make_tuned_job()
    runner = SimulatedRunner(Truth(phases_s=loader_bound), now_s=START_S)
    with SqliteLedger.open(tmp_path / "ledger.db") as ledger:
        settle(job, runner, ledger)
        pass_days(3, job, runner, ledger)
        runner.truth = Truth(phases_s=no_gain)
        pass_days(5, job, runner, ledger)
        bodies = tuple(parse_export(ledger.export_lines()))

    decisions = asyncio.run(replay(bodies))

    assert [body.kind.value for body in bodies if isinstance(body, Application)] == ["applied", "rolledBack"]
    assert [f"{decision.entry}: {decision.difference}" for decision in decisions if decision.difference] == []

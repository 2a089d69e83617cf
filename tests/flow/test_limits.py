"""A limit that is set while an experiment runs, or after it has won: an owner's or an administrator's word always counts."""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import ApplicationKind
from amdahl_loop.domain.plan import Apply, Challenge, Halt
from amdahl_loop.domain.policy import TuningPolicySpec, constrain
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.tuning import Mode
from amdahl_loop.domain.verdicts import CANCELLED, VerdictWord
from amdahl_loop.domain.withholding import find_ban, is_withheld
from amdahl_loop.reconcile import Identity, Ports, Tick, tick
from builders import FAMILY, FINGERPRINT, UID, make_application, make_job
from fakes import SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
MANY_TICKS = 400


def make_tuned(**tuning: Any) -> TrainingJob:
    """The job that waits for its input, with these wishes."""
    return make_job({"dataloaderWorkers": 0}, {"profile": "quick", **tuning})


def capped(most: int) -> TrainingJob:
    """The same under an administrator's policy."""
    policy = TuningPolicySpec.model_validate({"knobs": {"dataloaderWorkers": {"max": most}}})
    return constrain(make_tuned(), {"policy": policy}).job


LIMITS = {
    "Observe": (make_tuned(mode="Observe"), "tuning.mode is Observe"),
    "pinned": (make_tuned(pin=["dataloaderWorkers"]), "dataloaderWorkers is pinned"),
    "a lower bound": (make_tuned(knobs={"dataloaderWorkers": {"max": 2}}), "dataloaderWorkers 3 is outside [0, 2]"),
    "an administrator's bound": (capped(1), "dataloaderWorkers 3 is outside [0, 1]"),
}
"""What may be set against a win of three workers, and the words for it."""


async def advance_until(kind: type[Any], job: TrainingJob, runner: SimulatedRunner, ledger: MemoryLedger) -> Tick:
    """Tick until such an action was decided."""
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
    for _ in range(MANY_TICKS):
        seen = await tick(job, IDENTITY, ports)
        if isinstance(seen.action, kind):
            return seen
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize(("job", "said"), LIMITS.values(), ids=LIMITS)
def test_a_limit_ends_the_experiment_that_breaks_it(job: TrainingJob, said: str) -> None:
    """The next pass cancels it with the limit's name, and no block more is run; what the limit allows may be tried."""
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
    asyncio.run(advance_until(Challenge, make_tuned(), runner, ledger))
    submitted = list(runner.submitted)
    asyncio.run(advance_until(Halt, job, runner, ledger))
    experiment = next(iter(ledger.state.experiments.values()))
    assert experiment.verdict is not None
    assert (experiment.verdict.word, experiment.verdict.reason) == (VerdictWord.INCONCLUSIVE, CANCELLED)
    assert said in experiment.verdict.sentence
    assert [run for run in runner.submitted[len(submitted) :] if run.startswith(experiment.name)] == []
    assert all(a.knobs.dataloader_workers in (1, 2) for a in ledger.state.applications)


@pytest.mark.parametrize("job", [job for job, _ in LIMITS.values()], ids=LIMITS)
def test_a_win_that_breaks_a_limit_is_not_applied(job: TrainingJob) -> None:
    """Its blocks show it, and it stays on record; without the limit it is applied."""
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
    recommending = make_tuned(mode="Recommend")
    asyncio.run(advance_until(Halt, recommending, runner, ledger))
    (won,) = ledger.state.experiments.values()
    assert won.is_won
    limited, free = MemoryLedger(ledger.state), MemoryLedger(ledger.state)
    asyncio.run(advance_until(Halt, job, runner, limited))
    assert won.name not in [a.experiment for a in limited.state.applications]
    asyncio.run(advance_until(Apply, make_tuned(), runner, free))
    assert [(a.experiment, a.knobs.dataloader_workers) for a in free.state.applications] == [(won.name, 3)]


def test_a_job_that_has_ended_closes_its_experiment() -> None:
    """It cannot be tried on any more; nothing is left that counts as running."""
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound)), MemoryLedger()
    asyncio.run(advance_until(Challenge, make_tuned(), runner, ledger))

    async def end() -> list[str]:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: 1000.0)
        seen = [await tick(make_tuned(), IDENTITY, ports, paused=True, ended=True) for _ in range(2)]
        return [type(one.action).__name__ for one in seen]

    assert asyncio.run(end()) == ["Judge", "Halt"]
    (experiment,) = ledger.state.experiments.values()
    assert experiment.verdict is not None
    assert experiment.verdict.sentence == "Inconclusive: the job has ended."


@pytest.mark.parametrize(
    ("job", "declared", "withheld"),
    [
        (make_tuned(), 0, False),
        (make_tuned(mode="Overlay"), 0, False),
        (make_tuned(mode="Spec"), 0, True),
        (make_tuned(mode="Recommend"), 0, True),
        (make_tuned(mode="Observe"), 0, True),
        (make_tuned(pin=["dataloaderWorkers"]), 0, True),
        (capped(1), 0, True),
        (capped(3), 0, False),
        (capped(1), 3, False),
    ],
    ids=["Auto", "Overlay", "Spec", "Recommend", "Observe", "pinned", "capped", "within", "declared by its owner"],
)
def test_an_overlay_stands_and_falls_with_its_owner_s_word(job: TrainingJob, declared: int, withheld: bool) -> None:
    """Three workers were proven over none; what the spec itself holds is never withheld by a limit."""
    none, three = Knobs(dataloader_workers=0), Knobs(dataloader_workers=3)
    application = make_application(three, ApplicationKind.APPLIED, "e0", declared=none)
    job = job.with_knobs(Knobs(dataloader_workers=declared))
    assert is_withheld(job, [application]) is withheld
    assert (find_ban(job, [application]) is None) is (not withheld or job.spec.tuning.mode is not Mode.AUTO)

"""Class, sentence and ceilings: one row per shape of waste."""

from typing import Any

import pytest

from amdahl_loop.domain.diagnosis import Bottleneck, diagnose, weigh_cadence, workers_needed
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.phases import Unobservable, account
from amdahl_loop.domain.telemetry import Phase, Saves, WindowOutcome
from builders import make_job, make_observation, make_window, see

ALL_KNOBS = {"dataloaderWorkers": 0, "checkpointEverySteps": 1000, "gpusPerReplica": 1}
RARE = {"checkpoint": {"meanTimeBetweenInterruptions": "10m", "maxLostWork": "30m"}}
SHORT = {"expectedDeviceHours": "0.01"}


@pytest.mark.parametrize(
    ("window", "knobs", "tuning", "expected"),
    [
        ({"shares": {"input": 0.6}}, {}, {}, Bottleneck.INPUT_BOUND),
        ({"shares": {"input": 0.04}}, {}, {}, Bottleneck.COMPUTE_BOUND),
        ({"shares": {"comm": 0.3, "input": 0.1}, "devices": 2}, {}, {}, Bottleneck.COMM_BOUND),
        ({"shares": {"other": 0.3}}, {}, {}, Bottleneck.UNCLEAR),
        ({"shares": {"eval": 0.3}}, {}, {}, Bottleneck.UNCLEAR),
        ({"startup_s": 20.0}, {}, SHORT, Bottleneck.STARTUP_BOUND),
        ({"startup_s": 20.0}, {}, {}, Bottleneck.COMPUTE_BOUND),
        ({"devices": 4, "shares": {"comm": 0.2}}, {"gpusPerReplica": 4}, {}, Bottleneck.OVERSIZED),
        ({"batch_s": 0.5}, {"dataloaderWorkers": 8}, {}, Bottleneck.OVERSIZED),
        ({"batch_s": 0.01}, {"dataloaderWorkers": 8}, {}, Bottleneck.COMPUTE_BOUND),
        ({"batch_s": 0.5, "shares": {"input": 0.4}}, {"dataloaderWorkers": 8}, {}, Bottleneck.INPUT_BOUND),
        ({"devices": 2, "straggler": (1, 300)}, {"gpusPerReplica": 2}, {}, Bottleneck.STRAGGLER),
        ({"devices": 2, "straggler": (1, 20)}, {"gpusPerReplica": 2}, {}, Bottleneck.COMPUTE_BOUND),
        (
            {"shares": {"checkpoint": 0.4}, "saves": Saves(count=10, block_s=0.2), "quiet_step_s": 0.06},
            {"checkpointEverySteps": 5},
            {},
            Bottleneck.CHECKPOINT_BOUND,
        ),
        (
            {
                "shares": {"checkpoint": 0.14, "other": 0.16},
                "saves": Saves(count=10, block_s=0.07),
                "quiet_step_s": 0.07,
            },
            {"checkpointEverySteps": 5},
            {},
            Bottleneck.CHECKPOINT_BOUND,
        ),
        ({"saves": Saves(count=3, block_s=0.02)}, {"checkpointEverySteps": 5000}, RARE, Bottleneck.CHECKPOINT_BOUND),
    ],
)
def test_each_shape_of_waste_has_its_class(
    window: dict[str, Any], knobs: dict[str, Any], tuning: dict[str, Any], expected: Bottleneck
) -> None:
    """The first rule that holds names the class, and its sentence holds a number."""
    job = make_job(ALL_KNOBS | knobs, tuning)
    breakdown = see(job, make_window(**window))

    diagnosis = diagnose(breakdown, job, weigh_cadence(breakdown, job))

    assert diagnosis.bottleneck is expected
    assert any(character.isdigit() for character in diagnosis.sentence)


def test_the_ceiling_is_amdahls() -> None:
    """60 % input can be removed at most: 2.5 times the speed."""
    job = make_job({"dataloaderWorkers": 0})

    diagnosis = diagnose(see(job, make_window(shares={"input": 0.6})), job, None)

    (ceiling,) = diagnosis.ceilings
    assert (ceiling.knob, round(ceiling.speedup, 2)) == (KnobName.DATALOADER_WORKERS, 2.5)


def test_only_declared_and_unpinned_knobs_have_a_ceiling() -> None:
    """What the job does not declare, or its owner has pinned, is not the loop's to change."""
    job = make_job({"dataloaderWorkers": 0, "prefetchFactor": 2}, {"pin": ["prefetchFactor"]})

    diagnosis = diagnose(see(job, make_window(shares={"input": 0.6})), job, None)

    assert [ceiling.knob for ceiling in diagnosis.ceilings] == [KnobName.DATALOADER_WORKERS]


def test_waste_is_counted_in_devices() -> None:
    """Four devices computing half of the time waste two device-hours an hour."""
    job = make_job({"gpusPerReplica": 4})
    breakdown = see(job, make_window(devices=4, shares={"comm": 0.5}, startup_s=0.0), cpus=8)

    assert diagnose(breakdown, job, None).wasted_devices == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("batch_s", "step_s", "workers"), [(0.24, 0.06, 4), (0.05, 0.06, 1), (0.061, 0.06, 1), (0.07, 0.06, 2)]
)
def test_the_loader_law_gives_the_worker_count(batch_s: float, step_s: float, workers: int) -> None:
    """ceil(t_batch / t_step), a hair under a whole number not counting as another worker."""
    assert workers_needed(batch_s, step_s) == workers


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (
            {"outcome": WindowOutcome.CRASH, "exit_code": 1, "why": "ValueError: x"},
            "failed, exit code 1 (ValueError: x)",
        ),
        ({"outcome": WindowOutcome.NO_STEPS}, "no optimizer step was seen"),
        ({"outcome": WindowOutcome.OOM}, "ran out of memory"),
    ],
)
def test_an_unusable_observation_says_why(window: dict[str, Any], said: str) -> None:
    """A job that cannot be observed is told so in words."""
    job = make_job()

    seen = account(make_observation(job, make_window(**window)), 200.0, job.spec.tuning.checkpoint)

    assert isinstance(seen, Unobservable)
    assert said in seen.sentence


def test_the_cost_of_a_save_comes_from_the_window_that_saw_most() -> None:
    """The plain window saw no save; the forced one did."""
    job = make_job({"checkpointEverySteps": 1000})
    forced = make_window(index=1, saves=Saves(count=4, block_s=0.5))

    assert see(job, make_window(), forced).saves == Saves(count=4, block_s=0.5)


def test_shares_are_the_job_s_own() -> None:
    """Shares in trials are compared with these parts per thousand."""
    job = make_job()

    ppk = see(job, make_window(shares={"input": 0.25})).shares_ppk

    assert (sum(ppk), ppk[list(Phase).index(Phase.INPUT)]) == (1000, 250)

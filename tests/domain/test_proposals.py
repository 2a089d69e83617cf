"""Rules, screen and spend gate: what is proposed, what is refused, what is worth its cost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.diagnosis import Bottleneck, diagnose, weigh_cadence
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.ledger import JobMemory
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.proposals import predict_step_s, propose
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.screening import screen
from amdahl_loop.domain.spending import hit_rate, weigh
from amdahl_loop.domain.telemetry import Phase, Saves
from builders import make_job, make_window, see


def ideas(job: TrainingJob, *windows: Any, cpus: int = 4) -> list[str]:
    """Every proposal of the rules, as text, most promising first."""
    breakdown = see(job, *windows, cpus=cpus)
    cadence = weigh_cadence(breakdown, job)
    found = propose(breakdown, diagnose(breakdown, job, cadence), job, cadence)
    return [", ".join(str(change) for change in hypothesis.changes) for hypothesis in found]


SAVING = Saves(count=4, block_s=0.2)


@pytest.mark.parametrize(
    ("knobs", "tuning", "window", "expected"),
    [
        # The loader law gives the count: 150 ms a batch behind a 50 ms step.
        ({"dataloaderWorkers": 0}, {}, {"step_s": 0.2, "shares": {"input": 0.75}, "batch_s": 0.15}, "dataloaderWorkers 0 -> 3"),
        # The owner's bound wins over the law.
        (
            {"dataloaderWorkers": 0},
            {"knobs": {"dataloaderWorkers": {"max": 2}}},
            {"step_s": 0.2, "shares": {"input": 0.75}, "batch_s": 0.15},
            "dataloaderWorkers 0 -> 2",
        ),
        # Workers and prefetch go together where loading is uneven.
        (
            {"dataloaderWorkers": 0, "prefetchFactor": 2},
            {},
            {"step_s": 0.2, "shares": {"input": 0.75}, "batch_s": 0.15, "cv": 1.0},
            "dataloaderWorkers 0 -> 3, prefetchFactor 2 -> 8",
        ),
        # Enough workers on average, but uneven batches: depth alone.
        (
            {"dataloaderWorkers": 2, "prefetchFactor": 2},
            {},
            {"step_s": 0.13, "shares": {"input": 0.25}, "batch_s": 0.12, "cv": 1.0},
            "prefetchFactor 2 -> 8",
        ),
        # Workers keep up and yet the job waits: they may be started anew each epoch.
        (
            {"dataloaderWorkers": 2, "persistentWorkers": False},
            {},
            {"step_s": 0.1, "shares": {"input": 0.3}, "batch_s": 0.02},
            "persistentWorkers False -> True",
        ),
        # Fewer is a legal move.
        ({"dataloaderWorkers": 8}, {}, {"step_s": 0.1, "shares": {"input": 0.3}, "batch_s": 0.02}, "dataloaderWorkers 8 -> 1"),
        # Crowded CPUs: one process a CPU.
        ({"gpusPerReplica": 8}, {}, {"devices": 8, "shares": {"comm": 0.2}}, "gpusPerReplica 8 -> 4"),
        # Waiting for each other so much that half the devices are hardly slower.
        ({"gpusPerReplica": 4}, {}, {"devices": 4, "shares": {"comm": 0.6}}, "gpusPerReplica 4 -> 2"),
        # Wall time as the objective: more processes.
        ({"gpusPerReplica": 1}, {"objective": "WallTime"}, {"devices": 1}, "gpusPerReplica 1 -> 2"),
        # Saving too often.
        (
            {"checkpointEverySteps": 5},
            {},
            {"step_s": 0.09, "quiet_step_s": 0.05, "shares": {"checkpoint": 0.44}, "saves": SAVING},
            "checkpointEverySteps 5 ->",
        ),
    ],
)  # fmt: skip
def test_each_bottleneck_has_its_rule(
    knobs: dict[str, Any], tuning: dict[str, Any], window: dict[str, Any], expected: str
) -> None:
    """The most promising idea is the one an expert would try first."""
    found = ideas(make_job(knobs, tuning), make_window(**window))

    assert found
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("knobs", "window"),
    [
        ({"dataloaderWorkers": 0, "gpusPerReplica": 1, "checkpointEverySteps": 100}, {"shares": {"input": 0.02}}),
        ({"gpusPerReplica": 2}, {"devices": 2, "shares": {"comm": 0.1}}),
        ({"dataloaderWorkers": 2}, {"shares": {"input": 0.01}}),
        ({}, {"shares": {"input": 0.9}}),
    ],
)
def test_a_compute_bound_job_is_left_alone(knobs: dict[str, Any], window: dict[str, Any]) -> None:
    """No waste that a declared knob could remove: no idea, hence no trial [P]; scaling well must not shrink."""
    assert ideas(make_job(knobs), make_window(**window)) == []


SHARES = st.floats(0.0, 0.09)


@given(
    waste=st.fixed_dictionaries({"input": SHARES, "comm": SHARES, "other": SHARES}),
    workers=st.integers(0, 16),
    batch_s=st.floats(0.001, 2.0),
    cv=st.floats(0.0, 2.0),
    devices=st.integers(1, 4),
)
def test_no_trial_is_proposed_for_a_compute_bound_job(
    waste: dict[str, float], workers: int, batch_s: float, cv: float, devices: int
) -> None:
    """Whatever the loader and the shares: what is called compute-bound costs zero trials [P]."""
    knobs = {"dataloaderWorkers": workers, "prefetchFactor": 2, "persistentWorkers": False, "gpusPerReplica": devices}
    job = make_job(knobs)
    breakdown = see(job, make_window(shares=waste, batch_s=batch_s, cv=cv, devices=devices, startup_s=0.0), cpus=4)
    diagnosis = diagnose(breakdown, job, None)

    found = propose(breakdown, diagnosis, job, None)

    if diagnosis.bottleneck is Bottleneck.COMPUTE_BOUND:
        assert found == ()


def test_the_loader_law_predicts_the_simulated_steps() -> None:
    """t_b = 240 ms, t_c = 60 ms: 300, 240, 120, 80, 60, 60 ms (research, mission 5)."""
    breakdown = see(make_job(), make_window(step_s=0.3, shares={"input": 0.8}))

    predicted = [predict_step_s(breakdown, workers, 0.24) for workers in (0, 1, 2, 3, 4, 6)]

    assert predicted == pytest.approx([0.3, 0.24, 0.12, 0.08, 0.06, 0.06])


def change(knob: KnobName = KnobName.DATALOADER_WORKERS, before: Any = 0, after: Any = 2) -> Hypothesis:
    """A hypothesis of one change, as an outsider might write it."""
    return Hypothesis(
        changes=(Change(knob=knob, before=before, after=after),),
        phase=Phase.INPUT,
        expected_gain=0.3,
        source=Source.CLAUDE,
        rationale="because",
    )


@pytest.mark.parametrize(
    ("hypothesis", "reason"),
    [
        (change(), None),
        (change(after=99), "dataloaderWorkers 99 is outside [0, 8]"),
        (change(after=0), "is 0 already"),
        (change(before=3), "is 0 now, not 3"),
        (change(after=True), "takes a whole number, not True"),
        (change(KnobName.PREFETCH_FACTOR, before=None), "is not declared under spec.knobs"),
        (change(KnobName.PIN_MEMORY, before=False, after=1), "takes true or false, not 1"),
        (change(KnobName.CHECKPOINT_EVERY_STEPS, before=50, after=100), "is pinned by its owner"),
        (change(KnobName.REPLICAS, before=1, after=2), "is never offered"),
        (change(KnobName.ACTIVATION_CHECKPOINTING, before="block", after="none"), None),
        (
            change(KnobName.ACTIVATION_CHECKPOINTING, before="block", after="all"),
            "activationCheckpointing takes none or block or selective, not 'all'",
        ),
        (change(KnobName.ACTIVATION_CHECKPOINTING, before="block", after=1), "takes none or block or selective, not 1"),
        (change(KnobName.ACTIVATION_CHECKPOINTING, before="none", after="selective"), "is block now, not none"),
        (change(KnobName.DATA_PARALLEL, before="fsdp", after="ddp"), "is not declared under spec.knobs"),
        (change(KnobName.MICRO_BATCH, before=2, after=99), "microBatch 99 is outside [1, 16]"),
        (change(KnobName.MICRO_BATCH, before=2, after="8"), "takes a whole number, not '8'"),
        (change(KnobName.COMPILE, before=False, after=1), "takes true or false, not 1"),
    ],
)
def test_the_screen_says_why(hypothesis: Hypothesis, reason: str | None) -> None:
    """Typed, bounded, declared, unpinned: everything else is refused with its reason."""
    job = make_job(
        {"dataloaderWorkers": 0, "pinMemory": False, "checkpointEverySteps": 50}
        | {"activationCheckpointing": "block", "microBatch": 2, "compile": False},
        {"knobs": {"dataloaderWorkers": {"max": 8}, "microBatch": {"max": 16}}, "pin": ["checkpointEverySteps"]},
    )

    screened = screen([hypothesis], job, cpus=4)

    if reason is None:
        assert screened.kept == (hypothesis,)
    else:
        assert reason in screened.rejected[0].reason


@pytest.mark.parametrize(
    ("hypothesis", "reason"),
    [
        (change(KnobName.COMPILE, before=False, after=True), "the program does not take compile"),
        (change(KnobName.MICRO_BATCH, before=2, after=16), None),
        (change(KnobName.PREFETCH_FACTOR, before=2, after=8), None),
    ],
)
def test_what_the_program_does_not_take_is_not_tried(hypothesis: Hypothesis, reason: str | None) -> None:
    """It said so as it was observed. What only has no loader workers yet may get them by the same proposal."""
    job = make_job({"compile": False, "microBatch": 2, "prefetchFactor": 2})
    breakdown = see(job, make_window(ignored=("compile", "prefetchFactor")))

    screened = screen([hypothesis], job, breakdown.cpus, breakdown.ignored)

    assert [rejected.reason.split(";")[0] for rejected in screened.rejected] == ([reason] if reason else [])
    assert len(screened.kept) == (reason is None)


def test_the_same_idea_twice_is_kept_once() -> None:
    """A past win and a rule may propose the same change."""
    screened = screen([change(), change()], make_job(), cpus=4)

    assert (len(screened.kept), screened.rejected[0].reason) == (1, "proposed already")


@given(after=st.integers(-(10**9), 10**9), knob=st.sampled_from(list(KnobName)))
def test_nothing_out_of_bounds_passes_the_screen(after: int, knob: KnobName) -> None:
    """Whatever number is proposed for whatever knob, what passes lies within the owner's bounds."""
    job = make_job({"dataloaderWorkers": 0, "gpusPerReplica": 2}, {"knobs": {"dataloaderWorkers": {"max": 8}}})
    hypothesis = change(knob, before=job.spec.knobs.get(knob), after=after)

    for kept in screen([hypothesis], job, cpus=4).kept:
        assert 0 <= kept.changes[0].after <= 8


@pytest.mark.parametrize(("hours", "is_worth"), [("200", True), ("0.001", False), ("0", False)])
def test_the_spend_gate_asks_what_lies_ahead(hours: str, is_worth: bool) -> None:
    """The same idea is worth an experiment on a long job and not on a short one, and the sentence says whence the hours."""
    job = make_job({"dataloaderWorkers": 0}, {"expectedDeviceHours": hours})
    breakdown = see(job, make_window(shares={"input": 0.5}))

    (worth,) = weigh([change()], breakdown, job, PROFILES["quick"], JobMemory())

    assert (worth.expected_bank_h > 0) == is_worth
    assert "tuning.expectedDeviceHours" in worth.sentence


def test_assumed_hours_are_called_assumed() -> None:
    """Where nobody said what lies ahead, the sentence says that it was assumed."""
    job = make_job()

    (worth,) = weigh([change()], see(job, make_window(shares={"input": 0.5})), job, PROFILES["quick"], JobMemory())

    assert "assumed; set tuning.expectedDeviceHours" in worth.sentence


def test_a_hit_rate_starts_at_one_in_two() -> None:
    """No history, no opinion."""
    assert hit_rate(KnobName.DATALOADER_WORKERS, {}) == 0.5

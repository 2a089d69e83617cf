"""Does an administrator's cap always win, and is every cap that bites said?"""

import itertools
from typing import Any

import pytest

from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.knobs import is_tunable, legal_range
from amdahl_loop.domain.policy import TuningPolicySpec, cap_parallel_trials, constrain
from amdahl_loop.domain.tuning import Mode
from builders import make_job


def make_policy(**spec: Any) -> TuningPolicySpec:
    """A policy as it would be parsed."""
    return TuningPolicySpec.model_validate(spec)


REACH = {Mode.OBSERVE: 0, Mode.RECOMMEND: 1, Mode.OVERLAY: 2, Mode.SPEC: 2, Mode.AUTO: 3}
"""How far each mode goes; Overlay and Spec do different things, neither more."""


@pytest.mark.parametrize(
    ("asked", "allowed", "found"),
    [
        ("Auto", None, "Auto"),
        ("Auto", ["Auto"], "Auto"),
        ("Auto", ["Observe", "Recommend"], "Recommend"),
        ("Auto", ["Overlay", "Recommend"], "Overlay"),
        ("Auto", ["Overlay", "Spec"], "Spec"),
        ("Auto", ["Observe"], "Observe"),
        ("Spec", ["Auto", "Overlay"], "Observe"),
        ("Spec", ["Auto", "Recommend"], "Recommend"),
        ("Overlay", ["Spec", "Auto"], "Observe"),
        ("Overlay", ["Recommend"], "Recommend"),
        ("Recommend", ["Auto"], "Observe"),
        ("Observe", ["Auto"], "Observe"),
    ],
)
def test_a_mode_gives_way_to_the_strongest_that_does_no_more(asked: str, allowed: list[str] | None, found: str) -> None:
    """Never a mode that the policy does not allow, never one that does what the owner did not ask for."""
    job = make_job(tuning={"mode": asked})
    constrained = constrain(job, {"house": make_policy(**({"modes": allowed} if allowed else {}))})

    assert constrained.job.spec.tuning.mode == found
    assert constrained.sentences == (
        ()
        if asked == found
        else (f"TuningPolicy house: mode {asked} becomes {found}; allowed are {', '.join(allowed or [])}.",)
    )


@pytest.mark.parametrize("asked", Mode)
def test_no_set_of_modes_widens_what_its_owner_asked_for(asked: Mode) -> None:
    """For every mode and every set of allowed ones: the result is allowed, or it is Observe; and it does no more."""
    for count in range(1, len(Mode) + 1):
        for allowed in itertools.combinations(Mode, count):
            found = constrain(make_job(tuning={"mode": asked}), {"p": make_policy(modes=allowed)}).job.spec.tuning.mode

            assert found in (*allowed, Mode.OBSERVE)
            assert found is asked or REACH[found] < REACH[asked]


@pytest.mark.parametrize(
    ("tuning", "cap", "hours", "said"),
    [
        ({}, None, 10.0, None),
        ({}, "20", 10.0, None),
        ({}, "4", 4.0, "the budget of 10 device-hours becomes 4."),
        ({"budget": {"deviceHours": "3"}}, "4", 3.0, None),
        ({"budget": {"deviceHours": "30"}}, "4", 4.0, "the budget of 30 device-hours becomes 4."),
        ({"expectedDeviceHours": "20"}, "4", 1.0, None),
        ({"budget": {"deviceHours": "1"}}, "0", 0.0, "the budget of 1 device-hours becomes 0."),
    ],
)
def test_a_budget_is_never_above_the_cap(
    tuning: dict[str, Any], cap: str | None, hours: float, said: str | None
) -> None:
    """The cap holds for what the owner wrote, and for the default where nothing was written."""
    constrained = constrain(make_job(tuning=tuning), {"p": make_policy(budget={"deviceHours": cap} if cap else {})})

    assert constrained.job.budget_device_hours[0] == hours
    assert constrained.sentences == ((f"TuningPolicy p: {said}",) if said else ())


@pytest.mark.parametrize(("asked", "cap", "found"), [(1, None, 1), (4, 8, 4), (4, 2, 2), (4, 4, 4)])
def test_trials_at_once_are_capped(asked: int, cap: int | None, found: int) -> None:
    """One job may not have more trials at once than its whole namespace."""
    job = make_job(tuning={"budget": {"parallelTrials": asked}})
    constrained = constrain(job, {"p": make_policy(budget={"parallelTrials": cap} if cap else {})})

    assert constrained.job.spec.tuning.budget.parallel_trials == found
    assert bool(constrained.sentences) == (asked != found)


@pytest.mark.parametrize(
    ("own", "cap", "legal", "said"),
    [
        ({}, {}, (0, 4), None),
        ({}, {"max": 2}, (0, 2), "dataloaderWorkers is tried and applied within at most 2 only."),
        ({"max": 8}, {"max": 2}, (0, 2), "dataloaderWorkers is tried and applied within at most 2 only."),
        ({"max": 2}, {"max": 8}, (0, 2), None),
        (
            {"min": 1, "max": 6},
            {"min": 2, "max": 8},
            (2, 6),
            "dataloaderWorkers is tried and applied within 2 to 6 only.",
        ),
        ({"min": 2}, {"min": 1}, (2, 4), None),
        ({}, {"max": 64}, (0, 4), "dataloaderWorkers is tried and applied within at most 64 only."),
        ({"max": 16}, {"max": 12}, (0, 12), "dataloaderWorkers is tried and applied within at most 12 only."),
    ],
)
def test_knobs_stay_within_both_limits(
    own: dict[str, int], cap: dict[str, int], legal: tuple[int, int], said: str | None
) -> None:
    """The narrower end of each counts; only the owner's own maximum may lead beyond the CPUs that are there."""
    job = make_job({"dataloaderWorkers": 2}, tuning={"knobs": {"dataloaderWorkers": own}})
    constrained = constrain(job, {"p": make_policy(knobs={"dataloaderWorkers": cap})})

    assert legal_range(constrained.job, KnobName.DATALOADER_WORKERS, cpus=4) == legal
    assert constrained.sentences == ((f"TuningPolicy p: {said}",) if said else ())


def test_a_knob_without_a_legal_value_is_left_alone() -> None:
    """Where owner and policy leave no value between them, the loop does not touch the knob, and says so."""
    job = make_job({"dataloaderWorkers": 16}, tuning={"knobs": {"dataloaderWorkers": {"min": 10}}})
    constrained = constrain(job, {"p": make_policy(knobs={"dataloaderWorkers": {"max": 8}})})

    assert not is_tunable(constrained.job, KnobName.DATALOADER_WORKERS)
    assert constrained.sentences == (
        "TuningPolicy p: dataloaderWorkers is left alone: at least 10 is what its owner allows, at most 8 the policy.",
    )


def test_what_the_owner_runs_with_is_the_owners() -> None:
    """A cap bounds what the loop tries: the declared value, replicas and template stay as they are."""
    job = make_job({"dataloaderWorkers": 16})
    constrained = constrain(job, {"p": make_policy(knobs={"dataloaderWorkers": {"max": 8}})})

    assert constrained.job.spec.knobs == job.spec.knobs
    assert constrained.job.spec.template == job.spec.template
    assert legal_range(constrained.job, KnobName.DATALOADER_WORKERS, cpus=12) == (0, 8)


def test_a_limit_of_a_knob_that_is_not_declared_needs_no_word() -> None:
    """A cap on a knob that the job leaves to its program changes nothing that anybody could see."""
    constrained = constrain(make_job(), {"p": make_policy(knobs={"gpusPerReplica": {"max": 2}})})

    assert constrained.sentences == ()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_several_policies_the_strictest_word_counts(order: tuple[str, ...]) -> None:
    """In whatever order they are listed: the lowest budget, the narrowest range, the modes that all allow, any pause."""
    named = {
        "a": make_policy(modes=["Auto", "Overlay"], budget={"deviceHours": "4"}, knobs={"dataloaderWorkers": {"max": 8}}),
        "b": make_policy(
            modes=["Overlay", "Recommend"], budget={"deviceHours": "2"}, knobs={"dataloaderWorkers": {"min": 1, "max": 6}},
            paused=True,
        ),
    }  # fmt: skip
    constrained = constrain(make_job(), {name: named[name] for name in order})

    assert constrained.job.spec.tuning.mode is Mode.OVERLAY
    assert constrained.job.budget_device_hours[0] == 2.0
    assert legal_range(constrained.job, KnobName.DATALOADER_WORKERS, cpus=64) == (1, 6)
    assert constrained.is_paused
    assert constrained.sentences[0] == "TuningPolicy b: experiments are paused."


def test_no_policy_changes_nothing() -> None:
    """A namespace without policies leaves every job as its owner wrote it."""
    job = make_job()

    assert constrain(job, {}).model_dump() == {"job": job.model_dump(), "is_paused": False, "sentences": ()}


@pytest.mark.parametrize(("caps", "found"), [((), None), ((None,), None), ((None, 4), 4), ((8, 4), 4)])
def test_the_namespaces_cap_on_trials(caps: tuple[int | None, ...], found: int | None) -> None:
    """The smallest cap of all policies; none where none caps."""
    policies = [make_policy(budget={} if cap is None else {"parallelTrials": cap}) for cap in caps]

    assert cap_parallel_trials(policies) == found

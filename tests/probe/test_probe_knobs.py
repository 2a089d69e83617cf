"""Loader knobs in torch's rules, trial offsets, and plans: pure truth tables."""

import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe import knobs, plan, trial
from amdahl_probe.knobs import LoaderKnobs

WITH_WORKERS = {"num_workers": 4, "prefetch_factor": 3, "persistent_workers": True, "timeout": 9}


@pytest.mark.parametrize(
    ("asked", "given", "expected", "applied", "ignored"),
    [
        (LoaderKnobs(), WITH_WORKERS, WITH_WORKERS, {}, {}),
        (LoaderKnobs(workers=2), {}, {"num_workers": 2}, {"dataloaderWorkers": 2}, {}),
        (LoaderKnobs(workers=0), WITH_WORKERS, {"num_workers": 0}, {"dataloaderWorkers": 0}, {}),
        (
            LoaderKnobs(workers=1, prefetch=5, persistent=True),
            {"batch_size": 8},
            {"batch_size": 8, "num_workers": 1, "prefetch_factor": 5, "persistent_workers": True},
            {"dataloaderWorkers": 1, "prefetchFactor": 5, "persistentWorkers": True},
            {},
        ),
        (
            LoaderKnobs(prefetch=5, persistent=True),
            {},
            {},
            {},
            {"prefetchFactor": "the loader has no workers", "persistentWorkers": "the loader has no workers"},
        ),
        (LoaderKnobs(persistent=False), {}, {}, {}, {}),
        (LoaderKnobs(pin=True), {}, {}, {}, {"pinMemory": "no CUDA device"}),
        (LoaderKnobs(pin=False), {"pin_memory": True}, {"pin_memory": False}, {"pinMemory": False}, {}),
    ],
)
def test_knobs_are_placed_within_torchs_rules(
    asked: LoaderKnobs,
    given: dict[str, Any],
    expected: dict[str, Any],
    applied: dict[str, Any],
    ignored: dict[str, str],
) -> None:
    """What is legal is applied, what is not is named with its reason, all else is the script's."""
    assert knobs.apply(asked, given, has_cuda=False) == (expected, applied, ignored)


def test_pinning_is_applied_on_a_device() -> None:
    """With CUDA there is something to pin for."""
    assert knobs.apply(LoaderKnobs(pin=True), {}, has_cuda=True).arguments == {"pin_memory": True}


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "99999", "²"])
def test_a_malformed_knob_is_named(value: str) -> None:
    """Variable, value and range are in the message."""
    with pytest.raises(ValueError, match=r"AMDAHL_DATALOADER_WORKERS='.*': give a whole number from 0 to 1024"):
        knobs.parse({"AMDAHL_DATALOADER_WORKERS": value})


def test_knobs_are_read_from_the_environment() -> None:
    """Absent and empty leave the script's own value."""
    env = {"AMDAHL_DATALOADER_WORKERS": "3", "AMDAHL_PREFETCH_FACTOR": "", "AMDAHL_PERSISTENT_WORKERS": "1"}

    assert knobs.parse(env) == LoaderKnobs(workers=3, persistent=True)


@given(st.lists(st.integers(), max_size=40), st.integers(0, 10**6), st.integers(1, 8))
def test_rotation_keeps_every_batch(batches: list[int], offset: int, size: int) -> None:
    """The same batches, begun elsewhere, in the same cyclic order; the indices seen are the ones given."""
    first = trial.first_batch(offset, size, len(batches))
    seen = trial.new_seen()

    assert list(trial.rotate(iter(batches), first, seen)) == batches[first:] + batches[:first]
    assert list(seen) == batches[first:] + batches[:first]


def test_rotation_draws_nothing_before_the_first_batch_is_wanted() -> None:
    """A sampler draws its order at the first `next`, with or without the probe."""
    drawn: list[int] = []
    numbers = trial.rotate((drawn.append(n) or n for n in range(5)), 0)  # type: ignore[func-returns-value]
    assert drawn == []

    assert (list(islice(numbers, 2)), drawn) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2 3"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NOPE)", "$(NOPE)"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("$", "$"),
        ("$(date) $$x", "$(date) $x"),
        ("", ""),
    ],
)
def test_variables_expand_as_the_kubelet_expands_them(text: str, expected: str) -> None:
    """Unknown names stay, `$$` is a literal `$`, the result is not expanded again."""
    assert plan.expand(text, {"A": "1", "B": "2 3"}) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": "amdahl.plan/2"}, "plan.v='amdahl.plan/2'"),
        ({"switch": "hop"}, "plan.switch='hop'"),
        ({"command": []}, "must not be empty"),
        ({"command": "python"}, "plan.command='python': give a list of texts"),
        ({"dir": "relative"}, "absolute path"),
        ({"scratch_paths": ["/job"]}, "too near the root"),
        ({"scratch_paths": ["/job/../etc/x"]}, r"without '\.\.'"),
        ({"deadline_s": -1}, "plan.deadline_s=-1"),
        ({"mem_bytes": True}, "plan.mem_bytes=True"),
        ({"env": {"A": 1}}, "plan.env="),
        ({"windows": [{"arm": "../A", "index": 0}]}, r"plan.windows\[0\].arm="),
        ({"windows": [{"arm": "A", "index": 0}, {"arm": "A", "index": 0}]}, "not distinct"),
        ({"windows": [{"arm": "A", "index": 0, "steps": 0}]}, r"windows\[0\].steps=0"),
        ({"run": None}, "plan.run is missing"),
    ],
)
def test_a_bad_plan_is_refused_by_name(change: dict[str, Any], message: str, make_plan: Any) -> None:
    """The message names the field, its value and what it should be."""
    with pytest.raises(plan.PlanError, match=message):
        plan.parse(json.dumps({**make_plan(("A", "", {})), **change}))


def test_a_plan_that_is_not_json_is_refused(make_plan: Any) -> None:
    """Text that is no object at all has its own message."""
    with pytest.raises(plan.PlanError, match="not JSON"):
        plan.parse("{")
    with pytest.raises(plan.PlanError, match="give an object"):
        plan.parse("[]")

"""Names of children: derived, unlike each other, and such that a server and its host names take them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain import children
from amdahl_loop.domain.blocks import Stage, enumerate_blocks, holdout_block
from amdahl_loop.domain.experiments import name_experiment
from amdahl_loop.domain.plan import OBSERVATION_SEED
from amdahl_loop.domain.profiles import PROFILES
from judge_builders import make_plan

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
jobs = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@given(job=jobs, revision=st.integers(0, 10**6))
def test_names_fit_whatever_the_jobs_name(job: str, revision: int) -> None:
    """Host names of 4,096 ranks, a Service's name, a ConfigMap's name: all of them at most 63."""
    name = children.revision_name(job, revision)
    assert len(f"{name}-4095") <= 63
    assert LABEL.fullmatch(children.service_name(job))
    assert len(children.knobs_name(job)) <= 63
    for made in (name, children.knobs_name(job)):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)


@given(first=jobs, second=jobs, numbers=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_other_jobs_have_other_names(first: str, second: str, numbers: tuple[int, int]) -> None:
    """Cutting a name never makes two jobs share a child."""
    if first == second:
        return
    assert children.service_name(first) != children.service_name(second)
    assert children.knobs_name(first) != children.knobs_name(second)
    if numbers[0] == numbers[1]:
        assert children.revision_name(first, numbers[0]) != children.revision_name(second, numbers[1])


@pytest.mark.parametrize("profile", list(PROFILES.values()), ids=list(PROFILES))
def test_every_block_of_a_plan_is_read_back_from_its_name(profile: object) -> None:
    """Experiment, stage, check and number, in every attempt; and its host names fit."""
    base = make_plan(constants=profile)  # type: ignore[arg-type]  # one of PROFILES
    name = name_experiment("n" * 63, "uid", "f" * 16, base.hypothesis, 0)
    plan = base.model_copy(update={"name": name, "blocks": enumerate_blocks(7, base.constants)})
    for spec in (*plan.blocks, holdout_block(plan.seed, 123)):
        for attempt in (0, 1, 12):
            run = plan.run_name(spec, attempt)
            assert children.read_run(run) == children.BlockRun(name, spec.stage, spec.check, spec.index)
            assert len(f"{children.block_name(run)}-4095") <= 63
            assert not children.is_observation(run)
    names = {children.block_name(plan.run_name(spec)) for spec in plan.blocks}
    assert len(names) == len(plan.blocks)


@pytest.mark.parametrize(
    ("run", "is_observation"),
    [("pydocs-ffffffff-o0", True), ("a-b-01234567-o12", True), ("pydocs-0123456789-p0", False), ("pydocs-o0", False)],
)
def test_observations_are_told_by_their_names(run: str, is_observation: bool) -> None:
    """As the plan makes them, and no block's name is one."""
    assert children.is_observation(run) is is_observation
    if is_observation:
        assert children.read_run(run) is None
    assert OBSERVATION_SEED == 1


def test_every_stage_has_a_letter_of_its_own() -> None:
    """Otherwise a name could be read as another stage's."""
    assert len({stage.value[0] for stage in Stage}) == len(Stage)

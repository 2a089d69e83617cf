"""A variant is the user's own template plus only the knob's known effect: for every knob, whatever the template holds."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdahl_loop.adapters.local.requests import build_plan
from amdahl_loop.domain.blocks import BlockSpec, Stage, holdout_block
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import judged_by
from amdahl_loop.domain.knob_values import KnobName, KnobValue, environment_name
from amdahl_loop.domain.knobs import CATALOGUE
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import block_request
from builders import make_manifest
from judge_builders import make_plan

KNOBS = tuple(CATALOGUE)
SWAP = str.maketrans("AB", "BA")
CADENCE = environment_name(KnobName.CHECKPOINT_EVERY_STEPS)

names = st.sampled_from(["PATH", "DATA", "OPTS", "LR", "A", "B"])
references = st.sampled_from([*(environment_name(knob) for knob in KNOBS), "DATA", "OPTS", "A", "UNKNOWN"])
pieces = st.one_of(
    st.text(alphabet="ab /=-$()", max_size=6),
    references.map("$({})".format),
    references.map("$$({})".format),
)
texts = st.lists(pieces, max_size=4).map("".join)
containers = st.fixed_dictionaries(
    {"command": st.lists(texts, max_size=3).map(lambda words: ["python", *words])},
    optional={
        "args": st.lists(texts, max_size=3),
        "workingDir": st.sampled_from(["", "src", "/srv"]),
        "env": st.lists(st.fixed_dictionaries({"name": names, "value": texts}), max_size=6),
        "resources": st.just({"limits": {"memory": "4Gi", "nvidia.com/gpu": 2}}),
        "securityContext": st.just({"runAsUser": 1000}),
        "volumeMounts": st.just([{"name": "data", "mountPath": "/data"}]),
    },
)


def values_of(knob: KnobName) -> st.SearchStrategy[tuple[KnobValue, KnobValue]]:
    """Two different values of a knob, both legal."""
    spec = CATALOGUE[knob]
    one: st.SearchStrategy[KnobValue] = st.booleans() if spec.switch else st.integers(spec.least, spec.most)
    one = st.sampled_from([str(word) for word in spec.words]) if spec.words else one
    return st.tuples(one, one).filter(lambda pair: pair[0] != pair[1])


OTHERS: Mapping[KnobName, KnobValue] = {
    KnobName.DATALOADER_WORKERS: 2,
    KnobName.PREFETCH_FACTOR: 2,
    KnobName.PIN_MEMORY: False,
    KnobName.PERSISTENT_WORKERS: False,
    KnobName.CHECKPOINT_EVERY_STEPS: 50,
    KnobName.ASYNC_CHECKPOINT: False,
    KnobName.GPUS_PER_REPLICA: 2,
    KnobName.MICRO_BATCH: 2,
    KnobName.BUCKET_MB: 25,
    KnobName.COMPILE: False,
    KnobName.ACTIVATION_CHECKPOINTING: "none",
    KnobName.DATA_PARALLEL: "ddp",
}


def make_job(container: dict[str, Any]) -> TrainingJob:
    """A job whose trainer is as fuzzed."""
    manifest = make_manifest({knob.value: value for knob, value in OTHERS.items()})
    manifest["spec"]["template"]["spec"]["containers"][0] |= container
    return parse_training_job(manifest)


def render(job: TrainingJob, plan: Plan, spec: BlockSpec) -> dict[str, Any]:
    """What the supervisor of a block is given."""
    return build_plan(
        job,
        block_request(plan, spec, startup_s=4.0, step_s=0.1),
        cwd=Path("/work"),
        enter=("unshare", "$(AMDAHL_PIN_MEMORY)"),
        probe=Path("/probe.zip"),
        directory=Path("/run"),
        mem_bytes=2**32,
        scratch=(Path("/scratch"),),
    )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of a JSON value with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, (*path, str(key)))


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[tuple[str, ...]]:
    """Paths at which two plans differ, without the window's number."""
    first, second = dict(leaves(one)), dict(leaves(other))
    paths = {path for path in first.keys() | second.keys() if first.get(path, ...) != second.get(path, ...)}
    assert all(path[0] == "windows" for path in paths), f"outside the windows: {paths}"
    return {path[2:] for path in paths}


def dependent(job: TrainingJob, variables: set[str]) -> set[str]:
    """Variables of the container that follow from others, by the rules of Kubernetes: `$$` is a literal `$`."""
    found = set(variables)
    for variable in job.spec.template.trainer.env:
        named = {match.group(1) for match in re.finditer(r"\$\$|\$\(([^)]*)\)", variable.value)}
        found = found - {variable.name} if not named & found else found | {variable.name}
    return found


@pytest.mark.parametrize("knob", KNOBS)
@settings(max_examples=40)
@given(data=st.data())
def test_arms_differ_in_the_knob_s_declared_paths_alone(knob: KnobName, data: st.DataObject) -> None:
    """Swapping which arm runs changes the knob's value, its variable, and what the user derives from that variable.

    Where cadence is judged, the saving rhythm of the windows is part of the effect. Command, folders, time limits, seeds,
    offsets and every other variable are the same in both arms, in every stage, live or relaunched.
    """
    job = make_job(data.draw(containers, label="container"))
    before, after = data.draw(values_of(knob), label="values")
    others = {other: value for other, value in OTHERS.items() if other is not knob}
    plan = make_plan(knob=knob, before=before, after=after, others=others, live=data.draw(st.booleans(), label="live"))
    stage = data.draw(st.sampled_from(list(Stage)), label="stage")
    spec = holdout_block(plan.seed, 3) if stage is Stage.HOLDOUT else plan.stage_blocks(stage)[0]

    changed = differing(
        render(job, plan, spec), render(job, plan, spec.model_copy(update={"order": spec.order.translate(SWAP)}))
    )

    is_cadence = judged_by(plan.hypothesis) == "cadence" and stage is not Stage.PROOF
    variables = dependent(job, {environment_name(knob)} | ({CADENCE} if is_cadence else set()))
    declared = {("knobs", knob.value), *(("env", name) for name in variables)}
    declared |= {("save_every",)} if is_cadence else set()
    assert changed <= declared
    assert ("knobs", knob.value) in changed

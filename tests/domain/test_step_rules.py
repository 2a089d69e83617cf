"""Knobs of the step itself: when each is proposed, what it may win at most, and when nothing is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.diagnosis import Bottleneck, diagnose
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import Hypothesis
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.knobs import CATALOGUE, KnobKind
from amdahl_loop.domain.ledger import JobMemory
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.proposals import propose
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import COMPILE_TIMEOUT_S, block_request
from amdahl_loop.domain.spending import weigh
from builders import make_job, make_manifest, make_window, see
from judge_builders import make_plan

STEP_KNOBS = (
    KnobName.MICRO_BATCH,
    KnobName.BUCKET_MB,
    KnobName.COMPILE,
    KnobName.ACTIVATION_CHECKPOINTING,
    KnobName.DATA_PARALLEL,
)
LIMITED = {"limits": {"memory": "2Gi"}}


def job_of(knobs: dict[str, Any], tuning: dict[str, Any] | None = None, **resources: Any) -> TrainingJob:
    """A job with these knobs; `resources` are its trainer's."""
    template = make_manifest()["spec"]["template"]
    template["spec"]["containers"][0]["resources"] = resources
    return make_job(knobs, tuning, template=template)


def ideas(job: TrainingJob, **window: Any) -> tuple[Hypothesis, ...]:
    """What the rules propose for a job that computes but for what `window` says."""
    breakdown = see(job, make_window(**({"batch_s": None} | window)), cpus=4)
    return propose(breakdown, diagnose(breakdown, job, None), job, None)


def said(found: tuple[Hypothesis, ...]) -> list[str]:
    """The changes in words, largest expected gain first."""
    return [", ".join(str(change) for change in hypothesis.changes) for hypothesis in found]


SHORT = {"step_s": 0.16}
"""16 samples in passes of one: 10 ms each, no longer than issuing them may take."""
LONG = {"step_s": 16.0}
"""A second for each of those passes."""


@pytest.mark.parametrize(
    ("knobs", "window", "expected"),
    [
        pytest.param({"microBatch": 1}, SHORT, ["microBatch 1 -> 8"], id="short passes, eight times as large"),
        pytest.param({"microBatch": 4}, SHORT, ["microBatch 4 -> 16"], id="up to a rank's share"),
        pytest.param({"microBatch": 3}, SHORT | {"batch": 12}, ["microBatch 3 -> 12"], id="sizes that divide the share"),
        pytest.param({"microBatch": 2}, SHORT | {"devices": 2}, ["microBatch 2 -> 8"], id="each rank's own share"),
        pytest.param({"microBatch": 16}, SHORT, [], id="one pass already"),
        pytest.param({"microBatch": 1}, LONG, [], id="long passes are arithmetic"),
        pytest.param({"compile": False}, LONG, ["compile False -> True"], id="fusion helps long passes too"),
        pytest.param({"compile": True}, SHORT, [], id="compiled already"),
        pytest.param({"activationCheckpointing": "block"}, LONG, ["activationCheckpointing block -> none"], id="a quarter"),
        pytest.param({"activationCheckpointing": "selective"}, LONG, ["activationCheckpointing selective -> none"], id="less"),
        pytest.param({"activationCheckpointing": "none"}, LONG, [], id="nothing is computed again"),
        pytest.param({"bucketMb": 25}, LONG | {"devices": 2, "shares": {"comm": 0.3}}, ["bucketMb 25 -> 100"], id="waits for messages"),
        pytest.param({"bucketMb": 1}, LONG | {"devices": 2, "shares": {"comm": 0.3}}, ["bucketMb 1 -> 25"], id="torch's own size first"),
        pytest.param({"bucketMb": 25}, LONG | {"devices": 2, "shares": {"comm": 0.04}}, [], id="hardly waits"),
        pytest.param({"bucketMb": 25}, LONG | {"devices": 1}, [], id="alone"),
        pytest.param({"bucketMb": 25, "dataParallel": "fsdp"}, LONG | {"devices": 2, "shares": {"comm": 0.3}}, ["dataParallel fsdp -> ddp"], id="pieces have no buckets"),
        pytest.param({"dataParallel": "fsdp"}, SHORT | {"devices": 2, "shares": {"comm": 0.12}}, ["dataParallel fsdp -> ddp"], id="a small model in pieces"),
        pytest.param({"dataParallel": "fsdp"}, LONG | {"devices": 2, "shares": {"comm": 0.12}}, [], id="a large one"),
        pytest.param({"dataParallel": "ddp"}, LONG | {"devices": 2, "shares": {"comm": 0.3}}, [], id="whole already"),
        pytest.param({}, SHORT, [], id="nothing declared, nothing tried"),
    ],
)  # fmt: skip
def test_each_knob_of_the_step_has_its_rule(knobs: dict[str, Any], window: dict[str, Any], expected: list[str]) -> None:
    """What was measured decides whether a knob that the job declares is worth a trial."""
    assert said(ideas(make_job(knobs), **window)) == expected


@pytest.mark.parametrize(
    ("knobs", "peak_mem_mib", "expected"),
    [
        pytest.param({"microBatch": 1}, 200, ["microBatch 1 -> 8"], id="room for eight times as much"),
        pytest.param({"microBatch": 1}, 800, [], id="no room, and nothing that makes some"),
        pytest.param(
            {"microBatch": 1, "activationCheckpointing": "none"},
            800,
            ["microBatch 1 -> 8, activationCheckpointing none -> block"],
            id="larger passes by keeping less",
        ),
        pytest.param({"activationCheckpointing": "block"}, 800, ["activationCheckpointing block -> none"], id="half is free"),
        pytest.param({"activationCheckpointing": "block"}, 1200, [], id="memory is what it was for"),
    ],
)  # fmt: skip
def test_a_known_limit_of_memory_is_heeded(knobs: dict[str, Any], peak_mem_mib: int, expected: list[str]) -> None:
    """What could not fit is not tried; what may fit is, and loses where it does not."""
    job = job_of(knobs, **LIMITED)

    assert said(ideas(job, peak_mem_mib=peak_mem_mib, **SHORT)) == expected


def test_whole_parameters_need_room_for_every_rank_s_piece() -> None:
    """Four ranks' pieces in each rank: 3 GiB where 2 GiB are allowed."""
    waiting = LONG | {"devices": 4, "shares": {"comm": 0.4}}

    assert said(ideas(job_of({"dataParallel": "fsdp"}, **LIMITED), peak_mem_mib=400, **waiting)) != []
    assert said(ideas(job_of({"dataParallel": "fsdp"}, **LIMITED), peak_mem_mib=800, **waiting)) == []


def test_a_device_s_memory_is_not_the_container_s() -> None:
    """A limit of host memory says nothing of a GPU's: the larger pass is tried, and loses if it does not fit."""
    job = job_of({"microBatch": 1}, limits={"memory": "2Gi", "nvidia.com/gpu": 1})

    assert said(ideas(job, peak_mem_mib=1900, **SHORT)) == ["microBatch 1 -> 8"]


@pytest.mark.parametrize(
    "tuning", [{"pin": ["microBatch", "compile"]}, {"knobs": {"microBatch": {"max": 1}}, "pin": ["compile"]}]
)
def test_the_owner_s_word_holds(tuning: dict[str, Any]) -> None:
    """What is pinned or bounded is left alone."""
    assert ideas(make_job({"microBatch": 1, "compile": False}, tuning), **SHORT) == ()


def test_a_long_job_of_short_passes_is_compute_bound_and_yet_worth_a_trial() -> None:
    """The class says where the time goes; the knob that its owner declares says that it may be had for less."""
    job = make_job({"microBatch": 1})
    breakdown = see(job, make_window(batch_s=None, startup_s=0.0, **SHORT), cpus=4)
    diagnosis = diagnose(breakdown, job, None)

    (worth,) = weigh(propose(breakdown, diagnosis, job, None), breakdown, job, PROFILES["quick"], JobMemory())

    assert diagnosis.bottleneck is Bottleneck.COMPUTE_BOUND
    assert worth.expected_bank_h > 0


@given(
    step_s=st.floats(0.001, 100.0),
    comm=st.floats(0.0, 0.9),
    batch=st.integers(1, 512),
    micro_batch=st.integers(1, 64),
    devices=st.integers(1, 8),
    mode=st.sampled_from(["none", "block", "selective"]),
    held=st.sampled_from(["ddp", "fsdp"]),
)
def test_no_gain_is_expected_beyond_the_ceiling(
    step_s: float, comm: float, batch: int, micro_batch: int, devices: int, mode: str, held: str
) -> None:
    """Whatever was measured: a hypothesis of one knob promises no more than Amdahl's bound of it, which is below 1."""
    words = {"activationCheckpointing": mode, "dataParallel": held}
    job = make_job({"microBatch": micro_batch, "bucketMb": 4, "compile": False} | words)
    window = make_window(step_s=step_s, batch=batch * devices, devices=devices, shares={"comm": comm}, batch_s=None)
    breakdown = see(job, window, cpus=8)
    diagnosis = diagnose(breakdown, job, None)

    assert all(0 <= diagnosis.ceiling(knob) <= 1 for knob in STEP_KNOBS)
    for hypothesis in propose(breakdown, diagnosis, job, None):
        if hypothesis.knob in STEP_KNOBS and len(hypothesis.changes) == 1:
            assert hypothesis.expected_gain <= diagnosis.ceiling(hypothesis.knob) + 1e-9


@pytest.mark.parametrize(
    ("knobs", "window", "knob", "won"),
    [
        pytest.param({"microBatch": 1}, {"step_s": 1.6}, KnobName.MICRO_BATCH, 0.62, id="passes of 100 ms, for their kernels"),
        pytest.param(
            {"microBatch": 1, "dataParallel": "fsdp"},
            {"step_s": 1.6, "devices": 2, "shares": {"comm": 0.5}},
            KnobName.MICRO_BATCH,
            0.8,
            id="every pass gathers the pieces",
        ),
        pytest.param({"activationCheckpointing": "block"}, LONG, KnobName.ACTIVATION_CHECKPOINTING, 0.4, id="a short backward pass"),
        pytest.param(
            {"dataParallel": "fsdp"}, LONG | {"devices": 2, "shares": {"comm": 0.2}}, KnobName.DATA_PARALLEL, 0.47, id="copies beside waiting"
        ),
        pytest.param({"bucketMb": 1}, LONG | {"devices": 2, "shares": {"comm": 0.1}}, KnobName.BUCKET_MB, 0.2, id="issuing beside waiting"),
        pytest.param({"compile": False}, LONG, KnobName.COMPILE, 0.8, id="hardly any arithmetic"),
    ],
)  # fmt: skip
def test_no_ceiling_is_below_what_can_be_won(
    knobs: dict[str, Any], window: dict[str, Any], knob: KnobName, won: float
) -> None:
    """A ceiling promises what can be won at most: what we believe of kernels and passes has no part in it."""
    job = make_job(knobs)
    breakdown = see(job, make_window(batch_s=None, **window), cpus=4)

    assert won < diagnose(breakdown, job, None).ceiling(knob) <= 1


@pytest.mark.parametrize("knob", STEP_KNOBS)
def test_knobs_of_the_step_need_a_restart_and_round_alone(knob: KnobName) -> None:
    """All of them are S1: relaunched windows, and a proof that allows for rounding."""
    assert CATALOGUE[knob].kind is KnobKind.S1
    assert not CATALOGUE[knob].is_live


def test_a_launch_that_compiles_has_time_for_it() -> None:
    """The first step of a compiled model takes minutes, and counts as no hang."""

    def limits_s(plan: Plan) -> tuple[float, float]:
        request = block_request(plan, plan.blocks[0], startup_s=4.0, step_s=0.1)
        return request.step_timeout_s, request.deadline_s

    plain = make_plan(knob=KnobName.MICRO_BATCH, before=1, after=8, live=False)
    compiling = make_plan(knob=KnobName.COMPILE, before=False, after=True, live=False)

    assert limits_s(compiling)[0] == limits_s(plain)[0] + COMPILE_TIMEOUT_S
    assert limits_s(compiling)[1] >= limits_s(plain)[1] + COMPILE_TIMEOUT_S


def test_a_plan_that_knows_no_such_knobs_keeps_its_hash() -> None:
    """An upgrade adopts the blocks of an open experiment: absent knobs of the step are written nowhere."""
    assert set(Knobs(dataloader_workers=2).model_dump()) == {
        "dataloader_workers", "prefetch_factor", "pin_memory", "persistent_workers", "checkpoint_every_steps",
        "async_checkpoint", "gpus_per_replica",
    }  # fmt: skip
    assert "microBatch" in Knobs(micro_batch=2).model_dump_json(by_alias=True)

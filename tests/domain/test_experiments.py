"""Plans are complete, reproducible and fair before anything runs."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.blocks import Stage, enumerate_blocks
from amdahl_loop.domain.design import design_plan
from amdahl_loop.domain.experiments import Plan, name_experiment
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source, judged_by
from amdahl_loop.domain.knob_values import KnobName, environment_name, knob_environment
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.runs import FORCED_SAVE_EVERY_STEPS, block_request, measuring_cadence, observation_request
from amdahl_loop.domain.telemetry import Arm, Phase
from amdahl_loop.domain.tuning import ProfileName
from builders import FAMILY, FINGERPRINT, UID, make_job, make_window, see


def make_hypothesis(knob: KnobName = KnobName.DATALOADER_WORKERS, before: int = 0, after: int = 2) -> Hypothesis:
    """A rule's hypothesis of one change."""
    change = Change(knob=knob, before=before, after=after)
    return Hypothesis(changes=(change,), phase=Phase.INPUT, expected_gain=0.3, source=Source.RULE, rationale="why")


def make_plan(hypothesis: Hypothesis | None = None, attempt: int = 0, live: bool = True, **knobs: int) -> Plan:
    """A plan for a job with these knobs."""
    job = make_job({"dataloaderWorkers": 0, **knobs}, {"profile": "quick"})
    breakdown = see(job, make_window(shares={"input": 0.5})).model_copy(update={"live": live})
    return design_plan(job, UID, FINGERPRINT, FAMILY, hypothesis or make_hypothesis(), breakdown, attempt)


def test_the_same_question_gives_the_same_plan() -> None:
    """Letter for letter: name, seed, orders, offsets; and another attempt is another plan."""
    assert make_plan().model_dump_json() == make_plan().model_dump_json()
    assert make_plan().hash == make_plan().hash
    assert make_plan(attempt=1).name != make_plan().name
    assert make_plan(attempt=1).seed != make_plan().seed


@given(seed=st.integers(0, 2**48), profile=st.sampled_from(list(ProfileName)))
def test_every_block_is_planned_in_advance(seed: int, profile: ProfileName) -> None:
    """Enough blocks for every look, check, soak and null; names unique; orders only ABBA or BAAB; offsets distinct."""
    constants = PROFILES[profile]
    blocks = enumerate_blocks(seed, constants)
    counts = Counter(block.stage for block in blocks)

    assert len({block.name for block in blocks}) == len(blocks)
    assert counts[Stage.DISCOVERY] >= constants.looks[-1]
    assert counts[Stage.REFUTE] > constants.checks * constants.blocks_per_check
    assert counts[Stage.SOAK] >= constants.soak_blocks
    assert counts[Stage.NULL] >= constants.null_blocks
    for block in blocks:
        if block.stage is not Stage.PROOF:
            assert block.labels in ("ABBA", "BAAB")
            assert block.order == ("AAAA" if block.stage is Stage.NULL else block.labels)
    offsets = [offset for block in blocks if block.stage is not Stage.PROOF for offset in block.offsets]
    assert len(set(offsets)) == len(offsets)


@given(seed=st.integers(0, 2**48))
def test_neighbouring_checks_reverse_their_order(seed: int) -> None:
    """A majority of checks cannot share one order by luck of the coin."""
    first = [
        b.order
        for b in enumerate_blocks(seed, PROFILES[ProfileName.STANDARD])
        if b.stage is Stage.REFUTE and b.index == 0
    ]

    assert all(a != b for a, b in pairwise(first))


def test_coins_are_fair() -> None:
    """Over many plans discovery's coin falls on either side about equally: 1,000 plans of 18 coins."""
    orders = Counter(
        block.order
        for seed in range(1000)
        for block in enumerate_blocks(seed, PROFILES[ProfileName.QUICK])
        if block.stage is Stage.DISCOVERY
    )

    assert 0.48 < orders["ABBA"] / orders.total() < 0.52


def test_proof_pairs_start_alike() -> None:
    """A and B of a proof share seed and offset; the further pairs bring further seeds."""
    first, more = (block for block in make_plan().blocks if block.stage is Stage.PROOF)

    assert first.seeds[0] == first.seeds[1]
    assert more.seeds[0] == more.seeds[1]
    assert more.seeds[2] == more.seeds[3]
    assert len({first.seeds[0], more.seeds[0], more.seeds[2]}) == 3
    assert set(first.offsets + more.offsets) == {0}


@pytest.mark.parametrize(
    ("knob", "name"),
    [
        (KnobName.DATALOADER_WORKERS, "AMDAHL_DATALOADER_WORKERS"),
        (KnobName.PIN_MEMORY, "AMDAHL_PIN_MEMORY"),
        (KnobName.CHECKPOINT_EVERY_STEPS, "AMDAHL_CHECKPOINT_EVERY_STEPS"),
        (KnobName.GPUS_PER_REPLICA, "AMDAHL_GPUS_PER_REPLICA"),
        (KnobName.MICRO_BATCH, "AMDAHL_MICRO_BATCH"),
        (KnobName.BUCKET_MB, "AMDAHL_BUCKET_MB"),
        (KnobName.COMPILE, "AMDAHL_COMPILE"),
        (KnobName.ACTIVATION_CHECKPOINTING, "AMDAHL_ACTIVATION_CHECKPOINTING"),
        (KnobName.DATA_PARALLEL, "AMDAHL_DATA_PARALLEL"),
    ],
)
def test_knobs_reach_the_container_by_name(knob: KnobName, name: str) -> None:
    """The names that users may read in their scripts."""
    assert environment_name(knob) == name
    assert knob_environment({knob: True}) == {name: "1"}
    assert knob_environment({knob: "block"}) == {name: "block"}


def test_names_leave_room_for_blocks() -> None:
    """A job name of 63 characters still gives run names of at most 63."""
    name = name_experiment("j" * 63, UID, FINGERPRINT, make_hypothesis(), 0)

    assert len(name) <= 52
    assert all(len(make_plan().run_name(spec, attempt=9)) <= 63 for spec in make_plan().blocks)


def test_null_blocks_run_the_baseline_under_both_labels() -> None:
    """Whatever a null block finds is the harness."""
    plan = make_plan()
    (spec, *_) = plan.stage_blocks(Stage.NULL)

    request = block_request(plan, spec, startup_s=4.0, step_s=0.1)

    assert {window.arm for window in request.windows} == {Arm.BASELINE, Arm.VARIANT}
    assert {window.knobs.dataloader_workers for window in request.windows} == {0}


def test_proofs_are_always_fresh_launches() -> None:
    """A proof compares arms from one start: never live, nothing discarded, an exact number of steps."""
    plan = make_plan()

    request = block_request(plan, plan.blocks[0], startup_s=4.0, step_s=0.1)

    assert not request.live
    assert {(w.warmup_s, w.warmup_steps, w.steps) for w in request.windows} == {(0.0, 0, plan.constants.proof_steps)}


def test_arms_differ_only_in_the_hypothesis() -> None:
    """A variant is the baseline plus the changed knob, and nothing else."""
    plan = make_plan(checkpointEverySteps=50)
    (spec, *_) = plan.stage_blocks(Stage.DISCOVERY)
    request = block_request(plan, spec, startup_s=4.0, step_s=0.1)

    by_arm = {window.arm: window.environment for window in request.windows}

    assert set(by_arm[Arm.VARIANT].items()) - set(by_arm[Arm.BASELINE].items()) == {("AMDAHL_DATALOADER_WORKERS", "2")}


def test_cadence_windows_force_saves_that_are_rare() -> None:
    """A cadence of a thousand steps is measured with saves every ten; one of five keeps its own."""
    hypothesis = make_hypothesis(KnobName.CHECKPOINT_EVERY_STEPS, before=1000, after=5)
    plan = make_plan(hypothesis, checkpointEverySteps=1000)
    (spec, *_) = plan.stage_blocks(Stage.DISCOVERY)

    request = block_request(plan, spec, startup_s=4.0, step_s=0.1)

    assert judged_by(hypothesis) == "cadence"
    assert {(w.arm, w.save_every) for w in request.windows} == {
        (Arm.BASELINE, FORCED_SAVE_EVERY_STEPS),
        (Arm.VARIANT, 5),
    }
    assert {w.environment["AMDAHL_CHECKPOINT_EVERY_STEPS"] for w in request.windows} == {"10", "5"}


@pytest.mark.parametrize(("before", "after"), [(1000, 84), (10, 2000), (2000, 10), (5, 7), (7, 5), (1, 3)])
def test_arms_are_never_asked_for_the_same_cadence(before: int, after: int) -> None:
    """A script that ignores the knob cannot obey two requests at once."""
    plan = make_plan(make_hypothesis(KnobName.CHECKPOINT_EVERY_STEPS, before, after), checkpointEverySteps=before)

    asked = {arm: measuring_cadence(plan, arm) for arm in Arm}

    assert max(asked.values()) >= 2 * min(asked.values())
    assert max(asked.values()) <= FORCED_SAVE_EVERY_STEPS


def test_an_observation_measures_saves_where_the_cadence_is_a_knob() -> None:
    """One plain window; a second one with forced saves only where saving may be tuned."""
    constants = PROFILES[ProfileName.QUICK]
    plain = observation_request("o", make_job().spec.knobs, constants, 1)
    saving = observation_request("o", make_job({"checkpointEverySteps": 500}).spec.knobs, constants, 1)

    assert [w.save_every for w in plain.windows] == [None]
    assert [w.save_every for w in saving.windows] == [None, FORCED_SAVE_EVERY_STEPS]


def test_time_limits_leave_room_for_slow_work() -> None:
    """A deadline is several times the planned work, and no launch is cut before its startup limit."""
    plan = make_plan(live=False)
    (spec, *_) = plan.stage_blocks(Stage.DISCOVERY)

    request = block_request(plan, spec, startup_s=30.0, step_s=2.0)

    planned_s = sum(w.warmup_s + w.measure_s for w in request.windows)
    assert request.startup_timeout_s >= 300
    assert request.deadline_s > 4 * request.startup_timeout_s + planned_s

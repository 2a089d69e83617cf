"""Do plans, blocks, verdicts and applications come back from their objects exactly as they were?"""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crd_strategies as make
from amdahl_loop.domain.api.experiment import (
    EXPERIMENT,
    MAX_EXPERIMENT_BYTES,
    MAX_LOSSES,
    ExperimentSpec,
    ExperimentStatus,
)
from amdahl_loop.domain.api.plans import read_plan, write_plan
from amdahl_loop.domain.api.records import (
    StoredExperiment,
    Unreadable,
    add_application,
    add_block,
    add_loss,
    close,
    read_experiment,
)
from amdahl_loop.domain.api.wire import from_wire, to_wire
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import Arm, BlockReport, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from judge_builders import make_constants, make_plan, make_record, make_report, make_window

many = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    """The document as another program would read it."""
    loaded: dict[str, Any] = json.loads(json.dumps(document))
    return loaded


def store(plan: Plan, status: ExperimentStatus) -> dict[str, Any]:
    """An Experiment object with a status."""
    return through_json(write_plan(plan) | {"status": to_wire(status)})


@many
@given(plan=make.plans())
def test_a_plan_comes_back_with_its_hash(plan: Plan) -> None:
    """Any plan, odd floats included, reads back equal, and hashes to the same sixteen digits."""
    document = through_json(write_plan(plan))
    read = read_experiment(document)

    assert isinstance(read, StoredExperiment), read
    assert read.experiment == Experiment(plan=plan)
    assert read.experiment.plan.model_dump_json() == plan.model_dump_json()
    assert document["spec"]["planHash"] == plan.hash == read.experiment.plan.hash


@many
@given(data=st.data(), plan=make.plans())
def test_facts_come_back_as_they_were(data: st.DataObject, plan: Plan) -> None:
    """Blocks, losses, verdict and applications read back equal, in their order."""
    blocks = data.draw(make.finished_blocks(plan))
    losses = tuple(data.draw(st.lists(make.losses, unique=True, max_size=4)))
    applications = tuple(data.draw(st.lists(make.applications(plan), unique=True, max_size=3)))
    verdict, closed_at_s = data.draw(make.verdicts), data.draw(make.moments_s)

    status = ExperimentStatus()
    for record in blocks:
        status = add_block(status, record)
    for loss in losses:
        status = add_loss(status, loss)
    for application in applications:
        status = add_application(status, application)
    read = read_experiment(store(plan, close(status, verdict, closed_at_s)))

    assert isinstance(read, StoredExperiment), read
    assert read.experiment == Experiment(plan=plan, blocks=blocks, losses=losses, verdict=verdict)
    assert (read.applications, read.closed_at_s) == (applications, closed_at_s)


@many
@given(data=st.data())
def test_a_believed_report_is_written_down_again(data: st.DataObject) -> None:
    """What a summary said is rendered as a summary that says the same, or not at all where it would be too long."""
    report = data.draw(make.reports("job-e1-d0"))

    text = render_block_summary(report)

    assert text is None or parse_block_summary(text, "job-e1-d0") == report


def test_a_real_summary_is_always_short_enough() -> None:
    """Four windows with every key of the contract fit into 1,500 bytes."""
    windows = tuple(
        make.full_window(arm, index) for index, arm in enumerate((Arm.BASELINE, Arm.VARIANT, Arm.VARIANT, Arm.BASELINE))
    )
    report = BlockReport(run="x" * 63, state="done", live=True, cpus=128, windows=windows)

    assert render_block_summary(report) is not None


def test_every_field_of_a_plan_has_its_place() -> None:
    """A field that is added to the plan is added to the Experiment, or nothing can be written."""
    plan = make_plan()
    assert read_plan(plan.name, from_wire(ExperimentSpec, write_plan(plan)["spec"])) == plan


@pytest.mark.parametrize("profile", list(ProfileName))
def test_every_profiles_plan_fits(profile: ProfileName) -> None:
    """The plan of the longest profile takes a small part of an Experiment's 128 KiB."""
    size = len(json.dumps(write_plan(make_plan(PROFILES[profile]))))

    assert size <= 20 * 1024


@pytest.mark.parametrize("profile", list(ProfileName))
def test_an_experiment_never_outgrows_its_object(profile: ProfileName) -> None:
    """Every block of the plan reported in full, 64 more after it, every list full: at most 128 KiB of JSON.

    Blocks whose summary finds no room are kept without it: their device-seconds count, their evidence does not.
    """
    plan = make_plan(make_constants(profile))
    status = ExperimentStatus()
    for spec in (*plan.blocks, *(make.holdout_block(plan.seed, index) for index in range(64))):
        windows = tuple(make.full_window(Arm(letter), index) for index, letter in enumerate(spec.order))
        report = make_report(plan, spec, windows)
        record = BlockRecord(
            spec=spec, node="n" * 63, started_at_s=1763722708.1234567, held_device_s=12.5, report=report
        )
        status = add_block(status, record)
    for number in range(100):
        status = add_loss(
            status, Loss(run=f"{'x' * 50}-{number}", started_at_s=1763722708.5 + number, held_device_s=1.25)
        )
    vote = make.Vote(check=1, agree=True, effect=0.1234567890123456, bar=0.1, changed=("time", "order"), node="n" * 250)
    veto = make.Veto(name=make.VetoName.WORK, silent=True, sentence="w" * 300)
    verdict = Verdict(word=VerdictWord.WON, sentence="s" * 500, effect=0.2, votes=(vote,) * 5, vetoes=(veto,) * 7)
    status = close(status, verdict, 1763722708.5)

    read = read_experiment(store(plan, status))

    assert isinstance(read, StoredExperiment), read
    assert len(json.dumps(store(plan, status)).encode()) <= MAX_EXPERIMENT_BYTES
    assert len(read.experiment.blocks) == len(plan.blocks) + 64
    assert read.experiment.held_device_s == sum(b.held_device_s for b in read.experiment.blocks) + 125.0
    assert len(read.experiment.losses) == MAX_LOSSES
    lost = [block for block in read.experiment.blocks if block.report is None]
    assert all(block.failure == "the Experiment has no room for another summary" for block in lost)
    assert [block for block in read.experiment.blocks if block.report is not None] == list(
        read.experiment.blocks[: -len(lost)]
    )


def _closed(plan: Plan) -> ExperimentStatus:
    return close(ExperimentStatus(), Verdict(word=VerdictWord.NO_GAIN, sentence="no gain"), 100.0)


def test_facts_are_recorded_once() -> None:
    """The same block, loss, verdict or application twice changes nothing: a tick may be cut anywhere."""
    plan = make_plan()
    block = make_record(plan, plan.blocks[0])
    status = add_block(ExperimentStatus(), block)
    again = block.model_copy(update={"held_device_s": 99.0})

    assert add_block(status, again) == status
    assert close(_closed(plan), Verdict(word=VerdictWord.WON, sentence="no, won"), 200.0) == _closed(plan)


def test_an_open_plan_that_was_meddled_with_is_refused() -> None:
    """An open experiment must hash to what was recorded; a closed one is history, and is read as it stands."""
    plan = make_plan()
    document = through_json(write_plan(plan))
    document["spec"]["maxSlowdown"] = "3.0"

    opened = read_experiment(document)
    closed = read_experiment(document | {"status": to_wire(_closed(plan))})

    assert isinstance(opened, Unreadable)
    assert opened.reason.endswith(f"but {plan.hash} was recorded")
    assert isinstance(closed, StoredExperiment)
    assert closed.experiment.plan.max_slowdown == 3.0


def _spoil(path: str, value: object) -> dict[str, Any]:
    plan = make_plan()
    windows = tuple(make_window(Arm(letter), index) for index, letter in enumerate(plan.blocks[2].order))
    document = store(plan, add_block(ExperimentStatus(), make_record(plan, plan.blocks[2], windows)))
    *parents, last = path.split("/")
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("spec", None, "ExperimentSpec : Input should be a valid dictionary"),
        ("spec/seed", "many", "ExperimentSpec seed: Input should be a valid integer"),
        ("spec/surprise", 1, "ExperimentSpec surprise: Extra inputs are not permitted"),
        ("spec/blocks/0/name", "d0", "a proof block is named 'd0'"),
        ("status/blocks/0/name", "d99", "status.blocks names 'd99', which the plan does not hold"),
        (
            "status/blocks/0/startedAt",
            "yesterday",
            "ExperimentStatus blocks.0.startedAt: String should match pattern",
        ),
        (
            "status/blocks/0/heldDeviceSeconds",
            "-1.0",
            "ExperimentStatus blocks.0.heldDeviceSeconds: Input should be greater than or",
        ),
    ],
)
def test_what_cannot_be_read_says_why(path: str, value: object, reason: str) -> None:
    """A broken Experiment is a value with a reason; it never stops the loop, and is never guessed at."""
    read = read_experiment(_spoil(path, value))

    assert isinstance(read, Unreadable)
    assert read.reason.startswith(reason)
    assert read.name == "job-e1"


@pytest.mark.parametrize(
    ("field", "value", "failure"),
    [
        ("summary", "{}", "summary version is 'None', expected 'amdahl.block/1'"),
        ("run", "job-e1-d1", "the summary is of run 'job-e1-d1', expected 'job-e1-d0'"),
        ("run", "job-e1-d0-t1", "summary is of run 'job-e1-d0', expected 'job-e1-d0-t1'"),
        ("run", None, "the summary is of run None, expected 'job-e1-d0'"),
    ],
)
def test_a_summary_that_was_meddled_with_is_no_evidence(field: str, value: object, failure: str) -> None:
    """A kept summary is checked anew: checksum, version and run. What fails is missing data, which never wins."""
    read = read_experiment(_spoil(f"status/blocks/0/{field}", value))

    assert isinstance(read, StoredExperiment), read
    block: BlockRecord = read.experiment.blocks[0]
    assert (block.report, block.failure) == (None, failure)


def test_fields_of_a_newer_status_are_passed_over() -> None:
    """What a newer operator reported beside the facts does not stop an older one."""
    plan = make_plan()
    document = store(plan, _closed(plan))
    document["status"]["forecast"] = "sunny"

    assert isinstance(read_experiment(document), StoredExperiment)


def test_a_number_that_does_not_exist_is_left_out() -> None:
    """An error that is infinite, or no number, is absent, as in the ledger of one machine."""
    verdict = Verdict(
        word=VerdictWord.INCONCLUSIVE, sentence="too few", effect=0.1, effect_se=float("inf"), floor=float("nan")
    )
    written = to_wire(close(ExperimentStatus(), verdict, 1.0))["verdict"]

    assert (written["effect"], "effectSe" in written, "floor" in written) == ("0.1", False, False)


def test_the_object_is_of_our_kind() -> None:
    """Group, version, kind and name; where it belongs is the caller's to say."""
    document = write_plan(make_plan())

    assert (document["apiVersion"], document["kind"]) == ("amdahl-loop.io/v1alpha1", EXPERIMENT.name)
    assert document["metadata"] == {"name": "job-e1"}

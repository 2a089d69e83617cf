"""Moments, sentences, conditions and observations: what the objects' fields are made of."""

import datetime as dt
import json
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import crd_strategies as make
from amdahl_loop.adapters.crds.docstrings import describe_field
from amdahl_loop.domain.api.conditions import (
    Condition,
    ConditionStatus,
    ExperimentCondition,
    ExperimentConditionType,
    JobCondition,
    JobConditionType,
    report,
    withdraw,
)
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.parts import MAX_SENTENCE, clip, read_knob, write_knob
from amdahl_loop.domain.api.timestamps import to_epoch_s, to_timestamp
from amdahl_loop.domain.api.training_job import (
    ObservationReport,
    TrainingJobStatus,
    read_observation,
    read_training_job,
    report_observation,
)
from amdahl_loop.domain.api.wire import from_wire, to_wire
from amdahl_loop.domain.knob_values import KnobValue
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.telemetry import BlockReport, Malformed
from builders import make_job, make_manifest, make_observation, make_window

NOW_S = 1763722708.0


@pytest.mark.parametrize(
    ("at_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (951782399.0, "2000-02-28T23:59:59Z"),
        (951782400.0, "2000-02-29T00:00:00Z"),
        (951868800.25, "2000-03-01T00:00:00.25Z"),
        (1763722708.1234567, "2025-11-21T10:58:28.1234567Z"),
        (4102444799.999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_moments_are_written_in_utc(at_s: float, text: str) -> None:
    """RFC 3339, leap days included, with the digits that the number has and no more."""
    assert (to_timestamp(at_s), to_epoch_s(text)) == (text, at_s)


@given(st.integers(0, 253402300799))
def test_the_calendar_is_the_standard_librarys(second: int) -> None:
    """Any second up to the year 9999 falls on the day that `datetime` says."""
    moment = dt.datetime.fromtimestamp(second, tz=dt.UTC)

    assert to_timestamp(float(second)) == moment.strftime(f"{moment.year:04}-%m-%dT%H:%M:%SZ")


@given(make.moments_s)
def test_a_moment_reads_back_as_the_same_number(at_s: float) -> None:
    """No digit of a clock's reading is lost on its way through an object."""
    assert to_epoch_s(to_timestamp(at_s)) == at_s


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-21", "2026-11-21T10:58:28+01:00", "2026-11-21 10:58:28Z"])
def test_another_texts_are_no_moments(text: str) -> None:
    """Only our own form is read; anything else is named."""
    with pytest.raises(ValueError, match="is no moment in UTC; write one such as"):
        to_epoch_s(text)


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("short", 20, "short"),
        ("two\nlines\tand a bell\a", 40, "two lines and a bell"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123456..."),
        ('""""""', 10, '"""...'),
        ("ääääää", 10, "äää..."),
        ("lone \ud800 half", 40, "lone half"),
    ],
)
def test_sentences_are_cut_by_their_bytes(text: str, limit: int, kept: str) -> None:
    """On one line, without control characters, and as long as its JSON may be: quotes count twice, umlauts too."""
    assert clip(text, limit) == kept


@given(st.text(max_size=900))
def test_a_cut_sentence_fits_and_stays(text: str) -> None:
    """Whatever is said, its JSON fits; and reading a status back changes nothing."""
    kept = clip(text)

    assert len(json.dumps(kept, ensure_ascii=False).encode()) - 2 <= MAX_SENTENCE
    assert clip(kept) == kept


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (10_000_000, "10000000"), (True, "true"), (False, "false"), ("block", "block")],
)
def test_knob_values_keep_their_type(value: KnobValue, text: str) -> None:
    """1 and true are different values, and stay so."""
    back = read_knob(write_knob(value))

    assert (write_knob(value), back, type(back)) == (text, value, type(value))


def make_condition(
    name: JobConditionType = JobConditionType.READY,
    status: ConditionStatus = ConditionStatus.TRUE,
    now_s: float = NOW_S,
) -> JobCondition:
    """A condition as of a moment."""
    return JobCondition(
        type=name, status=status, reason="Because", message="so it is", last_transition_time=to_timestamp(now_s)
    )


@pytest.mark.parametrize(
    ("before", "after", "since_s"),
    [
        ((), make_condition(now_s=NOW_S + 5), NOW_S + 5),
        ((make_condition(),), make_condition(now_s=NOW_S + 5), NOW_S),
        ((make_condition(),), make_condition(status=ConditionStatus.FALSE, now_s=NOW_S + 5), NOW_S + 5),
        ((make_condition(JobConditionType.STALLED),), make_condition(now_s=NOW_S + 5), NOW_S + 5),
    ],
    ids=["first", "same status", "other status", "other type"],
)
def test_a_conditions_time_moves_only_with_its_status(
    before: tuple[JobCondition, ...], after: JobCondition, since_s: float
) -> None:
    """A reason or a message may change every minute; since when it holds does not."""
    found = {condition.type: condition for condition in report(before, after)}

    assert found[after.type].last_transition_time == to_timestamp(since_s)
    assert len(found) == len({condition.type for condition in (*before, after)})


def test_conditions_have_one_order() -> None:
    """The same conditions are the same list however they came, so that nothing is written when nothing changed."""
    ready, stalled = make_condition(), make_condition(JobConditionType.STALLED)

    assert report((stalled,), ready) == report((ready,), stalled) == (ready, stalled)
    assert withdraw((ready, stalled), JobConditionType.READY) == (stalled,)


@pytest.mark.parametrize(
    ("condition", "types"), [(JobCondition, JobConditionType), (ExperimentCondition, ExperimentConditionType)]
)
def test_the_texts_name_our_types(condition: type[Condition], types: type[StrEnum]) -> None:
    """The schema lets any type in, so the text says which ones are ours."""
    text = describe_field(condition, "type")
    assert [word.strip(",.") for word in text.split() if word.strip(",.") in set(types)] == list(types)


def test_conditions_of_other_controllers_are_passed_over() -> None:
    """What we read back are our own; what is no list of conditions is still refused."""
    ours = to_wire(make_condition())
    theirs = ours | {"type": "example.com/Checked"}
    assert from_wire(TrainingJobStatus, {"conditions": [theirs, ours]}).conditions == (make_condition(),)
    complete = ours | {"type": "Complete"}
    (kept,) = from_wire(ExperimentStatus, {"conditions": [complete, theirs]}).conditions
    assert kept.type is ExperimentConditionType.COMPLETE
    with pytest.raises(ValidationError):
        from_wire(TrainingJobStatus, {"conditions": "Ready"})


def test_an_observation_is_kept_in_the_status() -> None:
    """What was measured of the job reads back as it was; the job itself comes from the object's spec, without secrets."""
    job = make_job()
    observation = make_observation(job, make_window(), at_s=NOW_S + 0.125)

    written = report_observation(observation)
    assert written is not None
    kept = from_wire(ObservationReport, json.loads(json.dumps(to_wire(written))))

    assert read_observation(kept, job) == observation


def test_an_observation_that_was_meddled_with_is_not_believed() -> None:
    """A kept summary is checked anew."""
    written = report_observation(make_observation(make_job(), make_window()))
    assert written is not None
    edited = written.model_copy(update={"summary": written.summary.replace('"s":800', '"s":900')})

    found = read_observation(edited, make_job())

    assert isinstance(found, Malformed)
    assert "checksum" in found.reason


def test_an_observation_too_long_to_keep_is_none() -> None:
    """A summary of more than 1,500 bytes has no place in a status."""
    windows = tuple(make.full_window(make.Arm.BASELINE, index) for index in range(8))
    observation: Observation = make_observation(make_job(), *windows)

    assert report_observation(observation) is None
    assert (
        report_observation(observation.model_copy(update={"report": BlockReport(run="r", state="error")})) is not None
    )


def test_a_job_is_read_with_its_status() -> None:
    """Spec by the one parser, status beside it; a status that cannot be read counts as none."""
    manifest = make_manifest() | {"status": {"observedGeneration": 3, "newer": True}}
    broken = make_manifest() | {"status": {"observedGeneration": "many"}}

    assert read_training_job(manifest).job == make_job()
    assert read_training_job(manifest).status == TrainingJobStatus(observed_generation=3)
    assert read_training_job(broken).status == TrainingJobStatus()

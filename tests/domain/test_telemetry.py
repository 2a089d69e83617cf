"""Reports from pods are untrusted: what is believed, and what is refused with which reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.telemetry import (
    MAX_SUMMARY_BYTES,
    Arm,
    BlockReport,
    Malformed,
    Phase,
    WindowOutcome,
    checksum,
    parse_block_summary,
)

RUN = "pydocs-e1-d0"


def make_raw_window(**changes: Any) -> dict[str, Any]:
    """A window in the contract's compact keys."""
    window = {
        "a": "A", "i": 0, "x": "ok", "n": 41, "s": 656, "d": 1, "us": 2013555,
        "ph": [0, 0, 0, 641, 330, 0, 20, 0, 9], "sh": "1f2e3d4c", "el": 64, "di": 1000, "id": "9a8b7c6d",
        "ls": "5e6f7a8b", "lm": 2.3125, "sv": [3, 20111, 150], "st": 47000, "sd": 900, "su": 4100,
        "lb": [24100, 310], "mem": 812, "ck": 2, "sk": [0, 12], "of": 1,
    }  # fmt: skip
    return {**window, **changes}


def make_summary(*windows: dict[str, Any], **changes: Any) -> str:
    """A summary with a true checksum."""
    content = {"v": "amdahl.block/1", "run": RUN, "state": "done", "at": ["B", 1], "live": 1, "cpus": 2}
    content |= {"w": list(windows) or [make_raw_window()]} | changes
    return json.dumps(content | {"crc": checksum(content)})


def test_a_sound_summary_is_read_in_seconds() -> None:
    """The contract's example becomes long names, seconds and shares."""
    report = parse_block_summary(make_summary(), RUN)

    assert isinstance(report, BlockReport)
    (window,) = report.windows
    assert (window.arm, window.outcome, window.steps, window.samples) == (Arm.BASELINE, WindowOutcome.OK, 41, 656)
    assert window.wall_s == pytest.approx(2.013555)
    assert window.share(Phase.INPUT) == pytest.approx(0.641)
    assert window.saves.block_s == pytest.approx(0.020111)
    assert window.loader is not None
    assert (window.loader.batch_s, window.loader.cv) == pytest.approx((0.0241, 0.31))
    assert (report.live, report.cpus, report.running_arm, report.running_index) == (True, 2, Arm.VARIANT, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("[]", "is a JSON list"),
        ("{", "no JSON"),
        ("[" * 700 + "]" * 700, "JSON"),
        (make_summary() + " " * MAX_SUMMARY_BYTES, "more than 1500 bytes"),
        (make_summary(v="amdahl.block/9"), "version is 'amdahl.block/9'"),
        (make_summary(run="other"), "is of run 'other'"),
        (make_summary().replace("656", "657"), "checksum"),
        (make_summary(make_raw_window(us=float("nan"))), "NaN is not a number"),
        (make_summary(make_raw_window(us=float("inf"))), "Infinity is not a number"),
        (make_summary(make_raw_window(n=-1)), "steps"),
        (make_summary(make_raw_window(n=10**18)), "steps"),
        (make_summary(make_raw_window(s=0)), "says ok with 41 steps, 0 samples"),
        (make_summary(make_raw_window(d=0)), "0 devices"),
        (make_summary(make_raw_window(ph=[0, 0, 0, 641, 330, 0, 20, 0, 10])), "summing to 1001"),
        (make_summary(make_raw_window(ph=[1000])), "hases"),
        (make_summary(make_raw_window(ph=[-1, 1, 0, 640, 331, 0, 20, 0, 9])), "hases"),
        (make_summary(make_raw_window(sv=[3, 2_000_000, 0])), "blocked 6.000 s by saves within"),
        (make_summary(make_raw_window(sh="nothex")), "shape"),
        (make_summary(make_raw_window(x="fine")), "outcome"),
        (make_summary(make_raw_window(a="C")), "arm"),
        (make_summary(make_raw_window(why="x" * 201)), "why"),
        (make_summary(make_raw_window(lb=[1])), "lacks or mistypes"),
        (make_summary({"a": "A"}), "lacks or mistypes"),
        (make_summary(w="all"), "lacks or mistypes"),
        (make_summary(w=[{"a": "A", "i": 0, "x": "crash"} for _ in range(9)]), "windows"),
        (make_summary(state="finished"), "state"),
    ],
)  # fmt: skip
def test_what_cannot_be_believed_is_refused_with_its_reason(text: str, reason: str) -> None:
    """Missing, garbled and impossible numbers are values with a reason, never exceptions and never windows."""
    report = parse_block_summary(text, RUN)

    assert isinstance(report, Malformed)
    assert reason in report.reason
    assert len(report.reason) <= 200


def test_a_dead_container_still_says_which_arm_died() -> None:
    """The summary is written before each window: after an OOM kill of everything, `at` names the arm."""
    report = parse_block_summary(make_summary(state="running", at=["B", 2]), RUN)

    assert isinstance(report, BlockReport)
    assert (report.state, report.running_arm, report.running_index) == ("running", Arm.VARIANT, 2)


@given(st.text(max_size=400))
def test_any_text_is_a_value(text: str) -> None:
    """No text whatever makes the parser raise."""
    assert isinstance(parse_block_summary(text, RUN), Malformed)


@given(
    st.dictionaries(
        st.sampled_from(list(make_raw_window())),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9) | st.lists(st.integers(), max_size=9),
        max_size=4,
    )
)  # fmt: skip
def test_any_window_is_believed_or_refused(changes: dict[str, Any]) -> None:
    """Whatever stands in a window's fields, the parser answers; what it believes yields a finite cost."""
    report = parse_block_summary(make_summary(make_raw_window(**changes)), RUN)

    if isinstance(report, BlockReport):
        for window in report.windows:
            if window.is_measured:
                assert -50 < window.device_cost < 50

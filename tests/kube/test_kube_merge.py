"""Several pods' reports as one: the slowest is judged, everybody's samples count, one silent pod voids the block."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.merge import Merged, merge_summaries
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import Arm, BlockReport, Loader, Window, WindowOutcome, parse_block_summary
from builders import make_window

RUN = "pydocs-0123456789-d0"


def report(*windows: Window, **changes: Any) -> str:
    """A pod's summary."""
    fields: dict[str, Any] = {"run": RUN, "state": "done", "cpus": 4, "windows": windows} | changes
    text = render_block_summary(BlockReport(**fields))
    assert text is not None
    return text


def merge(*texts: str) -> BlockReport:
    """The one report."""
    merged = merge_summaries(texts, RUN)
    assert merged.failure == "", merged
    parsed = parse_block_summary(merged.text, RUN)
    assert isinstance(parsed, BlockReport), parsed
    return parsed


def test_one_pods_summary_goes_through_word_for_word() -> None:
    """Whatever it holds: reading it is the domain's."""
    for text in (report(make_window()), "garbage", '{"v": 1}'):
        assert merge_summaries([text], RUN) == Merged(text=text)


def test_the_slowest_pod_is_judged_and_every_sample_counts() -> None:
    """Wall time and phases of the slower pod; samples and devices of both; digests that do not depend on the order."""
    fast = make_window(0.10, 50, sample_ids="00000001", losses="aaaaaaaa", loss_mean=2.0, shape="0000000a", devices=2)
    slow = make_window(
        0.12, 50, shares={"input": 0.5}, sample_ids="ffffffff", losses="bbbbbbbb", loss_mean=4.0, shape="0000000a", devices=2,
        saves=None, batch_s=0.07,
    )  # fmt: skip
    merged = merge(report(fast), report(slow, cpus=2))
    (window,) = merged.windows
    assert (window.wall_s, window.steps, window.samples, window.devices) == (6.0, 50, 1600, 4)
    assert window.phases_ppk == slow.phases_ppk
    assert (window.sample_ids, window.shape, window.loss_mean) == ("00000000", "0000000a", 3.0)
    assert window.loader == Loader(batch_s=0.06, cv=0.05)
    assert merged.cpus == 2
    assert merge(report(fast), report(slow)).windows[0].losses != merge(report(slow), report(fast)).windows[0].losses


def test_pods_that_stopped_at_another_step_are_counted_at_the_slowest_pace() -> None:
    """A supervisor ends a window at its own clock; the samples of the others are scaled, digests are left out."""
    merged = merge(
        report(make_window(0.1, 51, sample_ids="00000001")), report(make_window(0.11, 50, sample_ids="00000002"))
    )
    (window,) = merged.windows
    assert (window.steps, window.samples, window.sample_ids) == (50, 1600, None)


def test_the_worst_outcome_of_any_pod_is_the_windows() -> None:
    """An arm that ran out of memory in one pod has lost, whatever the others say of its end."""
    pods = [
        report(make_window(), make_window(arm=Arm.VARIANT, index=1)),
        report(make_window(), Window(arm=Arm.VARIANT, index=1, outcome=WindowOutcome.NO_REPORT)),
        report(make_window(), Window(arm=Arm.VARIANT, index=1, outcome=WindowOutcome.OOM, exit_code=-9)),
    ]
    assert [window.outcome for window in merge(*pods).windows] == [WindowOutcome.OK, WindowOutcome.OOM]


@pytest.mark.parametrize(
    ("texts", "failure"),
    [
        pytest.param([report(make_window()), ""], "no_summary: pod 1 left no termination message", id="silent"),
        pytest.param(["", ""], "no_summary: pod 0, 1 left", id="all silent"),
        pytest.param([""], "no_summary", id="the only one silent"),
        pytest.param([report(make_window()), "{"], "no_summary: pod 1: summary is no JSON", id="garbled"),
        pytest.param(
            [report(make_window()), report(make_window(), run="other")], "no_summary: pod 1", id="another run's"
        ),
        pytest.param(
            [report(make_window()), report()], "no_summary: the pods report different windows", id="fewer windows"
        ),
        pytest.param(
            [report(make_window()), report(make_window(arm=Arm.VARIANT))],
            "no_summary: the pods report different",
            id="other arm",
        ),
    ],
)
def test_a_report_that_is_missing_or_unlike_voids_the_block(texts: list[str], failure: str) -> None:
    """There is no half of a block."""
    merged = merge_summaries(texts, RUN)
    assert merged.text == ""
    assert merged.failure.startswith(failure)


@pytest.mark.parametrize("state", ["error", "running"])
def test_a_pod_that_was_cut_short_speaks_for_all(state: str) -> None:
    """Its own text says why, and in which arm."""
    cut = report(make_window(), state=state, why="no space left", running_arm="B", running_index=1)
    assert merge_summaries([report(make_window()), cut], RUN) == Merged(text=cut)


def test_a_pod_that_works_longer_than_the_others_is_the_straggler() -> None:
    """Ranks of one pod share its fate."""
    slow = make_window(0.15, 50, straggler=(5, 20))
    (window,) = merge(report(make_window(0.1, 50)), report(make_window(0.1, 50)), report(slow)).windows
    assert window.straggler == (5, 333)


@pytest.mark.parametrize(
    ("dtypes", "expected"), [(("bfloat16", "bfloat16"), "bfloat16"), (("bfloat16", None), None), ((None, None), None)]
)
def test_what_any_pod_does_not_take_is_named_and_one_type_is_told(
    dtypes: tuple[str | None, str | None], expected: str | None
) -> None:
    """A knob that one rank cannot take is not taken by the job; a type of products is told where all agree."""
    first = make_window(0.12, 50, ignored=("compile",), dtype=dtypes[0])
    second = make_window(0.10, 50, ignored=("bucketMb", "compile"), dtype=dtypes[1])

    (window,) = merge(report(first), report(second)).windows

    assert (window.ignored, window.dtype) == (("bucketMb", "compile"), expected)

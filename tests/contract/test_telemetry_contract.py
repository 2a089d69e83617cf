"""Operator, probe and trainer share no code: these tests hold them to one telemetry contract (docs/telemetry.md)."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain import telemetry
from amdahl_loop.domain.knob_values import KnobName, environment_name
from amdahl_probe import emit, plan, spans, summary, windows
from amdahl_trainer import knobs as trainer_knobs

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()


def test_the_phases_are_the_same_everywhere() -> None:
    """Operator, probe and page name the same phases in the same order."""
    (line,) = re.findall(r"in this order: `([a-z ]+)`", PAGE)

    assert tuple(line.split()) == spans.PHASES == tuple(phase.value for phase in telemetry.PHASES)


def test_bounds_and_versions_are_the_same() -> None:
    """A summary that the probe may write is one that the operator may read."""
    assert summary.MAX_BYTES == telemetry.MAX_SUMMARY_BYTES
    assert summary.VERSION == telemetry.SUMMARY_VERSION
    assert all(version in PAGE for version in (summary.VERSION, plan.VERSION, emit.VERSION))


def test_knobs_have_one_name_in_the_environment() -> None:
    """What the operator sets is what the trainer reads, and what the page promises to users."""
    ours = {knob.value: environment_name(knob) for knob in KnobName}

    assert all(
        trainer_knobs.ENVIRON[name] == variable for name, variable in ours.items() if name in trainer_knobs.ENVIRON
    )
    assert all(f"`{variable}`" in PAGE for variable in ours.values())


def test_window_outcomes_have_one_vocabulary() -> None:
    """Every word of the supervisor is a word of the operator, and stands on the page."""
    (row,) = re.findall(r"^\| `x` \|(.*)\|$", PAGE, flags=re.MULTILINE)

    assert set(re.findall(r"`([a-z_]+)`", row.split("(")[0])) >= {"ok", "crash", "oom", "hang"}
    assert {outcome.value for outcome in telemetry.WindowOutcome} == {
        "ok", "crash", "oom", "hang", "no_steps", "no_report", "void", "signal",
    }  # fmt: skip


NUMBERS = windows.Numbers(
    steps=41,
    samples=656,
    devices=1,
    wall_us=2013555,
    phases_ppk=(0, 0, 0, 641, 330, 0, 20, 0, 9),
    shape="1f2e3d4c",
    elements_per_sample=64.125,
    distinct_ppk=1000,
    ids="9a8b7c6d",
    losses="5e6f7a8b",
    mean_loss=2.3125,
    saves=(3, 20111, 150),
    step_us=47000,
    step_sd_us=900,
    loader=(24100, 310),
    clock_ppk=-2,
    slowest=(0, 12),
    offset_applied=True,
    ignored=("compile",),
    dtype="bfloat16",
)


def render(*numbers: windows.Numbers) -> str:
    """The summary of run-1 with these measured windows."""
    entries = tuple(
        summary.Entry(arm="AB"[at % 2], index=at, scored=True, outcome="ok", numbers=one, startup_ms=4100, mem_mib=812)
        for at, one in enumerate(numbers)
    )
    block = summary.Block(run="run-1", state="done", at=("B", 3), is_live=True, cpus=2, entries=entries)
    return summary.render(block).decode()


def test_what_the_probe_renders_the_operator_reads() -> None:
    """A rendered block parses into the same numbers, in seconds."""
    report = telemetry.parse_block_summary(render(NUMBERS), "run-1")

    assert isinstance(report, telemetry.BlockReport), report
    (window,) = report.windows
    assert (window.steps, window.samples, window.devices, window.clock_ppk) == (41, 656, 1, -2)
    assert (window.wall_s, window.startup_s, window.quiet_step_s) == pytest.approx((2.013555, 4.1, 0.047))
    assert window.share(telemetry.Phase.INPUT) == pytest.approx(0.641)
    assert (window.shape, window.sample_ids, window.losses) == ("1f2e3d4c", "9a8b7c6d", "5e6f7a8b")
    assert (report.live, report.cpus, window.straggler, window.offset_applied) == (True, 2, (0, 12), True)
    assert (window.ignored, window.dtype) == (("compile",), "bfloat16")


@given(
    steps=st.integers(1, 10**6),
    batch=st.integers(1, 4096),
    devices=st.integers(1, 4096),
    wall_us=st.integers(1000, 10**11),
)
def test_any_measured_window_survives_the_way(steps: int, batch: int, devices: int, wall_us: int) -> None:
    """Whatever sizes a job has, the summary stays in bounds and is believed."""
    numbers = NUMBERS._replace(
        steps=steps, samples=steps * batch, devices=devices, wall_us=wall_us, saves=(1, wall_us // 2, 150)
    )
    text = render(*[numbers] * 4)

    report = telemetry.parse_block_summary(text, "run-1")

    assert len(text.encode()) <= telemetry.MAX_SUMMARY_BYTES
    assert isinstance(report, telemetry.BlockReport), report
    assert [window.steps for window in report.windows] == [steps] * 4


def test_a_recorded_report_goes_back_through_the_same_form() -> None:
    """Replay encodes what was recorded and parses it anew: nothing is lost on that way either."""
    report = telemetry.parse_block_summary(render(NUMBERS), "run-1")
    assert isinstance(report, telemetry.BlockReport)

    assert telemetry.parse_block_summary(encode_report(report), "run-1") == report


def test_the_page_s_example_is_a_summary() -> None:
    """The example of the contract page parses, but for its made-up checksum."""
    (example,) = re.findall(r"```json\n(\{\"v\":\"amdahl.block/1\".*?)\n```", PAGE, flags=re.DOTALL)
    content = json.loads(example)
    content["crc"] = telemetry.checksum({key: value for key, value in content.items() if key != "crc"})

    assert isinstance(telemetry.parse_block_summary(json.dumps(content), content["run"]), telemetry.BlockReport)

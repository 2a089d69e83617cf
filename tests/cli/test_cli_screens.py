"""What people see: no line wider than the terminal, foreign text that cannot steer it, bars that add up."""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from amdahl_loop.cli.bars import PhaseBar, share_out
from amdahl_loop.cli.words import clean, device_hours, duration, percent, saved, step_time
from amdahl_loop.domain.telemetry import PHASES

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG_NAME = "a-very-long-name-of-a-training-job-that-fills-sixty-three-chars"


def lines_of(text: str) -> list[str]:
    """What a terminal shows, line by line, without what moves and colours."""
    return [ANSI.sub("", line) for line in re.split(r"[\r\n]+", text)]


@given(
    st.dictionaries(st.sampled_from([p.value for p in PHASES]), st.floats(0.001, 1), min_size=1), st.integers(0, 300)
)
def test_bars_add_up(shares: dict[str, float], cells: int) -> None:
    """Whole cells, as many as there are, none farther than one from its exact share."""
    shared = share_out(shares, cells)
    total = sum(shares.values())

    assert sum(shared.values()) == cells
    assert all(abs(shared[name] - cells * share / total) < 1 for name, share in shares.items())


@pytest.mark.parametrize(
    ("encoding", "colours", "expected"),
    [("utf-8", "truecolor", "█" * 40), ("utf-8", None, "█" * 20 + "▒" * 10 + "▓" * 10), ("ascii", None, "#" * 20 + "i" * 10 + "k" * 10)],
)  # fmt: skip
def test_phases_can_be_told_apart_on_any_terminal(encoding: str, colours: Any, expected: str) -> None:
    """By colour, else by pattern, else by letter."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=40, color_system=colours, force_terminal=colours is not None)
    with console.capture() as captured:
        console.print(PhaseBar({"input": 0.25, "checkpoint": 0.25, "compute": 0.5}))
    bar, legend = captured.get().splitlines()[:2]

    assert ANSI.sub("", bar) == expected
    assert len(set(re.findall(r"\x1b\[3\dm", bar))) == (3 if colours else 0)
    assert "compute 50 %" in ANSI.sub("", legend)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["pydocs", LONG_NAME])
def test_no_screen_is_wider_than_its_terminal(cli: Any, name: str, width: int) -> None:
    """Every command, the live view included, with short names and with the longest."""
    cli.write(cli.manifest.read_text().replace("pydocs", name))
    cli.width = width
    commands = (
        ["run", cli.manifest],
        ["explain", cli.manifest],
        ["ledger"],
        ["show", name[:3]],
        ["replay", cli.ledger],
    )
    for words in commands:
        called = cli(*words)
        lines = lines_of(called.out)

        assert called.code == 0
        assert max(map(cell_len, lines)) <= width
        assert len(lines) > 2


def test_the_live_view_tells_where_the_loop_is(cli: Any) -> None:
    """Phases, class, hypothesis, block, window, what was found so far, the bank."""
    cli.width = 100
    told = "\n".join(lines_of(cli("run", cli.manifest).out))

    for words in (
        "compute 29 %   █ input 71 %",
        "InputBound",
        "dataloaderWorkers 0 -> 3  expected to save 71 % (rule)",
        "discovery block 2",
        "refute check 3 of 3",
        "left if it wins",
        "discovery +7",
        "bank: gross 0, spent 0 (of at most 100), net 0 device-hours",
        "Won  dataloaderWorkers 0 -> 3  saves 7",
    ):
        assert words in told


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b[31mred", "\x07bell\x08", "a\nb\tc", "\x9b5n", "\u202eright to left", "[bold]markup[/bold]"]
)
def test_foreign_text_cannot_steer_the_terminal(text: str) -> None:
    """What a training process says is shown, never obeyed."""
    shown = clean(text)

    assert all(letter.isprintable() for letter in shown)
    assert "[bold]markup[/bold]" in shown or "bold" not in text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.385), "38 %"),
        (percent(0.041), "4.1 %"),
        (percent(0.0996), "10 %"),
        (saved(0.4), "saves 40 %"),
        (saved(-1.16), "costs 116 % more"),
        (duration(8.4), "8 s"),
        (duration(89.6), "90 s"),
        (duration(200), "3 min"),
        (duration(4_800), "80 min"),
        (duration(6_000), "1 h 40 min"),
        (step_time(0.0405), "40.5 ms"),
        (step_time(2.5), "2.5 s"),
        (device_hours(0.00505), "0.00505"),
        (device_hours(8.974), "8.97"),
        (device_hours(74.4), "74.4"),
        (device_hours(1234.5), "1234"),
        (device_hours(-0.11), "-0.11"),
    ],
)
def test_numbers_are_as_exact_as_they_deserve(written: str, expected: str) -> None:
    """Few digits, the right unit."""
    assert written == expected


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_real_terminal(tmp_path: Path, columns: int) -> None:
    """Run on a pseudo-terminal: a live view is drawn and taken away, and nothing is wider than the window."""
    (tmp_path / "job.yaml").write_text(
        "apiVersion: amdahl-loop.io/v1alpha1\nkind: TrainingJob\n"
        f"metadata: {{name: {LONG_NAME}}}\n"
        "spec: {tuning: {profile: quick}, template: {spec: {containers: [{name: trainer, command: [/bin/false]}]}}}\n"
    )
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", "from amdahl_loop.cli.main import main; raise SystemExit(main())", "run", "job.yaml"],
        cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    text = read_all(ours)
    lines = lines_of(text)

    assert process.wait() == 1
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert max(map(cell_len, lines)) <= columns
    assert any("Observing" in line for line in lines)
    assert "Not observed: the training process failed, exit code 1" in " ".join(lines)


def read_all(descriptor: int) -> str:
    """What a program writes to its terminal until it lets go of it."""
    content = b""
    try:
        while part := os.read(descriptor, 4096):
            content += part
    except OSError:  # Linux tells so that the other end is closed
        pass
    os.close(descriptor)
    return content.decode()

"""The time line of a rank: there whatever ended the run, bounded, and opened by what opens Chrome traces."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_probe import trace
from amdahl_probe.trace import Trace
from probe.runs import PYTHON, SCRIPTS


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a file; a missing end is added, as its readers do."""
    text = path.read_text().rstrip()
    return json.loads(text if text.endswith("]") else text.rstrip(",") + "]")


class Clock:
    """A clock that is set by hand, seconds."""

    now_s = 5.0

    def __call__(self) -> int:
        return round(self.now_s * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[[], Trace]:
    """A trace in a directory of its own."""
    return lambda: Trace(tmp_path, clock)


def test_events_are_complete_events_in_microseconds(make: Callable[[], Trace], tmp_path: Path) -> None:
    """One named process a rank; an array that is whole when the run ended by itself."""
    kept = make()
    kept.spans.extend([("input", 1_000, 3_500), ("compute", 3_500, 4_000)])
    kept.close(rank=2)
    head, *events, _ = json.loads((tmp_path / "trace-2.json").read_text())

    assert head["args"] == {"name": "rank 2"}
    assert [(e["name"], e["ph"], e["ts"], e["dur"], e["pid"]) for e in events] == [
        ("input", "X", 1.0, 2.5, 2), ("compute", "X", 3.5, 0.5, 2)
    ]  # fmt: skip


def test_it_is_written_once_a_second(make: Callable[[], Trace], clock: Clock, tmp_path: Path) -> None:
    """The first step at once, later ones together, and what the writing took is in it."""
    kept, seen = make(), []
    for now_s, name in ((5.0, "startup"), (5.5, "input"), (5.9, "compute"), (6.1, "other")):
        clock.now_s = now_s
        kept.spans.append((name, 0, 1))
        kept.flush(rank=0)
        seen.append([event["name"] for event in read(tmp_path / "trace-0.json")[1:]])

    assert seen == [["startup"]] * 3 + [["startup", "probe", "input", "compute", "other"]]


def test_disk_and_memory_are_bounded(
    make: Callable[[], Trace], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full file becomes the older one; spans that never found a step to be written at give way to newer ones."""
    monkeypatch.setattr(trace, "MAX_EVENTS", 5)
    kept = make()
    for at in range(7):
        clock.now_s += 1
        kept.spans.append((f"s{at}", 0, 1))
        kept.flush(rank=0)
    names = {path.name: [event["name"] for event in read(path)[1:]] for path in tmp_path.iterdir()}

    assert names == {"trace-0.older.json": ["probe", "s4", "probe", "s5"], "trace-0.json": ["probe", "s6"]}
    assert kept.spans.maxlen == trace.MAX_WAITING


def test_an_earlier_run_is_forgotten(make: Callable[[], Trace], tmp_path: Path) -> None:
    """Both of its files."""
    for name in ("trace-0.json", "trace-0.older.json"):
        (tmp_path / name).write_text("[\n{},\n")
    kept = make()
    kept.close(rank=0)

    assert [path.name for path in tmp_path.iterdir()] == ["trace-0.json"]
    assert [event["name"] for event in read(tmp_path / "trace-0.json")] == ["process_name", "process_sort_index"]


def test_a_disk_that_refuses_ends_the_trace_alone(
    make: Callable[[], Trace], clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """[P] Said once; nothing is raised."""
    (tmp_path / "trace-0.json").mkdir()
    kept = make()
    for _ in range(2):
        clock.now_s += 1
        kept.spans.append(("input", 0, 1))
        kept.flush(rank=0)
    kept.close(rank=0)

    assert capsys.readouterr().err.count("amdahl_probe: the trace ends here: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_script_leaves_its_trace(
    number: int, probe_zip: Path, bare_env: dict[str, str], tmp_path: Path
) -> None:
    """What was closed by the last flush is there."""
    env = {**bare_env, "PYTHONPATH": str(probe_zip), "AMDAHL_TELEMETRY_DIR": str(tmp_path), "AMDAHL_TRACE": "1"}
    with subprocess.Popen([PYTHON, str(SCRIPTS / "endless.py")], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while not (tmp_path / "trace-0.json").exists():
            assert process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()

    assert process.returncode == -number
    assert {"startup", "compute"} <= {event["name"] for event in read(tmp_path / "trace-0.json")}

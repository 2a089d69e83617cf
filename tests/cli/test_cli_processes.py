"""The command line with real processes: interrupted at any time nothing is left, and the loop can go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.sqlite import SqliteLedger

TRAIN = """\
import json, os, signal, time

now = time.monotonic_ns
workers = int(os.environ["AMDAHL_DATALOADER_WORKERS"])
wait_ns = 0 if workers or {is_compute_bound} else 4_000_000
told = open(os.environ.get("AMDAHL_TELEMETRY_DIR", ".") + "/rank-0.jsonl", "a", buffering=1)
say = lambda **record: told.write(json.dumps(record) + "\\n")
say(k="start", v="amdahl.step/1", rank=0, world=1, pid=os.getpid(), t=now(), t0=now(), device="cpu", live=False, by="x")
say(k="offset", t=now(), seq=0, offset=int(os.environ.get("AMDAHL_DATA_OFFSET", 0)), seed=1, applied=True, why="")
say(k="startup", t=now(), ns=1, parts={{}})
step, before = 0, now()
while True:
    time.sleep((4_000_000 + wait_ns) / 1e9)
    end = now()
    lost = min(wait_ns, end - before)
    say(k="step", i=step, t=end, w=end - before, ph={{"compute": end - before - lost, "input": lost}}, n=8, el=8,
        sig=f"{{step:08x}}", shape="0" * 8, ids=f"{{step:08x}}", loss=1.0 / (step + 1), seq=0, lb=[1, 4_000_000, 16_000_000],
        tags=[])
    step, before = step + 1, end
"""
"""A training without torch: it tells its steps itself, and waits for its data unless it has a worker."""

MANIFEST = """\
apiVersion: amdahl-loop.io/v1alpha1
kind: TrainingJob
metadata: {name: waiting}
spec:
  knobs: {dataloaderWorkers: 0}
  template: {spec: {containers: [{name: trainer, command: [PYTHON, train.py]}]}}
  tuning: {profile: quick, knobs: {dataloaderWorkers: {max: 1}}}
"""

CALL = [sys.executable, "-c", "from amdahl_loop.cli.main import main; raise SystemExit(main())"]
PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a job that waits for its data."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "train.py").write_text(TRAIN.format(is_compute_bound=0))
    (tmp_path / "job" / "job.yaml").write_text(MANIFEST.replace("PYTHON", sys.executable))
    return tmp_path


HEARING = ("env", "--default-signal=HUP")
"""Starts a program that a closed terminal ends, also where the tests themselves run under `nohup`."""


def start(folder: Path, *words: str, prefix: Sequence[str] = HEARING, **options: Any) -> subprocess.Popen[str]:
    """A command in a session of its own, its log in a file."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "100"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*prefix, *CALL, *words],
            cwd=folder / "job",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            **options,
        )


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Poll until something is so; only its never being so fails a test."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def processes_of(folder: Path) -> list[str]:
    """Everything alive that belongs to a run of this folder's loop, by its environment."""
    marker = f"AMDAHL_RUN_DIR={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def is_training(folder: Path) -> bool:
    """Whether the user's program runs."""
    return any("train.py" in command and "amdahl" not in command for command in processes_of(folder))


def experiments_in(folder: Path) -> list[Any]:
    """What the ledger holds; it is verified to the last entry by being opened."""
    done = subprocess.run(
        [*CALL, "ledger", "-o", "json"],
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout)["experiments"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "signals"),
    [
        ("observing", [signal.SIGTERM]),
        ("observing", [signal.SIGHUP]),
        ("observing", [signal.SIGINT, signal.SIGINT]),
        ("proof block 1", [signal.SIGINT]),
        ("proof block 1", [signal.SIGINT, signal.SIGTERM]),
    ],
)
def test_interrupted_nothing_is_left(folder: Path, moment: str, signals: list[signal.Signals]) -> None:
    """Code 130, no process, no trace of the run, a sound ledger that nobody holds."""
    process = start(folder, "run", "job.yaml", "-o", "json")
    wait_for(lambda: moment in (folder / "log").read_text() and is_training(folder), "the training never started")
    for number in signals:
        process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    wait_for(lambda: not processes_of(folder), "a process is left")
    assert len(experiments_in(folder)) == (moment != "observing")
    SqliteLedger.open(folder / "state" / "amdahl-loop" / "ledger.sqlite").close()
    if len(signals) == 1:
        assert "Go on with: amdahl-loop run job.yaml" in json.loads(out)["reason"]
        assert not any((folder / "state" / "amdahl-loop").glob("loop-*/*"))


@pytest.mark.slow
def test_nohup_is_heeded(folder: Path) -> None:
    """A loop started under nohup goes on when its terminal closes, and ends when told to."""
    process = start(folder, "run", "job.yaml", "-o", "json", prefix=["nohup"])
    log = folder / "log"
    wait_for(lambda: "observing" in log.read_text() and is_training(folder), "the training never started")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "proof block 1" in log.read_text(), "the loop went no further")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    wait_for(lambda: not processes_of(folder), "a process is left")


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.6, 1.0])
def test_interrupted_twice_at_any_moment(folder: Path, delay_s: float) -> None:
    """From the first instant of the program on: no process is left, and the ledger opens."""
    process = start(folder, "run", "job.yaml", "-o", "json")
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    time.sleep(delay_s / 5)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode != 0
    wait_for(lambda: not processes_of(folder), "a process is left")
    SqliteLedger.open(folder / "state" / "amdahl-loop" / "ledger.sqlite").close()


@pytest.mark.slow
def test_killed_and_taken_up_again(folder: Path) -> None:
    """SIGKILL leaves no process either; the next run finishes what a compute-bound job needs, and says so."""
    (folder / "job" / "train.py").write_text(TRAIN.format(is_compute_bound=1))
    process = start(folder, "run", "job.yaml", "-o", "json")
    wait_for(lambda: is_training(folder), "the training never started")
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not processes_of(folder), "a process is left")

    again = start(folder, "run", "job.yaml", "-o", "json")
    out, _ = again.communicate(timeout=PATIENCE_S)
    told = json.loads(out)
    assert again.returncode == 0
    assert (told["diagnosis"]["class"], told["experiments"]) == ("ComputeBound", [])

    settled = start(folder, "run", "job.yaml", "-o", "json")
    out, _ = settled.communicate(timeout=PATIENCE_S)
    assert json.loads(out) == told
    assert (folder / "log").read_text().count("observing waiting") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("[no-such-program]", 1, "exit code"),
        ("[/bin/false]", 1, "exit code 1"),
        ("[PYTHON, -c, 'import time; print(1)']", 1, "Not observed"),
    ],
)
def test_programs_that_cannot_be_observed(folder: Path, command: str, code: int, told: str) -> None:
    """A command that is not found, fails, or never steps: code 1, one sentence, no traceback."""
    path = folder / "job" / "job.yaml"
    path.write_text(MANIFEST.replace("[PYTHON, train.py]", command).replace("PYTHON", sys.executable))
    process = start(folder, "run", "job.yaml")
    process.communicate(timeout=PATIENCE_S)
    log = (folder / "log").read_text()

    assert process.returncode == code
    assert told in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_train_passes_the_exit_code_through(folder: Path) -> None:
    """The training runs on the user's real files, with the values in force, and its exit code is the command's."""
    program = TRAIN.format(is_compute_bound=1).replace(
        "now = time", "if 'AMDAHL_TELEMETRY_DIR' not in os.environ:\n    open('trained', 'w').write("
        "os.environ['AMDAHL_DATALOADER_WORKERS'])\n    raise SystemExit(7)\nnow = time", 1
    )  # fmt: skip
    (folder / "job" / "train.py").write_text(program)
    process = start(folder, "run", "job.yaml", "--train")
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 7
    assert (folder / "job" / "trained").read_text() == "0"


@pytest.mark.slow
def test_trace_gathers_what_the_ranks_left(folder: Path) -> None:
    """A program that does not end when asked is killed in time; its unfinished trace becomes the file, and that is all."""
    event = {"name": "compute", "ph": "X", "pid": 0, "tid": 0, "ts": 1, "dur": 2}
    program = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "assert os.environ['AMDAHL_TRACE'] == '1'\n"
        "with open(os.environ['AMDAHL_TELEMETRY_DIR'] + '/trace-0.json', 'w') as file:\n"
        f"    file.write('[\\n{json.dumps(event)},\\n' + '{{\"name\": \"cut')\n"
        "time.sleep(600)\n"
    )
    (folder / "job" / "train.py").write_text(program)
    process = start(folder, "trace", "job.yaml", "--seconds", "3", "--out", "trace.json")
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, (folder / "log").read_text()
    assert json.loads((folder / "job" / "trace.json").read_text())["traceEvents"] == [event]
    assert sorted(path.name for path in (folder / "job").iterdir()) == ["job.yaml", "trace.json", "train.py"]
    assert processes_of(folder) == []


def test_a_terminal_without_unicode_is_no_fault(folder: Path) -> None:
    """What cannot be written is shown as a question mark; the loop does not end over it."""
    path = folder / "job" / "job.yaml"
    path.write_text(f"{path.read_text()}  replicas: äöü\n")
    done = subprocess.run(
        [*CALL, "run", "job.yaml"],
        cwd=folder / "job",
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "spec.replicas: '???'" in done.stderr


def test_an_unprotected_job_is_refused(folder: Path) -> None:
    """What one machine cannot give is named with the fix before anything runs: code 4."""
    path = folder / "job" / "job.yaml"
    path.write_text(f"{path.read_text()}  replicas: 2\n")
    process = start(folder, "run", "job.yaml")
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 4
    assert "spec.replicas: 2: one machine runs one replica; set 1, or use a cluster" in (folder / "log").read_text()

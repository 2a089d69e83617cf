"""The launcher: one exit code for all ranks, SIGTERM forwarded, a dead rank named and the rest ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from amdahl_trainer import launch
from amdahl_trainer.errors import Exit

HERE = Path(__file__).parent
TRAINER_IMAGE = Path(launch.__file__).parents[1]

#: A rank that waits for SIGTERM and yields; it says when it is ready.
WAITS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """`watch` installs handlers; put the old ones back."""
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def ranks(script, nproc, *arguments):
    return launch.start([sys.executable, "-c", script, *arguments], nproc)


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([0, 78], 78), ([3, 0], 3)]
)
def test_exit_codes_become_one(codes, expected):
    """Finished only if all finished; yielded if none failed; else the failure."""
    script = f"import os, sys; sys.exit({codes}[int(os.environ['RANK'])])"
    assert launch.watch(ranks(script, 2), 5.0) == expected


def test_ranks_know_their_place():
    """Rank, world, local rank and a common address are in the environment; threads share the cores."""
    script = (
        "import os, sys; e = os.environ; sys.exit(0 if e['WORLD_SIZE'] == e['LOCAL_WORLD_SIZE'] == '3' and "
        "e['RANK'] == e['LOCAL_RANK'] and e['MASTER_ADDR'] == '127.0.0.1' and int(e['MASTER_PORT']) > 0 and "
        "int(e['OMP_NUM_THREADS']) >= 1 else 9)"
    )
    assert launch.watch(ranks(script, 3), 5.0) == 0


def test_sigterm_reaches_all_ranks(tmp_path):
    """A SIGTERM to the launcher is one to each rank; all yield."""
    started = ranks(WAITS, 2, str(tmp_path))

    def stop():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until `watch` takes it over
    thread.start()
    assert launch.watch(started, 30.0) == Exit.YIELDED
    thread.join()


def test_a_rank_that_dies_is_named_and_ends_the_others(tmp_path, capfd):
    """Rank 1 is killed; rank 0, which would wait for ever, is ended; the code is the signal's."""
    script = WAITS + "\n"
    dies = "import os\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\n" + script
    assert launch.watch(ranks(dies, 2, str(tmp_path)), 30.0) == 128 + signal.SIGKILL
    assert "rank 1 ended with signal SIGKILL; ending the others" in capfd.readouterr().err


def test_a_rank_that_ignores_sigterm_is_killed(monkeypatch):
    """After the grace period there is no way out."""
    monkeypatch.setattr(launch, "FAILURE_GRACE_S", 0.3)
    script = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "0":
    sys.exit(77)
time.sleep(60)
"""
    assert launch.watch(ranks(script, 2), 30.0) == Exit.OUT_OF_MEMORY


def test_a_number_of_processes_that_is_none_is_refused(capsys):
    """The knob's placeholder, not expanded, gets a readable error."""
    with pytest.raises(SystemExit):
        launch.main(["--nproc", "$(AMDAHL_GPUS_PER_REPLICA)", "--", "--config", "x"])
    assert "is no number of processes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_real_thing_yields_on_sigterm(tmp_path, tiny_arguments, nproc):
    """From the command line, with the probe on PYTHONPATH: 75, one set of records, all by the trainer."""
    arguments = [*tiny_arguments, "--run.max_steps=1000000"]
    environ = {
        **os.environ,
        "PYTHONPATH": f"{TRAINER_IMAGE / 'amdahl_probe' / 'entry'}:{TRAINER_IMAGE}",
        "AMDAHL_TELEMETRY_DIR": str(tmp_path),
        "AMDAHL_METRICS_PORT": "0",
    }
    command = [sys.executable, "-m", "amdahl_trainer.launch", "--nproc", str(nproc), "--", *arguments]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    record = tmp_path / f"rank-{nproc - 1}.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and '"k":"step"' in record.read_text()):
        time.sleep(0.05)
    served = scrape(int((tmp_path / "metrics.port").read_text()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == Exit.YIELDED, (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["by"] for line in lines if line["k"] == "start"] == ["trainer"]
    assert lines[-1]["why"] == "sigterm"
    assert "amdahl_steps_total" in served
    assert 'amdahl_phase_seconds_total{phase="compute"}' in served
    assert "amdahl_mfu" not in served  # the peak of a CPU is unknown


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return reply.read().decode()

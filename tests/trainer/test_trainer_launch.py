"""The launcher: one exit code for all ranks, SIGTERM forwarded, a dead rank named and the rest ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
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
from amdahl_trainer.launch import Ended, Layout

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


def ranks(script, nproc, *arguments, **layout):
    return launch.start([sys.executable, "-c", script, *arguments], Layout(nproc, **layout))


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


def test_the_table_of_exit_codes_is_that_of_the_code():
    """docs/trainer/launch.md tells of each code by its number and name."""
    page = (HERE.parents[1] / "docs" / "trainer" / "launch.md").read_text()
    told = re.findall(r"^\| (\d+) \| (\w+) \| \S", page, flags=re.MULTILINE)
    assert told == [(str(int(one)), one.name.lower()) for one in Exit]


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ([Ended(0, 0), Ended(1, 0)], 0),
        ([Ended(0, 0), Ended(1, 75, "stop")], 75),
        ([Ended(1, 137), Ended(0, 80, "failure")], 137),
        ([Ended(0, 80), Ended(1, 137, "failure")], 80),  # the cause was on another machine
        ([Ended(0, 80), Ended(1, 78, "failure")], 78),
        ([Ended(0, 81), Ended(1, 137, "failure")], 81),
        ([Ended(0, 81), Ended(1, 81, "failure")], 81),
        ([Ended(0, 143, "stop"), Ended(1, 75, "stop")], 75),  # stopped while Python was starting
        ([Ended(0, 75), Ended(1, 80, "stop")], 75),
        ([Ended(0, 137, "stop"), Ended(1, 137, "failure")], 137),  # the grace was not enough
        ([Ended(1, 77), Ended(0, 143, "failure")], 77),
        ([Ended(0, 79), Ended(1, 79, "failure")], 79),
        ([Ended(0, 82), Ended(1, 82, "failure")], 82),
    ],
)
def test_the_cause_gives_the_job_its_code(ended, code):
    """Ranks that a failure took with it, by whichever signal or code, are no cause."""
    assert launch.combine(ended) == code


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (["oom_kill 0", "oom_kill 1"], Exit.OUT_OF_MEMORY),
        (["oom_kill 4", "oom_kill 4"], 137),
        ([None, None], 137),
    ],
)
def test_a_rank_that_the_kernel_killed_for_memory_ran_out_of_it(monkeypatch, tmp_path, events, code):
    """The kernel counts such kills of a container; a SIGKILL beside one more of them was one."""
    before, after = events
    monkeypatch.setattr(launch, "MEMORY_EVENTS", tmp_path / "memory.events")
    if before:
        launch.MEMORY_EVENTS.write_text(f"low 0\nhigh 0\n{before}\n")
    started = ranks("import os, time; time.sleep(0.2); os.kill(os.getpid(), 9)", 1)
    if after:
        launch.MEMORY_EVENTS.write_text(f"low 0\nhigh 0\n{after}\n")
    assert launch.watch(started, 5.0) == code


OPERATOR = {"MASTER_ADDR": "job-0.svc", "MASTER_PORT": "29500", "AMDAHL_REPLICAS": "2", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, Layout()),
        (["--nproc", "4"], {"AMDAHL_GPUS_PER_REPLICA": "2"}, Layout(4)),
        ([], {"AMDAHL_GPUS_PER_REPLICA": "2"}, Layout(2)),
        ([], {"AMDAHL_REPLICAS": "1", "JOB_COMPLETION_INDEX": "7"}, Layout()),  # pods that have nothing in common
        ([], OPERATOR, Layout(1, 2, 1, "job-0.svc", 29500)),
        (["--nproc=8"], OPERATOR, Layout(8, 2, 1, "job-0.svc", 29500)),
        (
            ["--nnodes=3", "--node-rank=2", "--master=[::1]:7"],
            OPERATOR,
            Layout(1, 3, 2, "::1", 7),
        ),
    ],
)
def test_the_layout_comes_from_the_command_or_from_the_pod(arguments, environ, expected):
    """What the operator, and Kubernetes for the pods of an Indexed Job, set in the environment is the default."""
    assert launch.parse([*arguments, "--", "--config", "x"], environ).layout == expected


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--nnodes", "2"], {}, "must be HOST:PORT of the first machine"),
        (["--nnodes", "2", "--master", "a:b"], {}, "must be HOST:PORT of the first machine"),
        (["--nnodes", "2", "--node-rank", "2", "--master", "a:1"], {}, "--node-rank 2 of --nnodes 2: set it to 0 to 1"),
        ([], OPERATOR | {"JOB_COMPLETION_INDEX": "5"}, "--node-rank 5 of --nnodes 2: set it to 0 to 1"),
        ([], {"AMDAHL_REPLICAS": "two"}, "is no number of processes"),
        (["--nproc", "$(AMDAHL_GPUS_PER_REPLICA)"], {}, "is no number of processes"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(capsys, arguments, environ, message):
    """The knob's placeholder, not expanded, too: with what to set."""
    with pytest.raises(SystemExit):
        launch.parse([*arguments, "--", "--config", "x"], environ)
    assert message in capsys.readouterr().err


def test_ranks_of_the_second_machine_are_counted_on():
    """Two a machine: its ranks are 2 and 3 of 4, and know where the first machine is."""
    script = (
        "import os, sys; e = os.environ; sys.exit(0 if e['WORLD_SIZE'] == '4' and e['LOCAL_WORLD_SIZE'] == '2' and "
        "int(e['RANK']) == 2 + int(e['LOCAL_RANK']) and (e['MASTER_ADDR'], e['MASTER_PORT']) == ('a', '7') else 9)"
    )
    assert launch.watch(ranks(script, 2, nnodes=2, node_rank=1, host="a", port=7), 5.0) == 0


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
    await_text(record, '"k":"step"')
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


def await_text(path, text, timeout_s=600):
    """Until a file holds a text."""
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path} has no {text!r}"
        time.sleep(0.05)


@pytest.fixture
def command(tmp_path, tiny_arguments):
    """Start a command line of the real thing: `command("one", "-m", "amdahl_trainer.launch", ...)`; records under its name."""
    begun = []

    def go(name, *words, environ=None, **keys):
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        told = {key: value for key, value in os.environ.items() if not key.startswith("AMDAHL_")}
        told |= {"PYTHONPATH": str(TRAINER_IMAGE), "AMDAHL_TELEMETRY_DIR": str(home), "OMP_NUM_THREADS": "1"}
        settings = [*tiny_arguments, *(f"--{key}={value}" for key, value in keys.items())]
        with (tmp_path / f"{name}.log").open("a") as log:
            line = [sys.executable, *words, *settings]
            begun.append(subprocess.Popen(line, env=told | (environ or {}), stdout=log, stderr=log))
        return begun[-1]

    yield go
    for process in begun:
        process.kill()
        process.wait()


def said(tmp_path, name):
    return (tmp_path / f"{name}.log").read_text()


LAUNCH = ("-m", "amdahl_trainer.launch", "--nproc")


@pytest.mark.slow
def test_the_launcher_names_the_rank_that_died_and_ends_the_others(command, tmp_path):
    """Code of the signal; the launcher names the rank at once, the survivor by itself."""
    process = command("dies", *LAUNCH, "2", "--", **{"run.max_steps": 100_000})
    await_text(tmp_path / "dies" / "rank-1.jsonl", '"k":"step"')
    os.kill(json.loads((tmp_path / "dies" / "rank-1.jsonl").read_text().splitlines()[0])["pid"], signal.SIGKILL)
    assert process.wait(600) == 128 + signal.SIGKILL, said(tmp_path, "dies")
    assert "launch: rank 1 ended with signal SIGKILL; ending the others" in said(tmp_path, "dies")
    assert f"amdahl_trainer: rank 0: rank 1 on {socket.gethostname()} died" in said(tmp_path, "dies")


@pytest.mark.slow
def test_the_pods_of_an_indexed_job_meet_and_name_one_that_died(command, tmp_path):
    """Each pod is told its index and where the first one is, as the operator does; there is no launcher in common."""
    port = str(launch.free_port())
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "AMDAHL_REPLICAS": "2", "AMDAHL_GPUS_PER_REPLICA": "1"}
    pods = [
        command(f"pod{index}", "-m", "amdahl_trainer.launch", "--", environ=shared | {"JOB_COMPLETION_INDEX": str(index)},
                **{"run.max_steps": 100_000})
        for index in range(2)
    ]  # fmt: skip
    await_text(tmp_path / "pod1" / "rank-1.jsonl", '"k":"step"')
    pods[1].kill()  # with one rank the launcher has become it
    assert pods[0].wait(600) == Exit.PEER_DIED, said(tmp_path, "pod0")
    assert f"amdahl_trainer: rank 0: rank 1 on {socket.gethostname()} died" in said(tmp_path, "pod0")


@pytest.mark.slow
def test_two_pods_yield_when_one_of_them_is_told_to(command, tmp_path):
    """SIGTERM to one pod, as Kubernetes sends it: both save the same step and end with 75."""
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(launch.free_port()), "AMDAHL_REPLICAS": "2"}
    pods = [
        command(f"pod{index}", "-m", "amdahl_trainer.launch", "--", environ=shared | {"JOB_COMPLETION_INDEX": str(index)},
                **{"run.max_steps": 100_000})
        for index in range(2)
    ]  # fmt: skip
    await_text(tmp_path / "pod1" / "rank-1.jsonl", '"k":"step"')
    pods[1].terminate()
    assert [pod.wait(600) for pod in pods] == [Exit.YIELDED] * 2, said(tmp_path, "pod0") + said(tmp_path, "pod1")
    ends = [last_save(tmp_path / f"pod{index}" / f"rank-{index}.jsonl") for index in range(2)]
    assert ends[0] == ends[1]


def records(path, kind):
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["k"] == kind]


def last_save(path):
    return records(path, "save")[-1]["step"]


@pytest.mark.slow
def test_the_number_of_processes_changes_from_one_start_to_the_next(command, tmp_path):
    """Two ranks yield with 75; one goes on, told so by the knob alone; then two again. As if never stopped."""
    first = command("first", *LAUNCH, "2", "--", **{"run.max_steps": 100_000, "optim.decay_steps": 40})
    await_text(tmp_path / "first" / "rank-0.jsonl", '"k":"step"')
    first.terminate()
    assert first.wait(600) == Exit.YIELDED, said(tmp_path, "first")
    done = last_save(tmp_path / "first" / "rank-0.jsonl")
    for name, gpus, steps in (("second", "1", done + 3), ("third", "2", done + 6)):
        told = {"run.max_steps": steps, "optim.decay_steps": 40}
        process = command(name, "-m", "amdahl_trainer.launch", "--", environ={"AMDAHL_GPUS_PER_REPLICA": gpus}, **told)
        assert process.wait(600) == Exit.FINISHED, said(tmp_path, name)
        world = records(tmp_path / name / "rank-0.jsonl", "start")[0]["world"]
        assert world == int(gpus)
    told = {"run.max_steps": done + 6, "optim.decay_steps": 40, "run.out_dir": tmp_path / "other"}
    assert command("whole", *LAUNCH, "1", "--", **told).wait(600) == Exit.FINISHED, said(tmp_path, "whole")
    parts = [loss for name in ("first", "second", "third") for loss in losses(tmp_path / name)]
    whole = losses(tmp_path / "whole")
    assert max(abs(a - b) for a, b in zip(parts, whole, strict=True)) <= 2e-6


def losses(home):
    return [step["loss"] for step in records(home / "rank-0.jsonl", "step")]


@pytest.mark.slow
def test_torchrun_starts_the_trainer_too(command, tmp_path):
    """It yields in good order on SIGTERM, though torchrun reports 1; a rank that dies is named by the survivor."""
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(launch.free_port()))
    yields = command("yields", *words, "-m", "amdahl_trainer", **{"run.max_steps": 100_000})
    await_text(tmp_path / "yields" / "rank-1.jsonl", '"k":"step"')
    yields.terminate()
    assert yields.wait(600) == 1
    assert "yielded at step" in said(tmp_path, "yields")
    ends = [records(tmp_path / "yields" / f"rank-{rank}.jsonl", "end")[0]["why"] for rank in (0, 1)]
    assert ends == ["sigterm"] * 2
    dies = command("dies", *words, "-m", "amdahl_trainer", **{"run.max_steps": 100_000})
    await_text(tmp_path / "dies" / "rank-1.jsonl", '"k":"step"')
    os.kill(records(tmp_path / "dies" / "rank-1.jsonl", "start")[0]["pid"], signal.SIGKILL)
    assert dies.wait(600) == 1
    assert f"amdahl_trainer: rank 0: rank 1 on {socket.gethostname()} died" in said(tmp_path, "dies")


@pytest.mark.slow
def test_ranks_that_torchrun_starts_anew_go_on_from_the_checkpoint(command, tmp_path):
    """The store is torchrun's, and keeps what the first start wrote: that belongs to the first start alone."""
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(launch.free_port()))
    anew = command(
        "anew", *words, "--max-restarts", "1", str(HERE / "troubled.py"),
        environ={"TROUBLE": "die", "TROUBLE_RANK": "1"}, **{"run.max_steps": 9, "checkpoint.every_steps": 2}
    )  # fmt: skip
    assert anew.wait(600) == 0, said(tmp_path, "anew")
    assert re.search(r"^resumed .*: step 2, ", said(tmp_path, "anew"), flags=re.MULTILINE)
    assert [records(tmp_path / "anew" / f"rank-{rank}.jsonl", "end")[-1]["why"] for rank in (0, 1)] == ["exit"] * 2

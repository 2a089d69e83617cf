"""A GPU's account of its own time, on a pretended one: what is known of each kernel is the truth it is held against."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import deque
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe.spans import Ledger
from amdahl_trainer import device as devices
from amdahl_trainer import feed, optim
from amdahl_trainer.ckpt import Checkpoints
from amdahl_trainer.data.loader import Loader
from amdahl_trainer.device import CudaClock
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.model import Llama
from amdahl_trainer.peers import Alone
from amdahl_trainer.report import Reporter
from amdahl_trainer.timeline import BEFORE, ISSUED, WORK, Mark, account

MS = 1_000_000

#: Kernels that wait at most; then issuing one waits for the first of them, as CUDA's own queue does.
QUEUE = 40


class Gpu:
    """A host's clock, which moves when it is told to, and a stream that does what it is given in order."""

    def __init__(self):
        self.now_ns = 5_000 * MS
        self.free_ns = self.busy_ns = self.events = 0
        self.waiting = deque()

    def __call__(self):
        return self.now_ns

    def host(self, ms):
        """The host does something that the device has no part in."""
        self.now_ns += round(ms * MS)

    def issue(self, host_ms, device_ms, kernels=10):
        """Kernels that take the host and the device so long in all."""
        for _ in range(kernels):
            if len(self.waiting) == QUEUE:
                self.wait_until(self.waiting.popleft())
            self.host(host_ms / kernels)
            took_ns = round(device_ms * MS / kernels)
            self.free_ns = max(self.free_ns, self.now_ns) + took_ns
            self.busy_ns += took_ns
            self.waiting.append(self.free_ns)

    def wait_until(self, at_ns):
        self.now_ns = max(self.now_ns, at_ns)


class Event:
    """As torch's: passed after all that was issued before it, and at once where nothing is left to do."""

    def __init__(self, gpu):
        self.gpu = gpu
        gpu.events += 1

    def record(self):
        self.at_ns = max(self.gpu.free_ns, self.gpu.now_ns)

    def query(self):
        return self.at_ns <= self.gpu.now_ns

    def synchronize(self):
        self.gpu.wait_until(self.at_ns)

    def elapsed_time(self, later):
        assert self.query(), "torch raises where an event has not been passed"
        assert later.query(), "torch raises where an event has not been passed"
        return (later.at_ns - self.at_ns) / 1e6


@pytest.fixture
def gpu(monkeypatch):
    """Clocks made from now on are a GPU's, and ledgers on its host's clock."""
    made = Gpu()
    monkeypatch.setattr(devices, "_event", lambda: Event(made))
    monkeypatch.setattr(devices, "_scalars", lambda: torch.empty(3))
    monkeypatch.setattr(devices, "clock", lambda _, ledger: CudaClock(ledger, made))
    monkeypatch.setattr(Reporter, "new_ledger", lambda *_: Ledger(clock=made))
    return made


def before(monkeypatch, owner, name, first):
    """Let `first()` pass before each call of a method or function."""
    call = getattr(owner, name)

    def both(*arguments, **named):
        first()
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, both)


#: Milliseconds of the host, and of the host and the device where something is issued.
QUIET = {"load": 0, "poll": 0, "agree": 0, "save": 0, "h2d": (0, 0), "eval": (0, 0)}
BUSY = {**QUIET, "h2d": (0, 1), "forward": (2, 10), "backward": (2, 20), "optimizer": (1, 5)}
LAUNCH = {**QUIET, "forward": (10, 2), "backward": (20, 4), "optimizer": (5, 1), "load": 1}


@pytest.fixture
def train(gpu, monkeypatch, make_engine, tiny, tmp_path):
    """Train a tiny engine whose every step takes as long as told; gives records and lines of the journal."""

    def go(times, changes=None, environ=None):
        for owner, name, what in (
            (Loader, "next", "load"), (KnobFile, "poll", "poll"), (Alone, "agree", "agree"), (Checkpoints, "save", "save"),
        ):  # fmt: skip
            before(monkeypatch, owner, name, lambda what=what: gpu.host(times[what]))
        for owner, name, what in (
            (feed, "find_documents", "h2d"), (Llama, "forward", "forward"), (torch.autograd, "backward", "backward"),
            (optim, "apply", "optimizer"),
        ):  # fmt: skip
            before(monkeypatch, owner, name, lambda what=what: gpu.issue(*times[what]))
        engine = make_engine(
            tiny({"run.max_steps": 6, "run.gc_every": 1000, "optim.lr": 0.0, **(changes or {})}), environ
        )

        def evaluate():
            gpu.issue(*times["eval"])
            gpu.wait_until(gpu.free_ns)
            return 1.0

        object.__setattr__(engine.parts, "evaluate", evaluate)
        engine.run(lambda: None)
        engine.parts.reporter.close(engine.steps, "exit")
        records = (tmp_path / "telemetry" / "rank-0.jsonl").read_text().splitlines()
        lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
        steps = [record for record in map(json.loads, records) if record["k"] == "step"]
        return steps, [line for line in map(json.loads, lines) if line["schema"] == "trainer.step/1"]

    return go


def in_ms(times_ns):
    return {name: round(ns / MS, 3) for name, ns in times_ns.items() if ns}


WORKED = {"h2d": 1, "forward": 10, "backward": 20, "optimizer": 5}


@pytest.mark.parametrize(
    ("times", "phases", "work", "idle", "launch_bound"),
    [
        pytest.param(BUSY, {"compute": 36}, WORKED, {}, 0, id="the device sets the pace"),
        pytest.param({**BUSY, "load": 22, "agree": 5, "poll": 4}, {"compute": 36}, WORKED, {}, 0, id="all is hidden"),
        pytest.param(
            {**BUSY, "load": 40, "agree": 1}, {"compute": 36, "input": 9, "comm": 1}, WORKED,
            {"input": 9, "comm": 1}, 0, id="waits for input, most of them hidden",
        ),
        pytest.param(
            {**BUSY, "load": 10, "agree": 40}, {"compute": 36, "comm": 19}, WORKED,
            {"comm": 19}, 0, id="the others are slower, half of the waiting hidden",
        ),
        pytest.param(
            {**BUSY, "load": 40, "poll": 3}, {"compute": 36, "input": 9, "other": 3}, WORKED,
            {"input": 9, "other": 3}, 0, id="what is no waiting for input is not its fault",
        ),
        pytest.param(
            LAUNCH, {"compute": 35.1, "input": 0.9}, {"forward": 10.2, "backward": 20.2, "optimizer": 4.7},
            {"input": 0.9}, 35.1, id="launch-bound",
        ),
        pytest.param(
            {**LAUNCH, "backward": (20, 60)}, None, None, None, 0, id="slow to issue, but the device is slower",
        ),
    ],
)  # fmt: skip
def test_a_step_on_a_gpu(gpu, train, times, phases, work, idle, launch_bound):
    """What the host did while the device had work is `compute`; the device's account says the same by its own clock."""
    steps, lines = train(times)
    for step, line in zip(steps[2:], lines[2:], strict=True):
        assert sum(step["ph"].values()) == step["w"]
        assert sum(line["device_ns"].values()) == line["device_wall_ns"]
        assert sum(line["idle_cause_ns"].values()) == line["device_ns"]["idle"]
        assert line["launch_bound_ns"] / MS == pytest.approx(launch_bound, abs=0.2)
        if phases is not None:
            found = in_ms(line["device_ns"])
            assert found.pop("idle", 0) == sum(idle.values())
            assert (in_ms(step["ph"]), found, in_ms(line["idle_cause_ns"])) == (phases, work, idle)


def test_a_step_beside_a_save_and_an_evaluation(train):
    """Before both the device is let finish, which is `compute`; then it idles for the save, and evaluates."""
    times = {**BUSY, "save": 8, "eval": (0, 6)}
    steps, lines = train(times, {"checkpoint.every_steps": 3, "eval.every_steps": 4})
    found = [(in_ms(step["ph"]), in_ms(line["device_ns"])) for step, line in zip(steps, lines, strict=True)]
    assert found[3:5] == [
        ({"compute": 40.9, "checkpoint": 8}, {**WORKED, "idle": 8}),
        ({"compute": 36, "eval": 6}, {**WORKED, "eval": 6}),
    ]
    assert in_ms(lines[3]["idle_cause_ns"]) == {"checkpoint": 8}


def test_what_the_device_finishes_at_the_end_is_useful(gpu, train, tmp_path):
    """Of a run on a device that never idles all is useful: also what it is waited for after the last step."""
    train(BUSY)
    told = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    account = [line for line in told if line["schema"] == "trainer.goodput/1"][-1]
    assert (account["useful_ns"], account["badput_ns"]) == (gpu.busy_ns, {})


def test_the_first_step_waits_for_its_start(train):
    """What passes until the first batch is start-up for the host, and to the device no fault of the input."""
    steps, lines = train({**BUSY, "load": 30, "agree": 2})
    assert in_ms(steps[0]["ph"]) == {"startup": 30, "comm": 2, "compute": 5}
    assert in_ms(lines[0]["idle_cause_ns"]) == {"other": 30, "comm": 2}
    assert in_ms(lines[0]["device_ns"]) == {**WORKED, "idle": 32}


def test_micro_batches_are_told_apart(train):
    """Each has passes of its own; the account holds their sums, and forward passes beyond the first count too."""
    _, lines = train(BUSY, {"batch.micro_batch": 4})
    assert in_ms(lines[4]["device_ns"]) == {"h2d": 2, "forward": 20, "backward": 40, "optimizer": 5}


def test_the_goodput_of_a_launch_bound_run_has_a_lower_bound(train, tmp_path, capsys):
    """Its time stays `compute`, which the knobs that help are found by; the account says how much of it may be idle."""
    _, lines = train(LAUNCH)
    told = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    account = [line for line in told if line["schema"] == "trainer.goodput/1"][-1]
    bounds = [min(line["launch_bound_ns"], line["phases_ns"]["compute"]) for line in lines]
    assert account["launch_bound_ns"] == sum(bounds) <= account["useful_ns"]
    said = capsys.readouterr().out
    assert "launch-bound 98%" in said
    assert "at least: launch-bound" in said


def test_metrics_tell_of_the_device(train, tmp_path):
    """Counters of work and idle are the sums of the journal's lines."""
    _, lines = train({**BUSY, "load": 40}, environ={"AMDAHL_METRICS_PORT": "0"})
    port = int((tmp_path / "telemetry" / "metrics.port").read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    for name, label, field in (("work", "phase", "device_ns"), ("idle", "cause", "idle_cause_ns")):
        found = re.findall(rf'^amdahl_device_{name}_seconds_total{{{label}="(\w+)"}} (\S+)$', text, re.MULTILINE)
        sums = {kind: sum(line[field][kind] for line in lines) / 1e9 for kind in lines[0][field] if kind != "idle"}
        assert {kind: float(value) for kind, value in found} == pytest.approx(sums)
    assert "amdahl_launch_bound_device_seconds " in text


def take_step(clock, gpu):
    """A step of which the stream stands still for 4 ms in the forward pass, 8 in the tail and 3 for the loss."""
    clock.ask()
    clock.begin()
    clock.mark("forward")
    gpu.issue(0, 10)
    with clock.waiting():
        gpu.issue(0, 4)
    clock.mark("backward")
    clock.gradient()
    gpu.issue(0, 20)
    clock.gradient()
    gpu.issue(0, 6)
    with clock.waiting():
        gpu.issue(0, 2)
    clock.backward_done()
    gpu.issue(0, 3)
    clock.mark("optimizer")
    gpu.issue(0, 5)
    clock.finish(torch.zeros(3))


def test_what_the_stream_stands_still_for_is_comm(gpu):
    """Each wait once: those in the tail are seen, and part of it. An evaluation's passes are no step's."""
    clock = CudaClock(Ledger(clock=gpu, bottom="compute"), gpu)
    for _ in range(2):
        clock.mark("forward")
        take_step(clock, gpu)
        assert list(clock.ready()) == []
        (reading,) = clock.ready(wait=True)
        assert in_ms(reading.lap.work_ns) == {"forward": 10, "backward": 20, "comm": 15, "optimizer": 5}
        assert reading.comm_ns == 15 * MS


def test_events_are_recorded_anew(gpu):
    """However many steps there are, no more events than those in flight need; laps follow without a gap."""
    clock, walls_ns = CudaClock(Ledger(clock=gpu, bottom="compute"), gpu), 0
    begun_ns, made = gpu.now_ns, []
    for _ in range(20):
        take_step(clock, gpu)
        gpu.host(7)
        walls_ns += sum(reading.lap.wall_ns for reading in clock.ready())
        made.append(gpu.events)
    walls_ns += sum(reading.lap.wall_ns for reading in clock.ready(wait=True))
    assert made[-1] == made[len(made) // 2]
    assert walls_ns == gpu.free_ns - begun_ns


def stream(*marks):
    """Marks of (phase, device us, host us)."""
    return [Mark(phase, device_us * 1000, host_us * 1000) for phase, device_us, host_us in marks]


@pytest.mark.parametrize(
    ("idle_us", "end_us", "launch_us"),
    [
        pytest.param(500, 10_500, 10_000, id="as fast as the host"),
        pytest.param(500, 11_400, 10_900, id="behind it by less than a tenth"),
        pytest.param(500, 11_700, 0, id="behind it"),
        pytest.param(3, 10_003, 0, id="never without work, so no clock can be set"),
    ],
)
def test_a_launch_bound_pass_keeps_up_with_the_host(idle_us, end_us, launch_us):
    """The host issues for 10 ms from the moment on at which the device has nothing left to do."""
    marks = stream(("input", 0, 0), ("agree", idle_us, 500), ("forward", idle_us, 500), ("end", end_us, 10_500))
    lap = account(marks, {}, {}, end_us * 1000)
    assert (lap.launch_bound_ns, lap.work_ns["forward"]) == (launch_us * 1000, (end_us - idle_us) * 1000)


def test_waits_are_taken_from_the_phase_they_lie_in():
    """Never more than there is; the tail and the sum of losses have marks of their own."""
    marks = stream(
        ("between", 0, 0), ("input", 9, 9), ("agree", 9, 9), ("h2d", 9, 9), ("forward", 10, 10), ("backward", 30, 30),
        ("comm", 70, 70), ("optimizer", 75, 75), ("end", 80, 80),
    )  # fmt: skip
    lap = account(marks, {"forward": 8_000, "backward": 50_000}, {"eval": 4_000, "checkpoint": 3_000}, 80_000)
    assert lap.work_ns == {
        "h2d": 1_000, "forward": 12_000, "backward": 0, "comm": 53_000, "optimizer": 5_000, "eval": 4_000,
    }  # fmt: skip
    assert lap.idle_ns == {"input": 0, "comm": 0, "checkpoint": 3_000, "other": 2_000}


LENGTHS = st.lists(st.integers(0, 10**9), min_size=9, max_size=9)


@given(LENGTHS, LENGTHS, st.dictionaries(st.sampled_from(WORK), st.integers(0, 10**9)),
       st.dictionaries(st.sampled_from(BEFORE), st.integers(0, 10**9)))  # fmt: skip
def test_a_lap_is_work_and_idle_to_the_nanosecond(on_device, on_host, comm, before_ns):
    """Whatever the marks say: nothing is made, lost or negative, and what may be idle is part of what was issued."""
    names = ("between", "input", "agree", "h2d", "forward", "backward", "comm", "optimizer", "end")
    marks = [Mark(*mark) for mark in zip(names, accumulate(on_device), accumulate(on_host), strict=True)]
    lap = account(marks, comm, before_ns, 0)
    assert sum(lap.work_ns.values()) + sum(lap.idle_ns.values()) == sum(on_device[1:])
    assert all(ns >= 0 for ns in (*lap.work_ns.values(), *lap.idle_ns.values()))
    assert 0 <= lap.launch_bound_ns <= sum(lap.work_ns[phase] for phase in ISSUED)

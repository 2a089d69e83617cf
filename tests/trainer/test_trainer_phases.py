"""The account of time: phases sum to the wall, and each delay lands in the phase it belongs to."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe.spans import PHASES, Ledger
from amdahl_trainer.ckpt import Checkpoints
from amdahl_trainer.data.loader import Loader
from amdahl_trainer.device import HostClock, Reading, attribute
from amdahl_trainer.knobs import KnobFile
from amdahl_trainer.peers import Alone
from amdahl_trainer.timeline import Lap

MS = 1_000_000


class Hands:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now_ns = 5_000 * MS

    def __call__(self):
        return self.now_ns

    def pass_ms(self, ms):
        self.now_ns += ms * MS


def delayed(kind, method, hands, ms):
    """`kind` with `ms` more on the clock in each call of `method`."""

    class Delayed(kind):
        pass

    def call(self, *arguments, **named):
        hands.pass_ms(ms)
        return getattr(kind, method)(self, *arguments, **named)

    setattr(Delayed, method, call)
    return Delayed


def train_on_injected_clock(make_engine, config, tmp_path, **delays):
    """Run an engine whose only source of time is `Hands`; returns the step records."""
    hands = Hands()
    ledger = Ledger(clock=hands)
    engine = make_engine(config, ledger=ledger)
    parts = engine.parts
    changes = {"knob_file": delayed(KnobFile, "poll", hands, delays.get("between", 0))(None)}
    changes["peers"] = delayed(Alone, "agree", hands, delays.get("agree", 0))()
    if "save" in delays:
        changes["checkpoints"] = delayed(Checkpoints, "save", hands, delays["save"])(config)
    changes["evaluate"] = lambda: hands.pass_ms(delays.get("evaluate", 0)) or 1.0
    if "forward" in delays:
        forward = delayed(type(parts.replica.model), "forward", hands, delays["forward"])
        parts.replica.model.__class__ = forward
    if "load" in delays:
        parts.loader.__class__ = delayed(Loader, "next", hands, delays["load"])
    for name, value in changes.items():
        object.__setattr__(engine.parts, name, value)
    engine.run(lambda: hands.pass_ms(3))
    lines = (tmp_path / "telemetry" / "rank-0.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["k"] == "step"]


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        ({"load": 20}, {"input": 20}),
        ({"agree": 20}, {"comm": 20}),
        ({"forward": 20}, {"compute": 20}),
        ({"evaluate": 20}, {"eval": 20}),
        ({"save": 20}, {"checkpoint": 20}),
        ({"load": 7, "agree": 5, "forward": 3, "evaluate": 2, "save": 1}, {
            "input": 7, "comm": 5, "compute": 3, "eval": 2, "checkpoint": 1,
        }),
    ],
)  # fmt: skip
def test_an_injected_delay_lands_in_its_phase_to_the_nanosecond(make_engine, tiny, tmp_path, delay, expected):
    """With no other source of time, each phase holds exactly what was injected, and nothing else holds anything."""
    changes = {"run.max_steps": 4, "eval.every_steps": 1, "checkpoint.every_steps": 1, "run.gc_every": 1000}
    steps = train_on_injected_clock(make_engine, tiny(changes), tmp_path, **delay)
    assert len(steps) == 4
    for step in steps[1:]:
        assert {phase: ns for phase, ns in step["ph"].items() if ns} == {p: ms * MS for p, ms in expected.items()}
        assert sum(step["ph"].values()) == step["w"] == sum(expected.values()) * MS
    first = dict(expected)
    first.pop("eval", None), first.pop("checkpoint", None), first.pop("input", None)  # they come between steps
    first["startup"] = 3 + delay.get("load", 0)  # the wait for the first batch, and the start-up's end
    assert {phase: ns for phase, ns in steps[0]["ph"].items() if ns} == {p: ms * MS for p, ms in first.items() if ms}


def test_tags_name_what_lies_in_a_step(make_engine, tiny, tmp_path):
    """`warmup` on the first; `ckpt`, `eval` and `gc` on the step whose time holds them, the one after."""
    changes = {"run.max_steps": 7, "checkpoint.every_steps": 2, "eval.every_steps": 3, "run.gc_every": 5}
    steps = train_on_injected_clock(make_engine, tiny(changes), tmp_path, agree=1)
    assert [step["tags"] for step in steps] == [["warmup"], [], ["ckpt"], ["eval"], ["ckpt"], ["gc"], ["ckpt", "eval"]]


NS = st.integers(0, 10**10)


IDLE = ("input", "comm", "checkpoint", "other")


def told(tail_ns, idle_ns):
    """What a clock says: time that was `comm`, and what the device idled for, by cause; None where there is none."""
    lap = None if idle_ns is None else Lap({}, {cause: idle_ns.get(cause, 0) for cause in IDLE}, 0, 0)
    return Reading(1.0, 1.0, False, tail_ns, lap)


@given(
    st.dictionaries(st.sampled_from(PHASES), NS),
    NS,
    st.one_of(st.none(), st.dictionaries(st.sampled_from(IDLE), NS)),
)
def test_correcting_an_account_never_changes_its_sum(phases, tail_ns, idle_ns):
    """Whatever a reading says, no nanosecond is made or lost and none is negative."""
    corrected = attribute(phases, told(tail_ns, idle_ns))
    assert sum(corrected.values()) == sum(phases.values())
    assert all(ns >= 0 for ns in corrected.values())


HOST = {"input": 30, "comm": 20, "checkpoint": 5, "compute": 40, "other": 10}


@pytest.mark.parametrize(
    ("tail", "idle", "expected"),
    [
        (0, None, HOST),
        (10, None, {**HOST, "compute": 30, "comm": 30}),
        (50, None, {**HOST, "compute": 0, "comm": 60}),
        (0, {"input": 30, "comm": 20, "other": 10}, HOST),
        (0, {"input": 50, "comm": 50, "other": 50}, HOST),
        (0, {"input": 12, "comm": 20, "other": 10}, {**HOST, "input": 12, "compute": 58}),
        (0, {"input": 30, "comm": 4, "other": 10}, {**HOST, "comm": 4, "compute": 56}),
        (0, {"input": 30, "comm": 20, "other": 1}, {**HOST, "other": 1, "compute": 49}),
        (0, {}, {"input": 0, "comm": 0, "checkpoint": 5, "compute": 100, "other": 0}),
        (7, {}, {"input": 0, "comm": 7, "checkpoint": 5, "compute": 93, "other": 0}),
        (200, {}, {"input": 0, "comm": 100, "checkpoint": 5, "compute": 0, "other": 0}),
    ],
)
def test_time_of_the_host_counts_only_where_the_device_idled(tail, idle, expected):
    """A save is a save: the device has been waited for before. What was waiting on the device is `comm` thereafter."""
    assert attribute(HOST, told(tail, idle)) == expected


def test_the_tail_is_what_follows_the_last_gradient():
    """Gradients at 5 and 9 ms, backward done at 30 ms: 21 ms of reductions. A step without gradients has none."""
    import torch

    hands = Hands()
    clock = HostClock(Ledger(clock=hands, bottom="compute"))
    for marks, tail_ms in (((5, 4), 21), ((), 0)):
        clock.ask()
        clock.begin()
        for ms in marks:
            hands.pass_ms(ms)
            clock.gradient()
        hands.pass_ms(21)
        clock.backward_done()
        clock.finish(torch.tensor([2.5, 1.5, 0.0]))
        assert list(clock.ready()) == [Reading(2.5, 1.5, False, tail_ms * MS, None)]
    assert list(clock.ready(wait=True)) == []


MESH = {"model.n_layers": 4, "model.n_kv_heads": 2, "model.tie_embeddings": False, "batch.micro_batch": 2}
MODES = {
    "fsdp2": {"parallel.dp_mode": "fsdp2"},
    "tp": {"parallel.tp": 2},
    "async_tp": {"parallel.tp": 2, "parallel.async_tp": True},
    "1f1b": {"parallel.pp": 2},
    "interleaved": {"parallel.pp": 2, "parallel.pp_schedule": "interleaved"},
    "cp": {"parallel.cp": 2},
    "ring": {"parallel.cp": 2, "parallel.cp_mode": "ring"},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_phases_sum_to_the_wall_in_every_mode(run, mode):
    """Also the sums over ranks: what the first rank accounts for is what all ranks' ledgers counted, to the nanosecond."""
    changes = {**MESH, **MODES[mode], "run.max_steps": 4, "checkpoint.every_steps": 2, "eval.every_steps": 3}
    done = run(mode, changes, nproc=2)
    assert done.codes == [0, 0], done.output
    for rank in (0, 1):
        steps = done.of("step", rank)
        assert all(sum(step["ph"].values()) == step["w"] for step in steps)
        assert all(now["t"] - now["w"] == before["t"] for before, now in pairwise(steps))
        assert all(step["ph"]["comm"] > 0 for step in steps)
    lines = [json.loads(line) for line in (done.home.parent / "out" / mode / "metrics.jsonl").read_text().splitlines()]
    told = [line["all_ns"] for line in lines if line["schema"] == "trainer.step/1"]
    for phase in ("input", "compute", "eval"):
        counted = [step["ph"].get(phase, 0) for rank in (0, 1) for step in done.of("step", rank)]
        assert sum(phases.get(phase, 0) for phases in told) == sum(counted), phase
    account = [line for line in lines if line["schema"] == "trainer.goodput/1"][-1]
    assert account["held_ns"] == account["useful_ns"] + sum(account["badput_ns"].values())


def test_real_steps_sum_to_their_wall_and_laps_tile_the_run(run):
    """In a run on the real clock every record's phases sum to its wall, and each lap begins where the last ended."""
    done = run("summed", {"checkpoint.every_steps": 3, "eval.every_steps": 4, "data.num_workers": 1}, nproc=2)
    for rank in (0, 1):
        steps = done.of("step", rank)
        assert all(sum(step["ph"].values()) == step["w"] for step in steps)
        assert all(now["t"] - now["w"] == before["t"] for before, now in pairwise(steps))
        assert all(set(step["ph"]) <= set(PHASES) for step in steps)
        assert all(step["lb"][0] == 1 for step in steps)
        (startup,) = done.of("startup", rank)
        assert sum(startup["parts"].values()) == startup["ns"]
        assert set(startup["parts"]) == {"import", "rendezvous", "data", "model", "restore"}
        assert [done.of(kind, rank)[0]["k"] for kind in ("start", "end")] == ["start", "end"]
        said = {"by": "trainer", "rank": rank, "world": 2, "dtype": "float32"}
        assert done.of("start", rank)[0] | said == done.of("start", rank)[0]
    assert done.losses == [step["loss"] for step in done.of("step", 1)]  # the global loss, on every rank

"""What a person sees: the table at the start, who is slow, and where the time went. And what one step shows in depth."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.profiler_util import FunctionEvent

from amdahl_probe.spans import PHASES
from amdahl_trainer import console, profiler
from amdahl_trainer.console import BAR, Facts, Interval, Straggler
from amdahl_trainer.flops import PerToken
from amdahl_trainer.goodput import Account
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.peers import Told
from amdahl_trainer.profiler import Profile, analyse, length, list_kernels, union

MS, S = 1_000_000, 1_000_000_000

FACTS = Facts(
    device="cuda:NVIDIA H100",
    degrees=Degrees(pp=2, replicate=2, shard=4, tp=2),
    parameters=6_738_415_616,
    rank_parameters=421_150_976,
    expected_bytes=31 << 30,
    step_rows=64,
    step_slots=262_144,
    micro_batches=4,
    cost=PerToken(46.9e9, 43.7e9, 41.2e9),
    peak_flops=989.5e12,
    resumed_step=50,
    last_step=1000,
)


def test_the_table_at_the_start_says_what_the_run_is():
    """Ranks and how they are dealt, parameters, memory, a step, FLOPs by convention, and what is behind."""
    text = console.introduce(FACTS)
    for said in (
        "32 = pp 2 x dp 8 (copies 2 x shard 4) x cp 1 x tp 2, on cuda:NVIDIA H100",
        "6,738,415,616 in all, 421,150,976 on this rank",
        "31,744 MiB of tensors expected",
        "262,144 tokens: 64 rows over dp, 4 passes a rank",
        "46.9 G (palm), 43.7 G (causal), 41.2 G (packed)",
        "989.5 TFLOP/s",
        "50 of 1,000 done",
    ):
        assert said in text, text


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        ([5], Straggler(0, 0, 5, 5)),
        ([5, 9], Straggler(1, 4, 9, 5)),
        ([9, 5], Straggler(0, 4, 9, 5)),
        ([5, 5, 5], Straggler(0, 0, 5, 5)),
        ([5, 7, 30, 6], Straggler(2, 24, 30, 5)),
    ],
)
def test_the_straggler_is_the_rank_with_the_least_waiting(busy, expected):
    """Its excess is over the median rank, the lower one of two: as the supervisor counts it."""
    assert console.find_straggler(busy) == expected


def test_what_a_rank_is_busy_with_is_all_but_waiting_and_starting():
    """Input, compute, a save: the others wait for it. Its own waiting and start-up hold nobody up."""
    spent = [2**at for at in range(len(PHASES))]
    named = dict(zip(PHASES, spent, strict=True))
    assert Told(spent=spent).busy_ns == sum(spent) - named["startup"] - named["comm"]


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        ([], None),
        ([90 * MS], None),
        ([90 * MS, 91 * MS], None),
        ([90 * MS, 110 * MS], "rank 1 slowest, by 10.0 ms a step"),
    ],
)
def test_a_console_line_names_a_rank_that_matters(busy, said):
    """Two steps of 100 ms: a rank that is 0.5 ms slower is not worth a word, one that is 10 ms slower is."""
    interval = Interval()
    for _ in range(2):
        interval.add({"compute": 75 * MS, "comm": 25 * MS}, 1000)
    if busy:
        interval.add_busy(busy)
    text = interval.describe()
    assert text.split("  rank")[0].split() == ["100.0", "ms", "10.0k", "tok/s", "compute", "75%", "comm", "25%"]
    assert (re.findall(r"rank .*", text) or [None]) == [said]


BADPUT = {"startup": 2 * S, "input": 5 * S, "comm": S, "checkpoint": S, "lost": S}


def test_the_summary_is_a_waterfall_that_ends_with_what_was_held():
    """Each bar begins where the one before ends; goodput is useful over held."""
    account = Account(3, 10 * S, BADPUT)
    lines = console.summarise(account, FACTS, 30 << 30, is_resident=False).splitlines()
    bars = [re.fullmatch(r"  (\w+) +([\d.]+) s +([\d.]+)%  ( *)(#+)", line) for line in lines[1:7]]
    assert [bar[1] for bar in bars] == ["compute", *BADPUT]
    assert [float(bar[2]) for bar in bars] == [10, 2, 5, 1, 1, 1]
    assert [float(bar[3]) for bar in bars] == [50, 10, 25, 5, 5, 5]
    for above, below in pairwise(bars):
        assert len(above[4]) + len(above[5]) == len(below[4])
    assert len(bars[-1][4]) + len(bars[-1][5]) == BAR
    assert "3 attempts" in lines[0]
    assert lines[7].split() == ["held", "20.000", "s", "goodput", "50.0%"]
    assert "30,720 MiB allocated, 31,744 MiB expected" in lines[8]


def test_a_run_prints_both(make_engine, tiny, capsys):
    """The table before the first step, the waterfall after the last; phases add up to what was held."""
    engine = make_engine(tiny({"run.max_steps": 3}))
    engine.run(lambda: None)
    said = capsys.readouterr().out
    assert (
        said.index("parameters ")
        < said.index("step      1/3")
        < said.index("where the time went")
        < said.index("peak memory")
    )
    seconds = [float(number) for number in re.findall(r"^  \w+ +([\d.]+) s ", said, re.MULTILINE)]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.001 * len(seconds))


INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=8)


@given(INTERVALS)
def test_a_union_holds_each_moment_once(intervals):
    """Its length is the number of unit intervals that any of them covers, and its parts do not meet."""
    merged = union(intervals)
    assert length(merged) == len({at for begin, end in intervals for at in range(begin, end)})
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([], (None, None, None)),
        ([("gemm", (0, 10))], (10, 0, 0)),
        ([("ncclAllReduce", (0, 10))], (0, 10, 10)),
        ([("gemm", (0, 10)), ("ncclAllReduce", (5, 20))], (10, 15, 10)),
        ([("gemm", (0, 10)), ("gemm", (12, 20)), ("ncclAllReduce", (5, 15))], (18, 10, 2)),
        ([("gemm", (0, 10)), ("ncclA", (2, 6)), ("ncclB", (4, 8))], (10, 6, 0)),
    ],
)
def test_communication_is_exposed_where_nothing_computes(kernels, expected):
    """Kernels of several streams overlap; what nothing hides is exposed. Without kernels nothing is known."""
    assert analyse(7, "x", kernels) == Profile(7, "x", *expected)


def event(name, begin_us, end_us, device="CUDA", is_range=False):
    """As torch's profiler gives it."""
    kind = getattr(torch.autograd.DeviceType, device)
    return FunctionEvent(1, name, 1, begin_us, end_us, device_type=kind, is_user_annotation=is_range, trace_name=None)


def test_ranges_that_the_host_named_are_no_kernels():
    """Nor is what ran on the host. A range from the first kernel to the last would hide all communication."""
    events = [
        event("aten::mm", 0, 9, device="CPU"),
        event("gemm", 1, 3),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 2, 8),
        event("DistributedDataParallel.forward", 1, 3, is_range=True),
        event("Optimizer.step#AdamW.step", 0, 9, is_range=True),
        event("nccl:all_reduce", 2, 9, is_range=True),
    ]
    kernels = list(list_kernels(events))
    assert kernels == [("gemm", (1000, 3000)), ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", (2000, 8000))]
    assert analyse(1, "x", kernels).exposed_comm_ns == 5000


def test_a_due_step_is_recorded_and_it_and_the_next_are_tagged(make_engine, tiny, tmp_path):
    """Every third step: a Chrome trace each, a line in the journal, and the tag where recording or writing took time."""
    engine = make_engine(tiny({"run.max_steps": 7, "metrics.profile_every_steps": 3}))
    engine.run(lambda: None)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    profiles = [line for line in lines if line["schema"] == "trainer.profile/1"]
    assert [line["step"] for line in profiles] == [3, 6]
    for line in profiles:
        names = {event.get("name") for event in json.loads(Path(line["path"]).read_text())["traceEvents"]}
        assert "aten::mm" in names
        assert line["exposed_comm_ns"] is None
    steps = (tmp_path / "telemetry" / "rank-0.jsonl").read_text().splitlines()
    tags = [record["tags"] for record in map(json.loads, steps) if record["k"] == "step"]
    assert ["profile" in tag for tag in tags] == [False, False, True, True, False, True, True]


def test_ranks_that_do_not_write_know_which_steps_are_recorded():
    """They tag the same steps, and record nothing; 0 is never due."""
    other = profiler.Profiler(3, None, torch.device("cpu"))
    assert [step for step in range(1, 10) if other.is_due(step)] == [3, 6, 9]
    with other.record(3) as found:
        pass
    assert found == []
    assert not any(profiler.Profiler(0, None, torch.device("cpu")).is_due(step) for step in range(1, 10))

"""Waiting for other ranks: in every mode it is `comm`, wherever in a step it happens, and nothing else is."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from amdahl_probe.spans import Ledger
from amdahl_trainer import waits
from amdahl_trainer.device import BRACKETS, HostClock, Sampling, extrapolate

MS = 1_000_000
TP, CP = {"parallel.tp": 2}, {"parallel.cp": 2}
MODES = {
    "ddp": {},
    "fsdp2": {"parallel.dp_mode": "fsdp2"},
    "tp": TP,
    "tp without sp": {**TP, "parallel.sp": False},
    "async tp": {**TP, "parallel.async_tp": True},
    "afab": {"parallel.pp": 2, "parallel.pp_schedule": "afab"},
    "1f1b": {"parallel.pp": 2},
    "interleaved": {"parallel.pp": 2, "parallel.pp_schedule": "interleaved"},
    "cp, all-gather": CP,
    "cp, ulysses": {**CP, "parallel.cp_mode": "ulysses"},
    "cp, ring": {**CP, "parallel.cp_mode": "ring"},
}


@pytest.mark.slow
def test_a_rank_that_comes_late_is_waited_for_in_comm_to_the_nanosecond(start, tmp_path):
    """20 ms that pass while one rank waits for the other are `comm` on the one that waits, in each mode."""
    cases = {name: {"values": values, "held": 0 if "parallel.pp" in values else 1} for name, values in MODES.items()}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = start("gated", nproc=2, script=str(Path(__file__).with_name("gated_rank.py"))).join()
    assert done.codes == [0, 0], done.output
    by_rank = [json.loads((done.home / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for name, case in cases.items():
        told = [found[name] for found in by_rank]
        assert told[1 - case["held"]] == {"comm": 20 * MS}, (name, told)
        assert told[case["held"]] == {}, (name, told)


class Hands:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.mark.parametrize(
    ("bottom", "span", "expected"),
    [
        ("compute", None, {"comm": 7}),
        ("compute", "checkpoint", {"checkpoint": 7}),
        ("compute", "eval", {"eval": 7}),
        ("compute", "warmup", {"warmup": 7}),
        ("other", None, {"other": 7}),
        ("startup", None, {"startup": 7}),
    ],
)
def test_a_wait_is_comm_only_within_a_step(bottom, span, expected):
    """A save's waits are the save's, an evaluation's its own, and between steps there are none."""
    hands = Hands()
    ledger = Ledger(clock=hands, bottom=bottom)
    with ledger.span(span) if span else nullcontext(), HostClock(ledger).waiting():
        hands.now_ns += 7
    assert {phase: ns for phase, ns in ledger.take().items() if ns} == expected


def test_the_tail_of_a_backward_pass_leaves_out_waits_that_were_seen():
    """After the last gradient 5 compute, 20 waiting and seen, 3 more: the tail is 8, not 28."""
    hands = Hands()
    ledger = Ledger(clock=hands, bottom="compute")
    clock = HostClock(ledger)
    clock.begin()
    clock.gradient()
    hands.now_ns += 5
    with clock.waiting():
        hands.now_ns += 20
    hands.now_ns += 3
    clock.backward_done()
    clock.finish(torch.zeros(3))
    (reading,) = clock.ready()
    assert reading.comm_ns == 8


def test_torch_is_as_before_when_the_watching_ends():
    """Both functions are replaced within the body only, also if it raises; the waits within reach the original."""
    before, seen = (dist.Work.wait, functional.wait_tensor), []

    @contextmanager
    def waiting():
        seen.append(1)
        yield

    @waits.told_to(waiting)
    def fail():
        assert dist.Work.wait is not before[0]
        assert functional.wait_tensor is not before[1]
        assert torch.equal(functional.wait_tensor(torch.ones(2)), torch.ones(2))
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (dist.Work.wait, functional.wait_tensor) == before
    assert seen == [1]


@pytest.mark.parametrize("waits_a_step", [0, 1, BRACKETS, BRACKETS + 1, 7 * BRACKETS + 3])
def test_brackets_are_few_and_take_each_wait_equally_often(waits_a_step):
    """At most `BRACKETS` of a step from its second on; over as many steps as the stride is long, each wait once."""
    sampling = Sampling()
    sampling.begin()
    assert sum(sampling.take() for _ in range(waits_a_step)) == waits_a_step  # nothing is known of the first step
    stride = max(1, -(-waits_a_step // BRACKETS))
    counts = [0] * waits_a_step
    for _ in range(stride):
        sampling.begin()
        taken = [sampling.take() for _ in range(waits_a_step)]
        assert sum(taken) <= BRACKETS
        counts = [count + is_taken for count, is_taken in zip(counts, taken, strict=True)]
    assert counts == [1] * waits_a_step


@pytest.mark.parametrize(
    ("bracketed_ns", "bracketed", "seen", "expected"), [(0, 0, 0, 0), (600, 3, 3, 600), (600, 3, 12, 2400)]
)
def test_what_was_bracketed_stands_for_all(bracketed_ns, bracketed, seen, expected):
    """Times the number of waits over those bracketed."""
    assert extrapolate(bracketed_ns, bracketed, seen) == expected


def test_what_compilers_trace_is_left_alone_where_blocks_are_compiled():
    """`wait_tensor` stays torch's own; waits that no graph holds are still told."""
    before = functional.wait_tensor
    with waits.told_to(nullcontext, has_graphs=True):
        assert functional.wait_tensor is before
        assert dist.Work.wait.__wrapped__ is not None

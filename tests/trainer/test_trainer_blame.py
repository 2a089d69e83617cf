"""The verdict when a collective fails: which rank is the cause, and with which code the others end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from amdahl_trainer import blame
from amdahl_trainer.blame import Card, Verdict, failure_of, judge
from amdahl_trainer.errors import Exit, SaveError

TIMEOUT_S = 20

#: What torch 2.13 says.
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv"


def card(host="node-b", renewed=5, step=12, phase="comm", **told):
    return Card(host=host, renewed=renewed, step=step, phase=phase, **told)


def waiting(failure="closed", **told):
    return card(failed=failure, **told)


def renewed(one):
    """The same rank some seconds later, if it lives."""
    return replace(one, renewed=one.renewed + 3)


@pytest.mark.parametrize(
    ("others", "code", "ranks", "text"),
    [
        ([(card(), card())], 80, (1,), "rank 1 on node-b died; it was last seen after step 12 in phase comm"),
        (
            [(card(phase="compute"), card(phase="compute"))],
            80,
            (1,),
            "rank 1 on node-b died; it was last seen after step 12 in phase compute",
        ),
        ([(card(step=-1), card(step=-1))], 80, (1,), "rank 1 on node-b died; it was last seen at start-up"),
        ([(card(), card(ended=78))], 80, (1,), "rank 1 on node-b ended with exit code 78 (data)"),
        ([(card(), card(ended=79))], 79, (1,), "rank 1 on node-b ended with exit code 79 (non_finite)"),
        (
            [(card(), waiting()), (card(), card())],
            80,
            (2,),
            "rank 2 on node-b died; it was last seen after step 12 in phase comm",
        ),
        ([(card(), card()), (card(), card(ended=1))], 80, (2,), "rank 2 on node-b ended with exit code 1 (crashed)"),
        (
            [(card(), waiting("late")), (card(phase="input"), card(phase="input"))],
            81,
            (2,),
            (
                "rank 2 on node-b did not answer for 20 s (limits.comm_timeout_s): it is stopped, or its machine is gone; "
                "it was last seen after step 12 in phase input"
            ),
        ),
        (
            [(card(), waiting("late")), (card(), renewed(card(phase="input", unchanged_s=21)))],
            81,
            (2,),
            (
                "rank 2 on node-b kept the others waiting for 20 s (limits.comm_timeout_s): it is after step 12 in phase "
                "input since 21 s"
            ),
        ),
        (
            [(card(), renewed(card())), (card(), renewed(card(phase="input", unchanged_s=21)))],
            80,
            (2,),
            "rank 2 on node-b kept",
        ),
        ([(card(), waiting())], 80, (), "connections between ranks were lost, though all ranks live"),
        (
            [(card(), waiting("late"))],
            81,
            (),
            "no rank came on for 20 s (limits.comm_timeout_s), though all ranks live",
        ),
        (
            [(card(host=f"node-{number}"), card(host=f"node-{number}")) for number in range(7)],
            80,
            (1, 2, 3, 4, 5, 6, 7),
            "rank 5 on node-4 died; it was last seen after step 12 in phase comm, and 2 more",
        ),
    ],
)
def test_the_cause_is_found_among_the_others(others, code, ranks, text):
    """By what each rank said of itself, by whether it still says anything, and by where it is."""
    mine = waiting("closed")
    before, after = zip((mine, mine), *others, strict=True)
    verdict = judge(0, before, after, TIMEOUT_S)
    assert (verdict.code, verdict.ranks) == (code, ranks)
    assert text in verdict.text


@pytest.mark.parametrize(
    ("last", "failure", "code", "text"),
    [
        (None, "closed", 80, "rank 0 on node-a died"),
        (card(), "closed", 80, "rank 0 on node-a died; it was last seen after step 12 in phase comm"),
        (waiting("closed"), "closed", 80, "another rank was lost; rank 0 on node-a has said which"),
        (waiting("late"), "closed", 81, "another rank was lost; rank 0 on node-a has said which"),
        (card(ended=76), "closed", 80, "rank 0 on node-a ended with exit code 76 (config)"),
        (card(ended=79), "closed", 79, "rank 0 on node-a ended with exit code 79 (non_finite)"),
        (card(), "late", 81, "rank 0 on node-a did not answer for 20 s"),
    ],
)
def test_the_rank_that_holds_the_store_is_the_cause_when_the_store_is_gone(last, failure, code, text):
    """From its card as it was last seen."""
    verdict = blame.without_store("rank 0 on node-a", last, failure, TIMEOUT_S)
    assert (verdict.code, verdict.ranks) == (code, () if last and last.failed else (0,))
    assert text in verdict.text


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RuntimeError(CLOSED), "closed"),
        (RuntimeError(LATE), "late"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "closed"),
        (dist.DistStoreError("wait timeout after 20000ms, keys: /default_pg/0//cpu//0/0"), "late"),
        (caused(SaveError("disk"), CheckpointException("save", {1: (RuntimeError(CLOSED), None)})), "closed"),
        (caused(SaveError("disk"), CheckpointException("save", {1: (OSError(32, "Broken pipe"), None)})), None),
        (ValueError(CLOSED), None),
        (RuntimeError("shape mismatch"), None),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (KeyError("timeout"), None),
    ],
)
def test_a_failed_collective_is_told_from_other_failures(error, failure):
    """By type and text, through whatever it was the cause of; a disk or a shape is no other rank's fault."""
    assert failure_of(error) == failure


def test_cards_and_verdicts_read_back_as_themselves():
    """Through the store."""
    one = card(ended=77, failed="late", unchanged_s=4, is_done=True)
    assert Card.parse(one.to_json().encode()) == one
    verdict = Verdict(Exit.PEER_HUNG, (1, 2), "rank 1 and rank 2")
    assert Verdict.parse(verdict.to_json().encode()) == verdict

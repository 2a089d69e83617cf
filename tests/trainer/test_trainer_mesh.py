"""Degrees, seats and refusals: which rank does what, and what is said where the ranks cannot be dealt that way."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer import config as configs
from amdahl_trainer import parallel, pp
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.mesh import Degrees, Seat, fit_degrees
from amdahl_trainer.peers import Place
from amdahl_trainer.sections import Parallel


@pytest.mark.parametrize(
    ("changes", "world", "local", "expected"),
    [
        ({}, 1, 1, Degrees()),
        ({}, 4, 4, Degrees(replicate=4)),
        ({"dp_mode": "fsdp2"}, 4, 4, Degrees(shard=4)),
        ({"dp_mode": "hsdp"}, 16, 8, Degrees(replicate=2, shard=8)),
        ({"dp_mode": "hsdp", "tp": 2}, 16, 8, Degrees(replicate=2, shard=4, tp=2)),
        ({"dp_mode": "hsdp", "shard": 2}, 8, 8, Degrees(replicate=4, shard=2)),
        ({"tp": 2, "cp": 2, "pp": 2}, 16, 8, Degrees(pp=2, replicate=2, cp=2, tp=2)),
        ({"tp": 2, "dp": "2"}, 4, 4, Degrees(replicate=2, tp=2)),
        ({"tp": 4}, 4, 4, Degrees(tp=4)),
    ],
)
def test_ranks_are_dealt(changes, world, local, expected):
    """Data parallelism takes what the other degrees leave; hsdp keeps a copy on each machine."""
    assert fit_degrees(replace(Parallel(), **changes), world, local) == expected
    assert expected.world == world


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({"tp": 3}, 4, "parallel.tp is 3, which does not divide the 4 ranks; nearest legal: 2 or 4"),
        (
            {"tp": 2, "pp": 4},
            4,
            "parallel.pp is 4, which does not divide the 4 ranks, after the other degrees 2; nearest legal: 2",
        ),
        ({"cp": 8}, 4, "parallel.cp is 8, which does not divide the 4 ranks; nearest legal: 4"),
        ({"dp": "two"}, 4, "parallel.dp is 'two'; set auto or a number of ranks"),
        ({"dp": "0"}, 4, "set auto or a number of ranks"),
        (
            {"dp": "3", "tp": 2},
            4,
            "parallel.dp is 3, but 4 ranks with pp x cp x tp = 2 leave 2; nearest legal: 2, or 6 ranks",
        ),
        (
            {"dp_mode": "hsdp", "shard": 3},
            4,
            "parallel.shard is 3, which does not divide the 4 data-parallel ranks; nearest legal: 2 or 4",
        ),
    ],
)
def test_degrees_that_do_not_divide_are_refused(changes, world, message):
    """With the key, the value and the nearest legal ones."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        fit_degrees(replace(Parallel(), **changes), world, world)


degrees = st.builds(Degrees, *[st.integers(1, 4)] * 5)


@given(degrees)
def test_every_seat_is_taken_once_and_tensor_parallel_ranks_are_neighbours(some):
    """Stages outermost, shares of a matrix innermost."""
    seats = [some.seat(rank) for rank in range(some.world)]
    assert seats == sorted(seats, key=lambda seat: (seat.pp, seat.dp, seat.cp, seat.tp))
    assert len(set(seats)) == some.world
    assert max(seat.dp for seat in seats) == some.dp - 1
    assert sum(seat.reads for seat in seats) == some.dp  # each row is counted once
    assert sum(seat.tells_loss for seat in seats) == some.world // some.tp
    assert seats[: some.tp] == [Seat(0, 0, 0, tp) for tp in range(some.tp)]


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        (
            {"parallel.tp": 4},
            4,
            "parallel.tp is 4, which does not divide model.n_kv_heads 2; nearest legal: parallel.tp 2, or model.n_kv_heads 4",
        ),
        (
            {"parallel.tp": 2, "model.d_ff": 353},
            2,
            "does not divide model.d_ff 353; nearest legal: parallel.tp 1 or 353, or model.d_ff 352 or 354",
        ),
        ({"parallel.tp": 2, "model.vocab_size": 321}, 2, "model.vocab_size 320 or 322"),
        (
            {"parallel.tp": 2, "data.seq_len": 65},
            2,
            "parallel.tp is 2, which does not divide the 65 tokens that a rank has of each row; nearest legal: 1 or 5, or set parallel.sp to false",
        ),
        ({"parallel.cp": 2, "data.seq_len": 66}, 2, "nearest legal row length: 64 or 68"),
        ({"parallel.cp": 8, "parallel.cp_mode": "ulysses"}, 8, "nearest legal degree: 4"),
        ({"parallel.pp": 2, "batch.micro_batch": 8}, 2, "model.tie_embeddings is true, but with parallel.pp 2"),
        (
            {"parallel.pp": 2, "model.tie_embeddings": False},
            2,
            "makes 1 micro-batches of a rank's 16 rows, which schedule 1f1b cannot run over parallel.pp 2 ranks; nearest legal: batch.micro_batch 8",
        ),
        (
            {"parallel.pp": 8, "model.tie_embeddings": False, "batch.micro_batch": 1},
            8,
            "makes 8 stages, more than model.n_layers 4; nearest legal: parallel.pp 4",
        ),
        (
            {
                "parallel.pp": 4,
                "parallel.pp_schedule": "interleaved",
                "model.tie_embeddings": False,
                "batch.micro_batch": 1,
            },
            4,
            "makes 8 stages, more than model.n_layers 4; nearest legal: parallel.pp 2",
        ),
        ({"parallel.tp": 2, "batch.global_sequences": 7}, 4, "nearest legal: 6 or 8, or 1 or 7 ranks"),
    ],
)
def test_what_cannot_be_split_that_way_is_refused_before_anyone_waits(changes, world, message):
    """Heads, widths, tokens, stages and micro-batches: each with the remedy."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        parallel.fit(configs.build(changes), Place(0, world, 0, world))


@given(st.integers(1, 64), st.integers(1, 16))
def test_layers_are_split_in_order_and_evenly(n_layers, stages):
    """No layer is lost, no stage is more than one longer, longer ones come first, and the ends have embedding and head."""
    if n_layers < stages:
        return
    parts = pp.split_layers(n_layers, stages)
    assert [layer for part in parts for layer in part.layers] == list(range(n_layers))
    sizes = [len(part.layers) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert [part.is_first for part in parts] == [True] + [False] * (stages - 1)
    assert [part.is_last for part in parts] == [False] * (stages - 1) + [True]


@pytest.mark.parametrize("schedule", ["afab", "1f1b", "interleaved"])
def test_micro_batches_that_a_schedule_takes_are_those_that_torch_takes(schedule):
    """`pp.check` and torch's own constructors refuse the same numbers, which `check` says before anyone waits."""
    settings = Parallel(pp=3, pp_schedule=schedule)
    model = configs.Model(n_layers=12, tie_embeddings=False)
    for count in range(1, 20):
        allowed = schedule == "afab" or (count >= 3 and (schedule == "1f1b" or count % (count // 3) == 0))
        if allowed:
            pp.check(model, settings, 1, count)
        else:
            with pytest.raises(ConfigError, match="nearest legal"):
                pp.check(model, settings, 1, count)

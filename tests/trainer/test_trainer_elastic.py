"""Other ranks, other layouts: a run goes on from its checkpoint as if it had never been divided otherwise."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from amdahl_probe import digests
from amdahl_trainer.data import sources
from amdahl_trainer.data.order import Order
from amdahl_trainer.errors import Exit

SCRIPT = str(Path(__file__).with_name("resharded.py"))
GLOBAL = 8

#: A model that every layout can divide, pipeline stages but for a tied head.
DIVISIBLE = {"model.n_layers": 2, "model.n_kv_heads": 2}

HOPS = [
    ("plain", 1, False),
    ("fsdp2", 2, False),
    ("plain", 1, True),
    ("tp", 2, True),
    ("fsdp2-tp", 4, False),
    ("pp", 2, True),
    ("hsdp", 4, True),
    ("plain", 2, True),
    ("fsdp2", 2, True),
    ("plain", 1, False),
]


def samples_of(config, steps):
    """The digest of each step's samples, from the order alone."""
    order = Order(len(sources.ensure(config).train), config.run.seed)
    return [digests.digest_ids([order.sample(at) for at in range(s * GLOBAL, (s + 1) * GLOBAL)]) for s in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_four_then_two_then_one_rank_stopped_by_sigterm_equal_one_uninterrupted_run(start, run, tiny, mode):
    """SIGTERM to one rank each time: all save one step, no sample is lost or repeated, losses agree to 2e-6."""
    saving = {"run.max_steps": 100_000, "checkpoint.every_steps": 3, "checkpoint.async_save": mode == "thread"}
    parts, done = [], 0
    for world in (4, 2, 1):
        ranks = start(f"{world}", saving, nproc=world, out="elastic")
        ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 4)
        ranks.signal(signal.SIGTERM, rank=world - 1)
        part = ranks.join()
        assert part.codes == [Exit.YIELDED] * world, part.output
        taken = {len(part.of("step", rank)) for rank in range(world)}
        assert len(taken) == 1, "ranks stopped at different steps"
        done += taken.pop()
        for rank in range(world):
            assert max(save["step"] for save in part.of("save", rank) if save.get("durable")) == done
        parts.append(part)
    whole = run("whole", {"run.max_steps": done})
    losses = [loss for part in parts for loss in part.losses]
    assert max(abs(a - b) for a, b in zip(losses, whole.losses, strict=True)) <= 2e-6
    expected = samples_of(tiny(), done)
    assert [ids for part in parts for ids in part.sample_digests] == expected
    assert whole.sample_digests == expected


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_any_layout_reads_what_any_other_wrote_to_the_bit(start, tied):
    """From one process through FSDP2, tensor parallelism, both, HSDP and pipeline stages, and back; with moments."""
    first = None
    changes = {**DIVISIBLE, "model.tie_embeddings": tied, "checkpoint.keep": 1}
    for number, (layout, world, asynchronous) in enumerate(HOPS):
        if tied and layout == "pp":
            continue
        told = changes | {"checkpoint.async_save": asynchronous}
        hop = start(f"{number}", told, nproc=world, out="hops", script=SCRIPT, environ={"LAYOUT": layout}).join()
        assert hop.codes == [0] * world, (layout, hop.output)
        if layout == "pp":
            continue  # no rank of it can gather the whole
        kept = torch.load(hop.home / "whole.pt")
        first = first or kept
        assert kept.keys() == first.keys()
        assert all(torch.equal(kept[name], first[name]) for name in first), (number, layout)


#: Layouts of a run in turn: how many ranks, and the keys that divide the work among them.
MOVES = [
    (2, {"parallel.dp_mode": "fsdp2"}),
    (2, {"parallel.tp": 2}),
    (4, {"parallel.dp_mode": "fsdp2", "parallel.tp": 2}),
    (2, {"parallel.pp": 2, "batch.micro_batch": 2}),
    (4, {"parallel.dp_mode": "hsdp", "parallel.shard": 2}),
    (2, {"parallel.cp": 2}),
    (1, {}),
]


@pytest.mark.slow
def test_a_run_that_moves_from_layout_to_layout_equals_an_uninterrupted_one(run, tiny):
    """Two steps in each: losses agree to 2e-6 with one process that was never stopped, samples are the same."""
    steps = 2 * len(MOVES)
    changes = {**DIVISIBLE, "model.tie_embeddings": False, "optim.decay_steps": steps}
    whole = run("whole", {**changes, "run.max_steps": steps})
    losses = []
    for number, (world, layout) in enumerate(MOVES, start=1):
        told = {**changes, **layout, "run.max_steps": 2 * number, "checkpoint.keep": 1}
        part = run(f"{number}", told, nproc=world, out="moved")
        assert part.codes == [Exit.FINISHED] * world, (layout, part.output)
        losses += part.losses
    assert max(abs(a - b) for a, b in zip(losses, whole.losses, strict=True)) <= 2e-6

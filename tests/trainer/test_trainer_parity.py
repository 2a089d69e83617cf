"""The parity matrix: on every mesh a step is the step of one process, in loss, gradients and parameters."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch

from amdahl_trainer import config as configs
from amdahl_trainer import memory, parallel, speed
from amdahl_trainer.peers import Alone, Place
from mesh_parity import MISTAKES, TINY, Pool, apart, reference, take_step

SCRIPT = str(Path(__file__).with_name("mesh_rank.py"))

AFAB, ONE_EACH, INTERLEAVED = (
    {"parallel.pp": 2, "parallel.pp_schedule": schedule, "model.n_layers": 4}
    for schedule in ("afab", "1f1b", "interleaved")
)
PP4, CP = {"parallel.pp": 4, "batch.micro_batch": 1}, {"parallel.cp": 2}
#: Two blocks: each sends dozens of messages, and more of them show nothing new.
TP = {"parallel.tp": 2, "model.n_layers": 2}
FSDP, HSDP = {"parallel.dp_mode": "fsdp2"}, {"parallel.dp_mode": "hsdp", "parallel.shard": 2}
NO_SP, ASYNC, TIED = {"parallel.sp": False}, {"parallel.async_tp": True}, {"model.tie_embeddings": True}
RING, ULYSSES = {"parallel.cp_mode": "ring"}, {"parallel.cp_mode": "ulysses"}
CHUNKS, WHOLE_BLOCK = {"memory.loss_chunks": 4}, {"memory.activation_checkpoint": "block"}
SELECTIVE = {"memory.activation_checkpoint": "selective"}
COMPILED, OFFLOADED = {"run.compile": "blocks"}, {"memory.cpu_offload": True}

ONE = {
    **{f"micro-batch {rows}": {"batch.micro_batch": rows} for rows in (1, 2, 4, 8)},
    "tied": TIED,
    "loss in pieces": CHUNKS,
    "blocks again": WHOLE_BLOCK,
    "cheap operations again": SELECTIVE,
}

#: In a process of its own: compiling raises warnings of torch's own making, and here warnings are errors.
FUSED = {
    "plainly": COMPILED,
    "everything again": {**COMPILED, **WHOLE_BLOCK, **CHUNKS},
    "cheap operations again": {**COMPILED, **SELECTIVE},
}

TWO = {
    **{f"ddp, micro-batch {rows}": {"batch.micro_batch": rows} for rows in (1, 2, 4)},
    "ddp, tied": TIED,
    "ddp, everything again": {**WHOLE_BLOCK, **CHUNKS},
    "fsdp2": FSDP,
    "fsdp2, one micro-batch": {**FSDP, "batch.micro_batch": 4},
    "fsdp2, tied": {**FSDP, **TIED},
    "fsdp2, everything again": {**FSDP, **WHOLE_BLOCK, **CHUNKS},
    "fsdp2, cheap operations again": {**FSDP, **SELECTIVE},
    "tp": TP,
    "tp, grouped heads": {**TP, "model.n_kv_heads": 2},
    "tp, tied": {**TP, **TIED},
    "tp, loss in pieces": {**TP, **CHUNKS},
    "tp, blocks again": {**TP, **WHOLE_BLOCK},
    "tp, cheap operations again": {**TP, **SELECTIVE},
    "tp without sp": {**TP, **NO_SP},
    "tp without sp, tied": {**TP, **NO_SP, **TIED},
    "tp without sp, loss in pieces": {**TP, **NO_SP, **CHUNKS},
    "async tp": {**TP, **ASYNC},
    "async tp, blocks again": {**TP, **ASYNC, **WHOLE_BLOCK},
    "async tp without sp": {**TP, **NO_SP, **ASYNC},
    "pp afab": AFAB,
    "pp afab, one micro-batch": {**AFAB, "batch.micro_batch": 8},
    "pp 1f1b": ONE_EACH,
    "pp 1f1b, 2 micro-batches": {**ONE_EACH, "batch.micro_batch": 4},
    "pp 1f1b, 8 micro-batches": {**ONE_EACH, "batch.micro_batch": 1},
    "pp interleaved": INTERLEAVED,
    "pp interleaved, blocks again": {**INTERLEAVED, **WHOLE_BLOCK, **CHUNKS},
    "pp, uneven stages": {**ONE_EACH, "model.n_layers": 3},
    **{
        f"cp {mode}, {balance}, {'documents' if mask else 'whole rows'}": {
            **CP,
            "parallel.cp_mode": mode,
            "parallel.cp_balance": balance,
            "data.doc_mask": mask,
        }
        for mode in ("allgather", "ulysses", "ring")
        for balance in ("zigzag", "contiguous")
        for mask in (True, False)
    },
    "ddp, compiled, blocks again": {**COMPILED, **WHOLE_BLOCK},
    "fsdp2, compiled, cheap operations again": {**FSDP, **COMPILED, **SELECTIVE},
    "fsdp2, offloaded": {**FSDP, **OFFLOADED},
    "fsdp2, offloaded, tied, everything again": {**FSDP, **OFFLOADED, **TIED, **WHOLE_BLOCK, **CHUNKS},
    "pp 1f1b, compiled": {**ONE_EACH, **COMPILED},
    "cp, compiled": {**CP, **COMPILED},
    "cp ring, fsdp2, compiled, everything again": {**CP, **RING, **FSDP, **COMPILED, **WHOLE_BLOCK, **CHUNKS},
    "cp, fsdp2": {**CP, **FSDP},
    "cp, loss in pieces, blocks again": {**CP, **CHUNKS, **WHOLE_BLOCK},
}

FOUR = {
    "ddp": {},
    "fsdp2": FSDP,
    "hsdp": HSDP,
    "hsdp, tied": {**HSDP, **TIED},
    "hsdp, offloaded": {**HSDP, **OFFLOADED},
    "tp 4": {**TP, "parallel.tp": 4},
    "pp 4 afab": {**PP4, "parallel.pp_schedule": "afab"},
    "pp 4 1f1b": {**PP4, "parallel.pp_schedule": "1f1b"},
    **{f"cp 4 {mode}": {"parallel.cp": 4, "parallel.cp_mode": mode} for mode in ("allgather", "ulysses", "ring")},
    "ddp x tp": TP,
    "ddp x tp, tied": {**TP, **TIED},
    "ddp x async tp without sp": {**TP, **ASYNC, **NO_SP},
    "fsdp2 x tp": {**TP, **FSDP},
    "fsdp2 x tp, everything again": {**TP, **FSDP, **WHOLE_BLOCK, **CHUNKS},
    "fsdp2 x tp, offloaded": {**TP, **FSDP, **OFFLOADED},
    "fsdp2 x async tp": {**TP, **FSDP, **ASYNC},
    "ddp x pp afab": AFAB,
    "ddp x pp 1f1b": ONE_EACH,
    "ddp x pp interleaved": INTERLEAVED,
    "fsdp2 x pp afab": {**FSDP, **AFAB},
    "fsdp2 x pp 1f1b": {**FSDP, **ONE_EACH},
    "fsdp2 x pp 1f1b, offloaded": {**FSDP, **ONE_EACH, **OFFLOADED},
    "fsdp2 x pp interleaved": {**FSDP, **INTERLEAVED},
    "ddp x cp": CP,
    "ddp x cp ring": {**CP, **RING},
    "fsdp2 x cp ulysses": {**CP, **ULYSSES, **FSDP},
    "hsdp over cp": {**CP, "parallel.dp_mode": "hsdp", "parallel.shard": 1},
    "tp x pp 1f1b": {**TP, **ONE_EACH},
    "tp x pp interleaved": {**TP, **INTERLEAVED},
    "async tp x pp afab without sp": {**TP, **ASYNC, **NO_SP, **AFAB},
    "tp x cp": {**TP, **CP},
    "tp x cp ulysses": {**TP, **CP, **ULYSSES},
    "async tp x cp ring": {**TP, **ASYNC, **CP, **RING},
    "tp x cp, loss in pieces": {**TP, **CP, **CHUNKS},
    "pp 1f1b x cp": {**ONE_EACH, **CP},
    "pp interleaved x cp ring": {**INTERLEAVED, **CP, **RING},
}


def wanted(values, take=None):
    """What one process makes of the same model and rows."""
    maths = ((name, value) for name, value in values.items() if name.startswith(("model.", "data.")))
    return _wanted(tuple(sorted(maths)), take)


@functools.cache
def _wanted(items, take):
    return reference(dict(items), take)


def assert_parity(found, values, take=None):
    """Gradients within 5e-6 of the largest, loss within 2e-6, parameters alike on all ranks."""
    one = wanted(values, take)
    assert apart(found["first"], one["first"]) == 0.0
    assert apart(found["gradients"], one["gradients"]) <= 5e-6
    assert apart(found["after"], one["after"]) <= 5e-6
    assert abs(float(found["loss"] - one["loss"])) <= 2e-6
    assert found["sums"] == pytest.approx(one["sums"], rel=1e-6)
    assert float(found["norm"]) == pytest.approx(float(one["norm"]), rel=5e-6)
    assert found["spread"] == 0.0
    assert not found["refused"]
    assert (found["graphs"] > 0) == (values.get("run.compile") == "blocks")


@pytest.fixture(scope="session")
def pool(zygote, tmp_path_factory):
    """`pool(2)`: ranks that stay for all cases."""
    made = {}

    def start(world):
        home = tmp_path_factory.mktemp(f"world{world}")
        return zygote.start(home, [str(home)], world, {}, SCRIPT)

    def get(world):
        if world not in made or not made[world].is_open:
            made[world] = Pool(start, world)
        return made[world]

    yield get
    for one in made.values():
        if one.is_open:
            one.close()


@pytest.mark.parametrize("values", ONE.values(), ids=ONE)
def test_one_process_takes_the_step_written_by_hand(values):
    """Accumulation, pieces of the loss and activations computed again change rounding only."""
    assert_parity(take_step({**TINY, **values}, Place(), Alone()), values)


@pytest.mark.slow
@pytest.mark.parametrize("values", FUSED.values(), ids=FUSED)
def test_one_process_takes_it_compiled(pool, values):
    """Compiled operations round otherwise and change nothing else, activations being computed again or not."""
    assert_parity(pool(1).run(values), values)


@pytest.mark.slow
@pytest.mark.parametrize("values", TWO.values(), ids=TWO)
def test_two_ranks_take_the_step_of_one(pool, values):
    """Every mode on two ranks."""
    assert_parity(pool(2).run(values), values)


@pytest.mark.slow
@pytest.mark.parametrize("values", FOUR.values(), ids=FOUR)
def test_four_ranks_take_the_step_of_one(pool, values):
    """Every mode on four ranks, and every product of two."""
    assert_parity(pool(4).run(values), values)


def scale(found, one):
    """The factor between two sets of gradients, by least squares."""
    ours, theirs = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (found, one))
    return float(ours @ theirs / (theirs @ theirs))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [AFAB, ONE_EACH, INTERLEAVED], ids=["afab", "1f1b", "interleaved"])
@pytest.mark.parametrize(("mistake", "factor"), [(None, 1.0), (MISTAKES[0], 4.0)], ids=["right", "mistaken"])
def test_gradients_of_a_pipeline_have_the_scale_of_one_process(pool, mode, mistake, factor):
    """Exactly 1; dividing each of 4 micro-batches by its own tokens only would make it 4, and would be seen."""
    found = pool(2).run(mode, mistake=mistake)
    assert scale(found["gradients"], wanted(mode)["gradients"]) == pytest.approx(factor, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [{}, FSDP], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("mode", [AFAB, ONE_EACH, INTERLEAVED], ids=["afab", "1f1b", "interleaved"])
def test_a_pipeline_reads_no_number_for_a_micro_batch(pool, mode, beside):
    """4 micro-batches wait for the device as often as 2 do. Documents, which are found in host memory, are left out."""

    def count_reads(rows):
        found = pool(4).run({**mode, **beside, "data.doc_mask": False, "batch.micro_batch": rows}, watch=True)
        return found["calls"].get("_local_scalar_dense", 0)

    assert count_reads(1) == count_reads(2)


@pytest.mark.slow
def test_context_parallelism_without_data_parallelism_reduces_gradients(pool):
    """With dp = 1 ranks agree to the last bit; without the reduction over cp they would not, and it would be seen."""
    assert pool(2).run(CP)["spread"] == 0.0
    mistaken = pool(2).run(CP, mistake=MISTAKES[1])
    assert mistaken["spread"] > 0.0
    assert apart(mistaken["gradients"], wanted(CP)["gradients"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "has_marks"),
    [({}, True), (FSDP, False), ({**TP, **FSDP}, False), (TP, False), (ONE_EACH, False), (CP, True)],
    ids=["ddp", "fsdp2", "fsdp2 beside tp alone", "tp", "pp", "cp"],
)
def test_local_gradients_are_marked_where_a_reduction_follows(pool, values, has_marks):
    """The clock needs the last one where DDP waits below Python; on a CPU the waits of FSDP are seen themselves."""
    assert (pool(2).run(values)["marks"] > 0) == has_marks


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [{}, CHUNKS, FSDP, {**FSDP, **CHUNKS, **WHOLE_BLOCK}, TP, {**TP, **NO_SP}, {**TP, **CHUNKS}, ONE_EACH, CP],
    ids=["ddp", "ddp, pieces", "fsdp2", "fsdp2, again", "tp", "tp without sp", "tp, pieces", "pp", "cp"],
)
def test_bfloat16_is_near_and_parameters_stay_float32(pool, values):
    """Products in half precision move the loss by less than 1 %, gradients by less than 5 %; ranks still agree."""
    found = pool(2).run({**values, "precision.compute": "bfloat16"})
    one = wanted(values)
    assert float(found["loss"]) == pytest.approx(float(one["loss"]), rel=1e-2)
    assert apart(found["gradients"], one["gradients"]) <= 5e-2
    assert {tensor.dtype for tensor in (*found["after"].values(), *found["gradients"].values())} == {torch.float32}
    assert found["spread"] == 0.0


FULL, HALF = {"float32"}, {"bfloat16"}
BUCKETS, PIECES = {"allreduce_": FULL}, {"_allgather_base_": HALF, "_reduce_scatter_base_": FULL}

#: What is sent in a step on two or four ranks, by collective, and its types. What sums gradients of parameters is float32;
#: what carries activations between ranks that split a model is what these are computed in. Integers, which torch 2.13
#: sends between stages once, are left out.
SENT = {
    "ddp": (2, {}, BUCKETS),
    "fsdp2": (2, FSDP, PIECES),
    "fsdp2, offloaded": (2, {**FSDP, **OFFLOADED}, PIECES),
    "hsdp": (4, HSDP, {**PIECES, **BUCKETS}),
    "pp": (2, ONE_EACH, {"send": FULL, "recv_": FULL}),
    "pp x fsdp2": (4, {**ONE_EACH, **FSDP}, {**PIECES, "send": HALF, "recv_": HALF}),
    "cp": (2, CP, {**PIECES, **BUCKETS}),
    "cp ulysses": (2, {**CP, **ULYSSES}, {"alltoall_base_": HALF, **BUCKETS}),
    "cp ring": (2, {**CP, **RING}, {"send": FULL | HALF, "recv_": FULL | HALF, **BUCKETS}),
    "tp x fsdp2": (4, {**TP, **FSDP, **CHUNKS}, {**PIECES, "all_reduce": FULL, "reduce_scatter_tensor": HALF}),
    "tp x ddp": (4, TP, {**BUCKETS, "all_reduce": FULL, "reduce_scatter_tensor": HALF}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "values", "types"), SENT.values(), ids=SENT)
def test_in_bfloat16_gradients_are_summed_in_float32(pool, world, values, types):
    """Over micro-batches, ranks and, for norms, tp; parameters, gradients, moments, loss and norm are float32."""
    found = pool(world).run({**values, "precision.compute": "bfloat16"}, watch=True)
    assert {name: found["sent"].get(name, set()) & (FULL | HALF) for name in types} == types
    assert found["kept"] == FULL
    assert found["loss"].dtype == found["norm"].dtype == torch.float32


WHOLE_ROWS = {"data.doc_mask": False}
SENDS = {
    "ddp": {},
    "fsdp2": {**FSDP, "batch.micro_batch": 1},
    "fsdp2, again": {**FSDP, "batch.micro_batch": 1, **WHOLE_BLOCK},
    "tp": TP,
    "tp, again": {**TP, **WHOLE_BLOCK},
    "tp without sp": {**TP, **NO_SP},
    "async tp": {**TP, **ASYNC},
    "pp 1f1b": ONE_EACH,
    "pp interleaved": INTERLEAVED,
    "cp": CP,
    "cp ulysses": {**CP, **ULYSSES},
    "cp ring": {**CP, **RING, **WHOLE_ROWS},
    "cp ring, again": {**CP, **RING, **WHOLE_BLOCK, **WHOLE_ROWS},
    "cp x fsdp2": {**CP, **FSDP},
}


@pytest.mark.slow
@pytest.mark.parametrize("values", SENDS.values(), ids=SENDS)
def test_a_rank_sends_as_much_as_the_plan_says(pool, values):
    """Within 5 %: sums of the loss, a few numbers a token, are left out; one gather is done before, in an evaluation."""
    config = configs.build({**TINY, **values})
    planned = speed.find(config, parallel.fit(config, Place(0, 2, 0, 2)), 2, 1.0, speed.Assumed()).messages
    sent = pool(2).run(values, watch=True)["bytes"]
    assert sum(message.sent_bytes for message in planned) == pytest.approx(sent, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, WHOLE_BLOCK], ids=["plainly", "blocks again"])
def test_gradients_of_pieces_are_scattered_with_every_micro_batch(pool, again):
    """4 micro-batches of 2 blocks and of what lies outside: no rank keeps whole gradients until the last."""
    values = {**FSDP, **again, "model.n_layers": 2, "batch.micro_batch": 1}
    assert pool(2).run(values, watch=True)["calls"]["_reduce_scatter_base_"] == 4 * (2 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5, 7])
@pytest.mark.parametrize("mode", [AFAB, ONE_EACH, INTERLEAVED, TP, CP], ids=["afab", "1f1b", "interleaved", "tp", "cp"])
def test_a_last_batch_of_fewer_rows_counts_as_what_it_is(pool, mode, rows):
    """1, 5 or 7 of 8 rows: messages between stages keep their shape, and rows that are not there weigh nothing."""
    assert_parity(pool(2).run(mode, take=rows), mode, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [FSDP, HSDP, TP, {**TP, **TIED}, {**TP, **FSDP}, ONE_EACH, INTERLEAVED, {**FSDP, **CP}, {**FSDP, **ONE_EACH}],
    ids=["fsdp2", "hsdp", "tp", "tp, tied", "tp x fsdp2", "pp", "interleaved", "cp x fsdp2", "pp x fsdp2"],
)
def test_a_rank_holds_as_many_parameters_as_the_plan_says(pool, values):
    """To the last element, on the rank that holds the most."""
    config = configs.build({**TINY, **values})
    degrees = parallel.fit(config, Place(0, 4, 0, 4))
    planned = max(memory.estimate(config, degrees, stage).parameters for stage in range(degrees.pp))
    assert pool(4).run(values)["held"] * 4 == planned


#: Activations, logits, blocks and what lies outside them weigh alike, and a step takes a second.
HEAVY = {
    "model.d_model": 128,
    "model.d_ff": 352,
    "model.vocab_size": 1024,
    "model.n_layers": 4,
    "data.seq_len": 128,
    "data.doc_mask": False,
    "batch.global_sequences": 16,
    "parallel.bucket_mb": 25,
}
#: Parameters weigh more, and then those outside blocks.
FEW_ROWS = {"batch.global_sequences": 4, "batch.micro_batch": 1, "data.seq_len": 64}
WIDE = {"model.d_model": 256, "model.d_ff": 704, **FEW_ROWS, "data.seq_len": 128}
ENDS = {"model.vocab_size": 8192, **FEW_ROWS, **WHOLE_BLOCK, **CHUNKS}
HALF_TYPE = {"precision.compute": "bfloat16"}

#: So often a rank is measured, where a message may have been late.
DELAYS = 3

MEMORY = {
    "ddp": (2, {}),
    "ddp, large vocabulary": (2, ENDS),
    "fsdp2": (2, FSDP),
    "fsdp2, wide, bfloat16": (2, {**FSDP, **WIDE, **HALF_TYPE}),
    "fsdp2, wide, blocks again": (2, {**FSDP, **WIDE, **WHOLE_BLOCK, **CHUNKS}),
    "fsdp2, large vocabulary": (2, {**FSDP, **ENDS}),
    "tp": (2, {"parallel.tp": 2}),
    "tp without sp, blocks again": (2, {"parallel.tp": 2, **NO_SP, **WHOLE_BLOCK}),
    "pp afab": (2, AFAB),
    "pp 1f1b": (2, ONE_EACH),
    "pp 1f1b, blocks again, bfloat16": (2, {**ONE_EACH, **WHOLE_BLOCK, **HALF_TYPE}),
    "pp interleaved": (2, INTERLEAVED),
    "cp": (2, CP),
    "cp ring": (2, {**CP, **RING}),
    "cp x fsdp2": (4, {**CP, **FSDP}),
    "cp x fsdp2, wide": (4, {**CP, **FSDP, **WIDE}),
    "tp x fsdp2": (4, {"parallel.tp": 2, **FSDP}),
    "pp x fsdp2, wide": (4, {**ONE_EACH, **FSDP, **WIDE}),
    "pp x fsdp2, large vocabulary": (4, {**ONE_EACH, **FSDP, **ENDS}),
    "pp 4 1f1b": (4, {"parallel.pp": 4}),
    "pp 4 afab": (4, {"parallel.pp": 4, "parallel.pp_schedule": "afab"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "changes"), MEMORY.values(), ids=MEMORY)
def test_peak_memory_of_ranks_is_predicted_within_a_tenth(pool, world, changes):
    """The rank of each stage that takes the most: gathered pieces, activations under way, messages and the loss.

    A message that is late keeps its buffer for so long, and no delay saves any: on a busy machine the least counts.
    """
    values = {**HEAVY, **changes}
    config, place = configs.build({**TINY, **values}), Place(0, world, 0, world)
    degrees = parallel.fit(config, place)
    planned = [memory.estimate(config, degrees, stage, on_gpu=False).total for stage in range(degrees.pp)]
    least = [math.inf] * degrees.pp
    for _ in range(DELAYS):
        taken = pool(world).run(values, memory=True)
        worst = [
            max(peak for rank, peak in enumerate(taken) if degrees.seat(rank).pp == stage)
            for stage in range(degrees.pp)
        ]
        least = [min(pair) for pair in zip(least, worst, strict=True)]
        if planned == pytest.approx(least, rel=0.1):
            return
    assert planned == pytest.approx(least, rel=0.1)

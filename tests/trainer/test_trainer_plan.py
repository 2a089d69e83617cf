"""Plans: memory is counted as torch allocates it, parameters and FLOPs are those of known models, bounds are bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from amdahl_trainer import config as configs
from amdahl_trainer import memory, parallel, plan, speed
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.model import Llama, Part
from amdahl_trainer.peers import Alone, Place
from mesh_parity import measure_peak

CONFIGS = Path(configs.__file__).parents[1] / "configs"


WIDE = {"model.n_layers": 4, "model.d_model": 128, "model.n_heads": 4, "model.n_kv_heads": 2, "model.d_ff": 352}
LONG = {**WIDE, "data.seq_len": 256, "batch.global_sequences": 8, "batch.micro_batch": 4, "data.doc_mask": False}
VOCABULARY = {"model.vocab_size": 8192, "model.tie_embeddings": False}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch.micro_batch": 2},
        {"model.n_kv_heads": 4},
        {"model.d_ff": 1024, "model.n_layers": 2},
        VOCABULARY,
        {**VOCABULARY, "memory.loss_chunks": 8},
        {"memory.activation_checkpoint": "block"},
        {"memory.activation_checkpoint": "block", "memory.loss_chunks": 4},
        {"memory.activation_checkpoint": "selective", "memory.loss_chunks": 4},
        {"batch.micro_batch": 8},
        {"memory.activation_checkpoint": "selective"},
        {**VOCABULARY, "memory.activation_checkpoint": "block", "memory.loss_chunks": 4, "model.n_layers": 8},
        {"precision.compute": "bfloat16"},
        {**VOCABULARY, "precision.compute": "bfloat16"},
        {**VOCABULARY, "precision.compute": "bfloat16", "memory.loss_chunks": 8},
    ],
    ids=str,
)
def test_peak_memory_is_predicted_within_a_tenth(changes):
    """On one process, for each way to keep less and both precisions."""
    values = {**LONG, **changes}
    predicted = memory.estimate(configs.build(values), Degrees(), on_gpu=False).total
    assert measure_peak(values, Place(), Alone()) == [pytest.approx(predicted, rel=0.1)]


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_counted(tied):
    """The elements of the shapes are those of the model, whole and in parts."""
    model = configs.Model(n_layers=3, d_model=64, n_kv_heads=2, tie_embeddings=tied)
    for part in (Part(range(3), 3), Part(range(1), 3), Part(range(1, 2), 3), Part(range(2, 3), 3)):
        counted = sum(rows * (columns or 1) for rows, columns in memory.shapes(model, part))
        assert counted == sum(weight.numel() for weight in Llama(model, part).parameters())


EIGHT_B = {
    "model.n_layers": 32,
    "model.d_model": 4096,
    "model.n_heads": 32,
    "model.n_kv_heads": 8,
    "model.d_ff": 14336,
    "model.vocab_size": 128256,
    "model.tie_embeddings": False,
    "data.seq_len": 8192,
    "batch.global_sequences": 128,
    "batch.micro_batch": 1,
    "precision.compute": "bfloat16",
}


def make(world=64, device="H100", **changes):
    return plan.make(
        configs.build({**EIGHT_B, **{key.replace("__", "."): value for key, value in changes.items()}}),
        world,
        8,
        device,
    )


def test_a_known_model_has_its_known_size():
    """Llama-3-8B: 8,030,261,248 parameters; 16 bytes each over 64 ranks."""
    found = make(parallel__dp_mode="fsdp2")
    assert found.parameters == 8_030_261_248
    state = found.needs[0].parameters + found.needs[0].gradients + found.needs[0].moments
    assert state == pytest.approx(16 * 8_030_261_248 / 64, rel=1e-3)


def test_what_is_offloaded_is_on_the_host_and_nowhere_else(capsys):
    """16 bytes a parameter over the ranks that share it leave the device, which keeps gathered blocks and the rest."""
    sharded = make(parallel__dp_mode="fsdp2").needs[0]
    offloaded = make(parallel__dp_mode="fsdp2", memory__cpu_offload=True).needs[0]
    state = sharded.parameters + sharded.gradients + sharded.moments
    assert offloaded.host == state
    assert offloaded.total == sharded.total - state
    assert sharded.host == 0
    arguments = [f"--{name}={value}" for name, value in EIGHT_B.items()]
    plan.main(["--world", "64", "--", *arguments, "--parallel.dp_mode=fsdp2", "--memory.cpu_offload=true"])
    assert f"host {state / plan.GIB:16.2f}" in capsys.readouterr().out


def test_each_technique_saves_what_it_is_for():
    """Sharding saves state, checkpointing activations, pieces logits; tp, pp and cp save what they split."""
    plain, sharded = make().needs[0], make(parallel__dp_mode="fsdp2").needs[0]
    assert sharded.moments * 60 < plain.moments
    for mode in ("selective", "block"):
        assert make(memory__activation_checkpoint=mode).needs[0].activations < plain.activations
    logits = 4 * 8192 * 128256
    assert (
        make(memory__loss_chunks=8).needs[0].total < plain.total - 1.9 * logits
    )  # of 3, for one sum of gradients more
    assert make(parallel__tp=8).needs[0].moments < plain.moments / 7.9
    assert make(parallel__cp=2).needs[0].working < plain.working / 1.6  # the gradient of the head is whole
    staged = make(parallel__pp=4)
    assert len(staged.needs) == 4
    assert staged.needs[0].moments < plain.moments / 3
    assert len({needs.working for needs in staged.needs[:3]}) == 1
    assert staged.needs[3].working > 5 * staged.needs[2].working
    assert staged.needs[0].activations > staged.needs[2].activations  # more micro-batches are on their way


#: In units of 2**20 FLOPs a token: products 6 (2 (4 + 12) + 1) = 198, attention 6 x 2 x 1 = 12 (causal), forward passes
#: of blocks 210 / 3 - 2 = 68 and of the head 2. Parameters: 34 x 2**20 in matrices, a block 16 x 2**20; 5 x 1024 in norms.
ROUND = {
    "model.n_layers": 2,
    "model.d_model": 1024,
    "model.n_heads": 8,
    "model.n_kv_heads": 8,
    "model.d_ff": 4096,
    "model.vocab_size": 1024,
    "model.tie_embeddings": False,
    "data.seq_len": 1024,
    "data.doc_mask": False,
    "batch.global_sequences": 8,
    "precision.compute": "bfloat16",
}
#: A step has 2**13 tokens, so that one device computes a unit of theirs in a second.
PEAK = float(2**33)
MASKED, BLOCKS = {"data.doc_mask": True}, {"memory.activation_checkpoint": "block"}
PIECES = {"memory.loss_chunks": 4}
#: Bytes of all gradients in float32, which two ranks send once in an all-reduce.
GRADIENTS = 4 * (34 * 2**20 + 5 * 1024)
#: Half of: blocks gathered twice and the rest once in two bytes, gradients scattered in four.
SHARDS = (2 * (34 * 2**20 + 5 * 1024) + 2 * 2 * (16 * 2**20 + 2 * 1024) + GRADIENTS) // 2


def find_speed(changes, world=1, local_world=8, **assumed):
    config = configs.build({**ROUND, **changes})
    degrees = parallel.fit(config, Place(0, world, 0, min(world, local_world)))
    return speed.find(config, degrees, min(world, local_world), PEAK, speed.Assumed(**assumed))


@pytest.mark.parametrize(
    ("changes", "world", "document", "least", "expected"),
    [
        ({}, 1, 0, 210, 210),
        ({}, 1, 512, 210, 210),  # rows that are one document, whatever is said of documents
        (MASKED, 1, 0, 210, 210),  # documents of unknown length: that of a row
        (MASKED, 1, 512, 204, 204),
        (BLOCKS, 1, 0, 210 + 68, 210 + 68),
        ({**MASKED, **BLOCKS}, 1, 512, 204 + 66, 204 + 66),
        (PIECES, 1, 0, 210 + 2, 210 + 2),
        ({**BLOCKS, **PIECES}, 1, 0, 210 + 70, 210 + 70),
        ({"memory.activation_checkpoint": "selective"}, 1, 0, 210, 210),
        ({}, 2, 0, 105, 105),
        ({"parallel.pp": 2, "batch.micro_batch": 1}, 2, 0, 105 * 9 / 8, 105 * 9 / 8),
        ({"parallel.pp": 2, "parallel.pp_schedule": "afab"}, 2, 0, 210, 210),  # one micro-batch: no one works beside
    ],
)
def test_a_step_takes_the_work_that_kernels_do(changes, world, document, least, expected):
    """Seconds by hand: at 78 % of the peak at least; expected at half of it, over links that cost nothing."""
    found = find_speed(changes, world, document=document, within=1e30)
    assert found.least_s == pytest.approx(least / 0.78)
    assert found.expected_s == pytest.approx(expected / 0.5)


TP, CP, SHARDED = {"parallel.tp": 2}, {"parallel.cp": 2}, {"parallel.dp_mode": "fsdp2"}
RING, INTERLEAVED = {"parallel.cp_mode": "ring"}, {"parallel.pp_schedule": "interleaved", "model.n_layers": 4}


@pytest.mark.parametrize(
    ("changes", "world", "sent"),
    [
        ({}, 1, {}),
        ({}, 2, {"gradients": GRADIENTS}),
        ({"batch.micro_batch": 1}, 2, {"gradients": GRADIENTS}),
        ({}, 4, {"gradients": GRADIENTS * 3 // 2}),
        (SHARDED, 2, {"pieces": SHARDS}),
        ({**SHARDED, "batch.micro_batch": 1}, 2, {"pieces": 4 * SHARDS}),
        ({"parallel.dp_mode": "hsdp", "parallel.shard": 2}, 4, {"pieces": SHARDS, "gradients": GRADIENTS // 2}),
        (TP, 2, {"tp": 20 * 2**24 // 2}),  # the stream is 2**24 bytes; 8 for each block, 4 outside
        ({**TP, **BLOCKS}, 2, {"tp": 26 * 2**24 // 2}),
        ({**TP, "parallel.async_tp": True}, 2, {"tp": 24 * 2**24 // 2}),
        (CP, 2, {"cp": 2 * 3 * 2**24, "gradients": GRADIENTS}),  # keys and values in two bytes, gradients in four
        ({**CP, **BLOCKS}, 2, {"cp": 2 * 4 * 2**24, "gradients": GRADIENTS}),
        ({**CP, **RING}, 2, {"cp": 2 * (2**24 + 2**24 + 2 * 2**25), "gradients": GRADIENTS}),
        ({"parallel.pp": 2, "batch.micro_batch": 1}, 2, {"pp": 8 * 2**22}),  # float32 under autocast; one way
        ({"parallel.pp": 2, "batch.micro_batch": 1, **INTERLEAVED}, 2, {"pp": 8 * 3 * 2**22}),
        ({"parallel.pp": 4, "batch.micro_batch": 1, "model.n_layers": 4}, 4, {"pp": 8 * 2 * 2**22}),  # both ways
    ],
)
def test_a_rank_sends_what_its_techniques_need(changes, world, sent):
    """Bytes of a step by hand."""
    assert {message.name: message.sent_bytes for message in find_speed(changes, world).messages} == sent


@pytest.mark.parametrize(
    ("changes", "exposed"),
    [
        ({}, 300 - 140),  # beside two thirds of 210 s
        ({"batch.micro_batch": 1}, 300 - 35),  # beside the last of four micro-batches
        (SHARDED, 300 - 210),
        ({**CP, **RING}, None),
        (TP, 300),
    ],
)
def test_messages_cost_what_no_arithmetic_hides(changes, exposed):
    """Links as slow that all messages take 300 s; two devices compute for 210."""
    (first, *_) = find_speed(changes, 2).messages
    found = find_speed(changes, 2, within=first.sent_bytes / 300)
    assert found.messages[0].seconds == pytest.approx(300)
    if exposed is None:  # the ring beside all of the arithmetic, gradients beside the last backward pass
        assert found.messages[0].exposed_s == pytest.approx(300 - 210)
        exposed = 300 - 210 + max(0, 300 * GRADIENTS / first.sent_bytes - 140)
    assert found.expected_s == pytest.approx(210 + exposed)
    assert found.least_s == pytest.approx(105 / 0.78)


@pytest.mark.parametrize(
    ("changes", "local_world", "seconds"),
    [
        (SHARDED, 4, 1 / 8),
        (SHARDED, 2, 1 / 2),  # two ports of each machine
        (SHARDED, 1, 1),
        ({**SHARDED, **TP}, 2, 1),  # ranks that split a matrix are neighbours, and share pieces with another machine
    ],
)
def test_machines_are_joined_by_the_ports_of_all_their_devices(changes, local_world, seconds):
    """Four ranks; a device sends eight times as fast within its machine."""
    sent = {message.name: message.sent_bytes for message in find_speed(changes, 4).messages}["pieces"]
    found = find_speed(changes, 4, local_world, within=8 * sent, between=sent)
    (pieces,) = (message for message in found.messages if message.name == "pieces")
    assert pieces.seconds == pytest.approx(seconds)


def test_utilisation_follows_from_the_step():
    """Shares of the peak by convention: attention counts twice in palm, and not at all in the least work."""
    found = make(data__doc_mask=False)
    palm, causal = found.cost.palm, found.cost.causal
    assert found.mfu(found.speed.expected_s) == {
        "palm": pytest.approx(0.5 * palm / causal),
        "causal": pytest.approx(0.5),
    }
    assert make(device="something else").speed is None


@pytest.mark.parametrize(
    ("document", "work"),
    [pytest.param(0, 197.5, id="as long as the row"), (131072, 197.5), pytest.param(1, 60.0, id="no pairs")],
)
def test_a_long_row_is_not_bound_by_pairs_that_no_kernel_computes(document, work):
    """The recipe of 131,072 tokens: 251.2 GFLOP a token by palm; 148.1 causal and 45.0 without attention, and again."""
    config = configs.load(str(CONFIGS / "long-context.yaml"), {}, [])
    found = plan.make(config, 8, 8, "H100", speed.Assumed(document=document))
    assert found.mfu(found.speed.least_s)["palm"] == pytest.approx(0.78 * 251.2 / work, rel=2e-3)
    assert found.mfu(found.speed.expected_s)["palm"] == pytest.approx(0.5 * 251.2 / work, rel=2e-3)


def test_the_command_prints_a_page_and_refuses_what_cannot_be(capsys):
    """One line each for mesh, step, model, memory, MFU and speed; an error is one line and code 76."""
    arguments = [f"--{name}={value}" for name, value in EIGHT_B.items()]
    assert plan.main(["--world", "64", "--", *arguments, "--parallel.tp=8", "--parallel.pp=2"]) == 0
    page = capsys.readouterr().out
    assert "64 ranks = pp 2 x dp 4 (copies 4 x shard 1) x cp 1 x tp 8" in page
    assert [line.split()[0] for line in page.splitlines()] == [
        *(
            "mesh",
            "step",
            "model",
            "memory",
            "parameters",
            "gradients",
            "moments",
            "gathered",
            "activations",
            "working",
        ),
        *("total", "MFU", "speed", "losses", "sends", "sends", "sends", "assumed", "assumed", "assumed"),
    ]
    assert plan.main(["--world", "6", "--", *arguments, "--parallel.tp=4"]) == 76
    assert "nearest legal: 3 or 6" in capsys.readouterr().err


def test_planning_and_starting_refuse_alike():
    """A plan accepts exactly what a run accepts."""
    config = configs.build(EIGHT_B)
    assert plan.make(config, 16, 8, "H100").degrees == parallel.fit(config, Place(0, 16, 0, 8))


RECIPES = {
    "100m-1gpu": (1, 100_934_400),
    "1b-8gpu": (8, 1_100_048_384),
    "7b-64gpu": (64, 6_738_415_616),
    "long-context": (8, 8_030_261_248),
}


@pytest.mark.parametrize(("name", "world", "parameters"), [(name, *told) for name, told in RECIPES.items()])
def test_recipes_for_gpus_fit_the_devices_they_are_named_for(name, world, parameters):
    """Known shapes have their known sizes, each rank needs less than 64 of a device's 80 GiB, and what can compiles."""
    config = configs.load(str(CONFIGS / f"{name}.yaml"), {}, [])
    found = plan.make(config, world, 8, "H100")
    assert (config.run.compile == "blocks") == (config.parallel.tp == 1)
    assert found.parameters == parameters
    assert max(needs.total for needs in found.needs) < 64 * plan.GIB

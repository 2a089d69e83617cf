"""Knobs of the step: what a start takes into its configuration, and what it leaves alone and why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer import config, start_knobs
from amdahl_trainer.peers import Place

CPU = torch.device("cpu")
PAIR = Place(0, 2, 0, 2)
CONFIG = config.build({"batch.global_sequences": 16, "batch.micro_batch": 2})
NAMES = ["microBatch", "bucketMb", "compile", "activationCheckpointing", "dataParallel"]


@pytest.mark.parametrize(
    ("name", "raw", "key", "value"),
    [
        ("microBatch", "8", "batch.micro_batch", 8),
        ("microBatch", 1, "batch.micro_batch", 1),
        ("bucketMb", "100", "parallel.bucket_mb", 100.0),
        ("compile", "0", "run.compile", "none"),
        ("activationCheckpointing", "block", "memory.activation_checkpoint", "block"),
        ("activationCheckpointing", "selective", "memory.activation_checkpoint", "selective"),
        ("dataParallel", "fsdp", "parallel.dp_mode", "fsdp2"),
        ("dataParallel", "ddp", "parallel.dp_mode", "ddp"),
    ],
)
def test_a_knob_sets_its_own_key(name, raw, key, value):
    """What a variable says becomes one key of the configuration, which then says the same of itself."""
    started = start_knobs.take(CONFIG, {name: raw}, PAIR, CPU)

    assert config.flatten(started.config) == config.flatten(CONFIG) | {key: value}
    assert not started.ignored
    assert start_knobs.present(started.config)[name] == start_knobs.read(name, raw)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("microBatch", "3", "does not divide a rank's share of 8 sequences"),
        ("microBatch", "16", "nearest legal: 8"),
        ("microBatch", "0", "no whole number from 1"),
        ("microBatch", "two", "no whole number"),
        ("bucketMb", "0", "no whole number from 1 to 4096"),
        ("compile", "maybe", "neither 0 nor 1"),
        ("activationCheckpointing", "all", "none of none, block, selective"),
        ("dataParallel", "hsdp", "none of ddp, fsdp"),
    ],
)
def test_what_does_not_fit_is_left_alone_with_the_reason(name, raw, said):
    """The configuration's own value stands: a trial of such a value is no crash, it shows no difference."""
    started = start_knobs.take(CONFIG, {name: raw}, PAIR, CPU)

    assert started.config == CONFIG
    assert said in started.ignored[name]


def test_one_bad_knob_does_not_keep_the_others_out():
    """Each on its own; knobs that are not of the step are not looked at."""
    values = {"microBatch": "5", "activationCheckpointing": "block", "dataloaderWorkers": "x"}
    started = start_knobs.take(CONFIG, values, PAIR, CPU)

    assert started.config.memory.activation_checkpoint == "block"
    assert set(started.ignored) == {"microBatch"}


def test_without_a_compiler_compiling_is_refused_as_a_knob(monkeypatch):
    """As a key it would end the run; as a knob it is named, and the model runs as it is."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    started = start_knobs.take(CONFIG, {"compile": "1"}, PAIR, CPU)

    assert started.config == CONFIG
    assert "compiler" in started.ignored["compile"]


@pytest.mark.parametrize(
    ("keys", "place", "values", "said"),
    [
        ({"parallel.tp": 2}, PAIR, {"compile": "0"}, "torch does not compile matrices that parallel.tp 2 splits"),
        ({"parallel.tp": 2}, PAIR, {"dataParallel": "fsdp"}, "summed over no other rank"),
        ({"parallel.tp": 2}, PAIR, {"bucketMb": "25"}, "summed over no other rank"),
        ({}, Place(), {"dataParallel": "ddp"}, "summed over no other rank"),
        ({"parallel.dp_mode": "fsdp2"}, PAIR, {"bucketMb": "25"}, "dp_mode fsdp2 does not send gradients in buckets"),
        ({"parallel.dp_mode": "fsdp2", "memory.cpu_offload": True}, PAIR, {"dataParallel": "fsdp"}, "cpu_offload"),
        ({}, PAIR, {"compile": "0", "dataParallel": "ddp", "bucketMb": "25", "activationCheckpointing": "none"}, ""),
        ({"parallel.cp": 2}, PAIR, {"compile": "0", "dataParallel": "ddp", "bucketMb": "25"}, ""),
    ],
)
def test_a_knob_that_has_no_other_value_is_named(keys, place, values, said):
    """The value is in force, and whoever looks for a better one need not: it would be refused, or change nothing."""
    shared = config.build(config.flatten(CONFIG) | {"model.n_heads": 4, "model.n_kv_heads": 2} | keys)
    started = start_knobs.take(shared, values, place, CPU)

    assert list(started.ignored) == (list(values) if said else [])
    assert all(said in reason for reason in started.ignored.values())
    assert all(start_knobs.present(started.config)[name] == start_knobs.read(name, raw) for name, raw in values.items())


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.text(), st.floats(), st.lists(st.none()))))
def test_no_value_from_outside_raises(values):
    """Any value is taken or named."""
    started = start_knobs.take(CONFIG, values, PAIR, CPU)

    assert set(started.ignored) <= set(values)


def test_a_run_takes_the_knobs_of_the_step_and_trains_the_same(run):
    """Two ranks, all of them changed and one that does not fit: the record says so, samples and losses stay."""
    environ = {
        "AMDAHL_MICRO_BATCH": "2",
        "AMDAHL_BUCKET_MB": "1",
        "AMDAHL_ACTIVATION_CHECKPOINTING": "block",
        "AMDAHL_DATA_PARALLEL": "fsdp",
        "AMDAHL_COMPILE": "perhaps",
    }
    plain, changed = run("plain", nproc=2), run("changed", nproc=2, environ=environ)

    assert changed.codes == [0, 0], changed.output
    (knob,) = changed.of("knob")
    taken = {"microBatch": 2, "activationCheckpointing": "block", "dataParallel": "fsdp"}
    assert knob["applied"] == taken
    assert knob["ignored"] == {
        "bucketMb": "parallel.dp_mode fsdp2 does not send gradients in buckets",
        "compile": "'perhaps' is neither 0 nor 1",
    }
    assert changed.sample_digests == plain.sample_digests
    assert changed.losses == pytest.approx(plain.losses, rel=1e-5)

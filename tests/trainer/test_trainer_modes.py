"""Whole runs on a mesh, as a user starts them: trained, evaluated, saved, and gone on with in another mode."""

from __future__ import annotations

import re

import pytest

MODEL = {
    "model.n_layers": 4,
    "model.n_heads": 4,
    "model.n_kv_heads": 2,
    "model.tie_embeddings": False,
    "batch.micro_batch": 2,
    "optim.eps": 1e-3,  # Adam turns rounding of gradients near zero into steps
    "eval.every_steps": 3,
    "eval.sequences": 7,
}
MODES = {
    "fsdp2": {"parallel.dp_mode": "fsdp2"},
    "tp": {"parallel.tp": 2},
    "1f1b": {"parallel.pp": 2},
    "interleaved": {"parallel.pp": 2, "parallel.pp_schedule": "interleaved"},
    "cp": {"parallel.cp": 2, "parallel.cp_mode": "ring"},
}


def bits(run):
    return [float(found) for found in re.findall(r"held out: ([\d.]+) bits/byte", run.output)]


@pytest.mark.slow
def test_a_run_may_change_its_mode_at_every_restart(run):
    """Five modes on two ranks, one after the other: losses, samples and evaluations are those of one process."""
    whole = run("whole", {**MODEL, "run.max_steps": 15})
    parts = [
        run(name, {**MODEL, **mode, "run.max_steps": 3 * number}, nproc=2, out="changing")
        for number, (name, mode) in enumerate(MODES.items(), start=1)
    ]
    assert [part.codes for part in parts] == [[0, 0]] * 5, [part.output for part in parts]
    assert [loss for part in parts for loss in part.losses] == pytest.approx(whole.losses, abs=2e-6)
    assert [ids for part in parts for ids in part.sample_digests] == whole.sample_digests
    assert [found for part in parts for found in bits(part)] == pytest.approx(bits(whole), abs=1.01e-4)  # as printed


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tp", "1f1b", "cp"])
def test_rows_are_counted_once_where_ranks_share_them(run, mode):
    """Samples summed over ranks are those of the global batch, whoever else computes on them."""
    done = run(mode, {**MODEL, **MODES[mode], "run.max_steps": 2}, nproc=2)
    assert done.codes == [0, 0], done.output
    assert [[step["n"] for step in done.of("step", rank)] for rank in (0, 1)] == [[8, 8], [0, 0]]
    assert done.losses == [step["loss"] for step in done.of("step", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_finite_stops_every_mode_alike(run, mode):
    """All ranks refuse the same step and end with 79."""
    bad = {**MODEL, **MODES[mode], "optim.lr": 1e30, "optim.warmup_steps": 0, "eval.every_steps": 0}
    done = run(mode, {**bad, "checkpoint.every_steps": 1}, nproc=2)
    assert done.codes == [79, 79], done.output
    assert "the step was refused" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp2", "tp", "cp"])
def test_every_mode_has_a_repeatable_way(run, mode):
    """No operation of ours lacks one (torch would name it and end the run), and two runs give the same bits."""
    told = {**MODEL, **MODES[mode], "run.max_steps": 3, "run.deterministic": True}
    first, again = run("first", told, nproc=2), run("again", told, nproc=2)
    assert first.codes == again.codes == [0, 0], first.output + again.output
    assert first.losses == again.losses
    assert bits(first) == bits(again) != []


@pytest.mark.slow
def test_a_run_in_bfloat16_stays_within_a_hundredth_of_float32(run):
    """Forty steps of one process and of two that share everything: each loss, and what is held out at the end."""
    told = {**MODEL, "run.max_steps": 40, "eval.every_steps": 40}
    half = {**told, "precision.compute": "bfloat16"}
    full = run("full", told)
    assert full.losses[-1] < 0.9 * full.losses[0], "it learns"
    for ours in (run("half", half), run("half pieces", {**half, **MODES["fsdp2"]}, nproc=2)):
        assert ours.losses != full.losses
        assert ours.losses == pytest.approx(full.losses, rel=1e-2)
        assert bits(ours) == pytest.approx(bits(full), rel=1e-2)

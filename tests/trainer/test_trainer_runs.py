"""Whole runs in processes of their own: exactness over restarts, ranks and knobs; how runs end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from amdahl_probe import digests
from amdahl_trainer.data import sources
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.errors import Exit

STEPS = 12
GLOBAL = 8


def expected_digests(config, steps=STEPS, begin=0):
    """The digest of each step's samples, from the order alone."""
    order = Order(len(sources.ensure(config).train), config.run.seed)
    share = Share(0, 1, GLOBAL)
    batches = (share.positions(begin + step * GLOBAL) for step in range(steps))
    return [digests.digest_ids([order.sample(at) for at in batch]) for batch in batches]


def assert_close(ours, reference, tolerance=2e-6):
    assert len(ours) == len(reference)
    assert max(abs(a - b) for a, b in zip(ours, reference, strict=True)) <= tolerance


@pytest.mark.slow
def test_four_then_two_then_one_process_equal_one_uninterrupted_run(run, tiny):
    """Losses agree to 2e-6 and every sample is consumed once, whatever the ranks, workers and accumulation."""
    whole = run("whole")
    parts = [
        run("four", {"run.max_steps": 4}, nproc=4, out="elastic"),
        run("two", {"run.max_steps": 8, "data.num_workers": 1, "batch.micro_batch": 2}, nproc=2, out="elastic"),
        run("one", {"data.num_workers": 2, "batch.micro_batch": 1}, nproc=1, out="elastic"),
    ]
    assert [part.codes for part in parts] == [[0] * 4, [0] * 2, [0]], [part.output for part in parts]
    assert_close([loss for part in parts for loss in part.losses], whole.losses)
    assert [ids for part in parts for ids in part.sample_digests] == expected_digests(tiny())
    assert whole.sample_digests == expected_digests(tiny())


@pytest.mark.slow
def test_a_live_switch_of_workers_changes_no_bit_of_the_losses(run, start, tmp_path: Path):
    """Knob files applied mid-run rebuild the loader from the position: losses and samples are those of no switch."""
    knob_file = tmp_path / "knobs.json"
    plain = run("plain", {"run.max_steps": 40})
    ranks = start("switched", {"run.max_steps": 40}, environ={"AMDAHL_KNOBS_FILE": str(knob_file)})
    for seq, workers in enumerate((2, 0, 1), start=1):
        put(knob_file, {"seq": seq, "knobs": {"dataloaderWorkers": workers, "colour": 3}})
        ranks.wait_for(lambda record, seq=seq: record["k"] == "knob" and record["seq"] == seq)
    switched = ranks.join()
    assert switched.losses == plain.losses
    assert switched.sample_digests == plain.sample_digests
    applied = [(knob["seq"], knob["applied"], knob["ignored"]) for knob in switched.of("knob")]
    nonsense = {"colour": "there is no such knob"}
    assert applied == [(0, {}, {})] + [(s, {"dataloaderWorkers": w}, nonsense) for s, w in ((1, 2), (2, 0), (3, 1))]
    seqs = [step["seq"] for step in switched.of("step")]
    assert seqs == sorted(seqs)


def put(path: Path, content: object) -> None:
    """Replace a knob file as the supervisor does."""
    draft = path.with_suffix(".draft")
    draft.write_text(content if isinstance(content, str) else json.dumps(content))
    draft.replace(path)


def test_two_ranks_switch_at_the_same_step_and_a_malformed_file_changes_nothing(start, tmp_path: Path):
    """Rank 0 reads, all apply: the sequence number changes at one step index on both ranks."""
    knob_file = tmp_path / "knobs.json"
    ranks = start("pair", {"run.max_steps": 4000}, nproc=2, environ={"AMDAHL_KNOBS_FILE": str(knob_file)})
    ranks.wait_for(lambda record: record["k"] == "step")
    put(knob_file, {"seq": 7, "knobs": {"dataloaderWorkers": 1, "checkpointEverySteps": 0}})
    ranks.wait_for(lambda record: record["k"] == "step" and record["seq"] == 7)
    put(knob_file, "{half a file")
    ranks.wait_for(lambda record: record["k"] == "knob" and "file" in record["ignored"])
    ranks.signal(signal.SIGTERM, rank=1)
    ended = ranks.join()
    assert ended.codes == [Exit.YIELDED] * 2, ended.output
    first = [next(step["i"] for step in ended.of("step", rank) if step["seq"] == 7) for rank in (0, 1)]
    assert first[0] == first[1]
    assert {step["seq"] for step in ended.of("step")} == {0, 7}
    assert [len(ended.of("step", rank)) for rank in (0, 1)] == [ended.of("end", rank)[0]["steps"] for rank in (0, 1)]


def test_sigterm_on_one_rank_makes_all_save_the_same_step_and_yield(start, run, tiny):
    """Exit code 75, newest checkpoint = last step done, and a resumed run finishes as if nothing had happened."""
    ranks = start("stopped", {"run.max_steps": 4000}, nproc=2, out="both")
    ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 5)
    ranks.signal(signal.SIGTERM, rank=1)
    ended = ranks.join()
    assert ended.codes == [Exit.YIELDED] * 2, ended.output
    done = {len(ended.of("step", rank)) for rank in (0, 1)}
    assert len(done) == 1
    last = done.pop()
    assert [save["step"] for save in ended.of("save")] == [last, last]
    assert [end["why"] for rank in (0, 1) for end in ended.of("end", rank)] == ["sigterm"] * 2
    resumed = run("resumed", {"run.max_steps": last + 3}, out="both")
    assert resumed.codes == [Exit.FINISHED]
    assert resumed.sample_digests == expected_digests(tiny(), 3, begin=last * GLOBAL)


@pytest.mark.slow
def test_runs_of_two_processes_end_without_an_abort(start):
    """Threads of gloo abort a process now and then unless all ranks leave together: eight pairs must not."""
    pairs = [start(f"pair{index}", {"run.max_steps": 1}, nproc=2) for index in range(8)]
    assert [pair.join().codes for pair in pairs] == [[0, 0]] * 8


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(run, start):
    """Exit code 79 on every rank; the newest checkpoint is the one before and holds finite numbers only."""
    bad = run("bad", {"optim.lr": 1e30, "optim.warmup_steps": 0, "checkpoint.every_steps": 1}, nproc=2)
    assert bad.codes == [Exit.NON_FINITE] * 2, bad.output
    assert "the step was refused" in bad.output
    assert bad.of("end")[0]["why"] == "exception:NonFiniteError"
    assert bad.of("save")[-1]["step"] == len(bad.of("step")) - 1


@pytest.mark.slow
def test_in_a_trial_windows_move_the_data_and_in_an_ordinary_run_they_do_not(start, tmp_path: Path, tiny):
    """The same window gives the same samples and, from one start, the same losses; a run that is no trial says so."""
    window = {"seq": 1, "knobs": {}, "window": {"offset": 40, "seed": 11, "save_every": 2}}
    knob_file = tmp_path / "knobs.json"
    put(knob_file, window)
    told = {"AMDAHL_KNOBS_FILE": str(knob_file)}
    trials = []
    for name in ("first", "second"):
        ranks = start(name, {"run.max_steps": 3}, environ={**told, "AMDAHL_TRIAL": "1"})
        ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 6)  # a trial outlives run.max_steps
        ranks.signal(signal.SIGTERM)
        trials.append(ranks.join())
    first, second = trials
    assert first.codes == [Exit.YIELDED]
    assert first.losses[:7] == second.losses[:7]
    assert first.sample_digests[:7] == second.sample_digests[:7]
    assert first.sample_digests[:7] != expected_digests(tiny(), 7, begin=40)  # the seed orders the samples too
    assert [(offset["offset"], offset["seed"], offset["applied"]) for offset in first.of("offset")] == [(40, 11, True)]
    assert [save["step"] for save in first.of("save") if not save.get("durable")][:3] == [2, 4, 6]
    ordinary = start("ordinary", {"run.max_steps": 3}, environ=told).join()
    assert ordinary.sample_digests == expected_digests(tiny(), 3)
    assert {"window": "not a trial: AMDAHL_TRIAL is not 1"} in [knob["ignored"] for knob in ordinary.of("knob")]


def test_knobs_of_the_environment_win_over_the_configuration(run):
    """Operator's variables are applied at start; what cannot be is named with the reason."""
    environ = {
        "AMDAHL_DATALOADER_WORKERS": "1",
        "AMDAHL_CHECKPOINT_EVERY_STEPS": "3",
        "AMDAHL_ASYNC_CHECKPOINT": "1",
        "AMDAHL_PIN_MEMORY": "1",
        "AMDAHL_GPUS_PER_REPLICA": "2",
        "AMDAHL_TRACE": "1",
    }
    told = run("told", {"run.max_steps": 7, "data.num_workers": 3}, environ=environ)
    assert told.codes == [0], told.output
    (knob,) = told.of("knob")
    assert knob["applied"] == {"dataloaderWorkers": 1, "checkpointEverySteps": 3, "asyncCheckpoint": True}
    assert set(knob["ignored"]) == {"pinMemory", "gpusPerReplica"}
    saves = [(save["step"], save["async"], save.get("durable", False)) for save in told.of("save")]
    assert [save for save in saves if not save[2]] == [(3, True, False), (6, True, False), (7, False, False)]
    assert {(3, True, True), (6, True, True), (7, False, True)} <= set(saves)
    assert (told.home / "trace-0.json").exists()


@pytest.mark.parametrize(
    ("changes", "environ", "code", "message"),
    [
        ({"batch.global_sequences": 9}, {"WORLD_SIZE": "2", "RANK": "0"}, 76, "nearest legal: 8 or 10"),
        ({"model.n_heads": 3}, {}, 76, "nearest legal: 2 or 4"),
        ({"data.cache_dir": "/dev/null/cache"}, {}, 76, "data.cache_dir"),
        ({"run.out_dir": "/dev/null/out"}, {}, 76, "run.out_dir"),
        ({"checkpoint.resume": "/nowhere"}, {}, 76, "is no checkpoint directory"),
        ({}, {"AMDAHL_TRAINER__RUN__STEPS": "3"}, 76, "did you mean run.max_steps?"),
        ({}, {"AMDAHL_TELEMETRY_DIR": "/dev/null/t"}, 76, "AMDAHL_TELEMETRY_DIR"),
        ({}, {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}, 76, "amdahl_trainer.launch"),
    ],
)
def test_bad_input_ends_with_its_code_and_says_what_to_do(run, changes, environ, code, message):
    """No traceback: one line that names the key and the remedy."""
    ended = run("bad", changes, environ=environ)
    assert ended.codes == [code], ended.output
    assert message in ended.output
    assert "Traceback" not in ended.output

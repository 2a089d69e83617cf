"""Whole runs on shards: mixes over restarts and ranks, dead workers, other data, and how bad data end a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from amdahl_probe import digests
from amdahl_trainer.data import sources
from amdahl_trainer.data.shards import Vocabulary
from amdahl_trainer.errors import Exit
from token_builders import make_documents, make_folder, over

STEPS = 12
GLOBAL = 8


@pytest.fixture
def folders(tmp_path):
    """Two sources of different documents, in several shards each; in the second one token is bad."""
    books = make_folder(tmp_path / "books", make_documents(120, seed=1), make_documents(10, seed=3))
    documents = make_documents(60, seed=2)
    documents[7] = [5, 400, 5]
    wide = Vocabulary(256, (*[1] * 256, 0, *[1] * 243))
    code = make_folder(tmp_path / "code", documents, vocabulary=wide)
    bytes_again = make_folder(tmp_path / "wide", make_documents(120, seed=1), vocabulary=wide)
    return {"books": books, "code": code, "wide": bytes_again}


def samples_of(config):
    """The digest of each step's samples, from the law alone."""
    order = sources.ensure(config).order(config.run.seed)
    return [digests.digest_ids([order.sample(at) for at in range(s * GLOBAL, (s + 1) * GLOBAL)]) for s in range(STEPS)]


@pytest.mark.slow
def test_a_mix_goes_on_over_ranks_and_workers_as_if_never_interrupted(run, tiny, folders):
    """Four ranks, then two, then one, with a bad sample among the rows: each sample once, losses within 2e-6."""
    mixed = over(folders["wide"], folders["code"], mix="wide=0.4, code=0.6", bad_samples="skip", subset="80%")
    whole = run("whole", mixed)
    assert whole.codes == [Exit.FINISHED], whole.output
    parts = [
        run("four", {**mixed, "run.max_steps": 4}, nproc=4, out="elastic"),
        run(
            "two", {**mixed, "run.max_steps": 8, "data.num_workers": 1, "batch.micro_batch": 2}, nproc=2, out="elastic"
        ),
        run("one", {**mixed, "data.num_workers": 2, "data.prefetch_factor": 3}, nproc=1, out="elastic"),
    ]
    assert [part.codes for part in parts] == [[0] * 4, [0] * 2, [0]], [part.output for part in parts]
    expected = samples_of(tiny(mixed))
    assert [ids for part in parts for ids in part.sample_digests] == expected
    assert whole.sample_digests == expected
    losses = [loss for part in parts for loss in part.losses]
    assert max(abs(a - b) for a, b in zip(losses, whole.losses, strict=True)) <= 2e-6
    assert "epochs of wide" in whole.output
    assert "data code: " in whole.output


def workers_of(pid):
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_worker_killed_in_a_run_loses_and_repeats_nothing(start, run, tiny, folders):
    """SIGKILL to real loader processes of a run that goes on: losses and samples are to the bit those without it."""
    changes = {**over(folders["books"]), "data.num_workers": 2, "run.max_steps": 100_000}
    ranks = start("killed", changes)
    seen = 0
    for _ in range(2):
        seen = ranks.wait_for(lambda record, seen=seen: record["k"] == "step" and record["i"] > seen + 3)["i"]
        os.kill(workers_of(ranks.pids[0])[0], signal.SIGKILL)
    ranks.wait_for(lambda record: record["k"] == "step" and record["i"] > seen + 9)
    ranks.signal(signal.SIGTERM)
    killed = ranks.join()
    assert killed.codes == [Exit.YIELDED], killed.output
    assert killed.output.count("was ended by SIGKILL") >= 1  # one, if both died before a batch was asked for
    plain = run("plain", {**changes, "run.max_steps": len(killed.losses)})
    assert killed.losses == plain.losses
    assert killed.sample_digests == plain.sample_digests


@pytest.mark.slow
def test_other_data_under_the_same_path_are_refused_on_resume(run, folders, tmp_path):
    """The checkpoint keeps what its data were; the same data elsewhere are the same."""
    first = run("first", {**over(folders["books"]), "run.max_steps": 2}, out="out")
    assert first.codes == [Exit.FINISHED], first.output
    folders["books"].rename(tmp_path / "moved")
    make_folder(tmp_path / "books", make_documents(120, seed=9), make_documents(10, seed=3))
    other = run("other", {**over(folders["books"]), "run.max_steps": 4}, out="out")
    assert other.codes == [Exit.CONFIG]
    assert "was trained differently: data.digest" in other.output
    moved = run("moved-run", {**over(tmp_path / "moved"), "run.max_steps": 4}, out="out")
    assert moved.codes == [Exit.FINISHED], moved.output
    config = (tmp_path / "out" / "out" / "config.yaml").read_text()
    digest = next(line.split()[-1] for line in config.splitlines() if line.strip().startswith("digest"))
    pinned = run("pinned", {**over(folders["books"]), "data.digest": digest.strip("'")}, out="new")
    assert pinned.codes == [Exit.CONFIG]
    assert "data.digest is" in pinned.output


@pytest.mark.slow
def test_bad_data_end_a_run_with_their_name_and_code(run, folders):
    """Truncated before the start or while it runs, and a token that the model does not know."""
    high = run("high", over(folders["code"]))
    assert high.codes == [Exit.CONFIG]
    assert "model.vocab_size is 320, but" in high.output
    skipped = run("skipped", over(folders["code"], bad_samples="skip"))
    assert skipped.codes == [Exit.FINISHED], skipped.output
    assert "left out: code: shard train-0000" in skipped.output
    evaluated = run("evaluated", {**over(folders["books"]), "eval.every_steps": 6})
    assert evaluated.codes == [Exit.FINISHED], evaluated.output
    assert "bits/byte" in evaluated.output
    os.truncate(folders["books"] / "train-00000.tokens", 100)
    short = run("short", over(folders["books"]))
    assert short.codes == [Exit.DATA]
    assert "train-00000.tokens is truncated: 100 bytes, its manifest says" in short.output

"""How a run ends by its checkpoints: while one is written, by a disk or a writer that fails, by one that is bad."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from amdahl_trainer import ckpt, ckpt_dcp, ckpt_folder
from amdahl_trainer.errors import Exit

SCRIPT = Path(__file__).with_name("killed_at.py")
BEHIND = {"checkpoint.every_steps": 1, "checkpoint.async_save": True}


def newest(done, tiny, name):
    """The newest checkpoint of a run: its step, and all its tensors."""
    home = ckpt.directory(tiny({"run.out_dir": str(done.home.parent / "out" / name)}))
    path = ckpt_folder.complete(home)[-1]
    reader = ckpt_dcp.Reader(path)
    state = {key: torch.empty(shape) for key, shape in reader.shapes().items() if key.startswith("model.")}
    ckpt_dcp.load(state, reader, None)
    return ckpt_folder.read_meta(path).step, state


@pytest.mark.slow
def test_ranks_save_together_when_the_clock_of_the_first_says_so(run):
    """Every rank after every step, and nothing once more at the end."""
    ended = run("timed", {"run.max_steps": 3, "checkpoint.every_seconds": 1e-9}, nproc=2)
    assert ended.codes == [Exit.FINISHED] * 2
    for rank in (0, 1):
        assert [save["step"] for save in ended.of("save", rank) if save.get("durable")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_sigterm_to_every_process_finishes_the_save_under_way(start, mode):
    """Rank, loader and writer all get it, as from a terminal or a supervisor; the run yields with its last step."""
    told = {**BEHIND, "run.max_steps": 100_000, "checkpoint.async_mode": mode, "data.num_workers": 1}
    ranks = start("stopped", told, nproc=2)
    ranks.wait_for(lambda record: record.get("durable", False))
    for pid in ranks.pids:
        os.killpg(pid, signal.SIGTERM)  # each rank is started in a group of its own
    ended = ranks.join()
    assert ended.codes == [Exit.YIELDED] * 2, ended.output
    for rank in (0, 1):
        durable = [save["step"] for save in ended.of("save", rank) if save.get("durable")]
        assert durable == list(range(1, len(ended.of("step", rank)) + 1)), "each save became durable, in order"
    assert "Traceback" not in ended.output
    if mode == "process":
        assert "saves waited for the one before" in ended.output  # its first takes seconds, a step milliseconds


def test_a_bad_step_leaves_the_save_under_way_durable_and_finite(run, tiny):
    """The step is refused before it touches a parameter, and what was being written before it is finished."""
    told = {**BEHIND, "optim.lr": 1e30, "optim.warmup_steps": 0, "checkpoint.keep": 1}
    bad = run("bad", told, nproc=2)
    assert bad.codes == [Exit.NON_FINITE] * 2, bad.output
    step, weights = newest(bad, tiny, "bad")
    assert step == len(bad.of("step")) - 1
    assert f"the newest checkpoint is of step {step}" in bad.output
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.fixture
def killed_writer(tmp_path):
    """The environment in which a process that writes is killed before an operation on the files."""
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "sitecustomize.py").write_text(f"import runpy\nrunpy.run_path({str(SCRIPT)!r})['install']()\n")
    return lambda operation: {"PYTHONPATH": str(entry), "KILL_AT": operation}


@pytest.mark.slow
def test_a_writer_that_dies_is_named_and_costs_no_good_checkpoint(start, run, killed_writer):
    """The process that writes is killed alone: the trainer says how and ends; the next goes on from the last commit."""
    told = {**BEHIND, "checkpoint.async_mode": "process"}
    environ = killed_writer(r"os.rename \.draft-step-00000003-\w+")
    ended = start("dies", told, out="one", environ=environ).join()
    assert ended.codes == [Exit.SAVE_FAILED], ended.output
    assert re.search(
        r"checkpoint of step 3 could not be written to \S+: the writer of rank 0, process \d+, was ended by SIGKILL, as "
        r"the kernel does when memory runs out; the newest whole one is of step 2; start again",
        ended.output,
    )
    assert "make room" not in ended.output, "the disk is not full"
    assert "Traceback" not in ended.output
    whole = run("whole")
    resumed = run("resumed", {**told, "checkpoint.async_mode": "thread"}, out="one")
    assert resumed.losses == whole.losses[2:]


@pytest.mark.slow
@pytest.mark.parametrize("cadence", [1, 4])
def test_a_writer_that_dies_is_named_by_its_own_rank(start, killed_writer, cadence):
    """Rank 1's is killed, in a step or when the next save waits for it: rank 1 says how, and rank 0 names rank 1."""
    told = {**BEHIND, "checkpoint.async_mode": "process", "checkpoint.every_steps": cadence, "run.max_steps": 100_000}
    environ = killed_writer(rf"open \.draft-step-{2 * cadence:08d}-\w+/__1_0\.distcp")
    ended = start("dies", told, nproc=2, environ=environ).join()
    assert ended.codes == [Exit.PEER_DIED, Exit.SAVE_FAILED], ended.output
    assert re.search(r"rank 1: .*the writer of rank 1, process \d+, was ended by SIGKILL", ended.output)
    assert re.search(r"rank 0: rank 1 on \S+ ended with exit code 82 \(save_failed\)", ended.output)
    assert "make room" not in ended.output


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_refuses_one_rank_ends_all_of_them(start, asynchronous):
    """The kernel's own refusal; each rank says which rank it was, and no checkpoint is made of the other's shard."""
    told = {**BEHIND, "checkpoint.async_save": asynchronous}
    script = str(Path(__file__).with_name("small_disk.py"))
    ended = start("full", told, nproc=2, script=script, environ={"SMALL_DISK": "1"}).join()
    assert ended.codes == [Exit.SAVE_FAILED] * 2, ended.output
    for rank in (0, 1):
        said = f"rank {rank}: checkpoint of step 1 could not be written"
        assert re.search(f"{said} .*: rank 1: .*File too large.*there is no other", ended.output)
    assert "Traceback" not in ended.output
    assert list((ended.home.parent / "out" / "full" / "checkpoints").iterdir()) == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (lambda path: flip(path / "__1_0.distcp"), {}, "__1_0.distcp does not have the CRC-32"),
        (lambda path: (path / "__1_0.distcp").unlink(), {}, "__1_0.distcp has 0 bytes"),
        (lambda _: None, {"model.d_ff": 64}, "trained differently: model.d_ff 48 -> 64"),
        (lambda _: None, {"model.d_ff": 64, "checkpoint.allow_semantics_change": True}, "does not fit this model"),
    ],
)
def test_a_bad_checkpoint_ends_all_ranks_alike(run, damage, changes, message):
    """Whichever rank sees it, both say it and leave with the code of a wrong configuration; nobody waits for anybody."""
    written = run("written", {"run.max_steps": 1}, nproc=2, out="bad")
    damage(written.home.parent / "out" / "bad" / "checkpoints" / "step-00000001")
    ended = run("read", changes, nproc=2, out="bad")
    assert ended.codes == [Exit.CONFIG] * 2, ended.output
    assert [bool(re.search(f"rank {rank}: .*{message}", ended.output)) for rank in (0, 1)] == [True, True]
    assert "Traceback" not in ended.output

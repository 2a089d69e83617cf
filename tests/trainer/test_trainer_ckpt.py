"""Checkpoints: whole or absent, refused with the reason when damaged or foreign, kept k at a time."""

from __future__ import annotations

import errno
import json
import os
import pickle

import pytest
import torch

from amdahl_trainer import ckpt, ckpt_folder, optim
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.ckpt_folder import CheckpointError
from amdahl_trainer.errors import TrainerError
from amdahl_trainer.model import Llama


def make_parts(config, seed=0, steps=1):
    """A model and optimizer that have seen `steps` steps."""
    torch.manual_seed(seed)
    model = Llama(config.model)
    optimizer = optim.build(model, config.optim)
    for _ in range(steps):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(config, step=3, parts=None):
    """Write one checkpoint, on the disk when this returns, and say where it is."""
    checkpoints = Checkpoints(config)
    checkpoints.save(*(parts or make_parts(config)), Progress(step, step * 8), asynchronous=False)
    return ckpt_folder.complete(checkpoints.home)[-1]


def moments(optimizer):
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_state_comes_back_bit_for_bit(tiny, asynchronous):
    """Parameters, moments, step counts, generators, step and position; asynchronously as of the call, not later."""
    config = tiny()
    model, optimizer = make_parts(config, steps=2)
    generator = torch.get_rng_state()
    checkpoints = Checkpoints(config)
    wanted = [value.clone() for value in [*model.state_dict().values(), *moments(optimizer)]]
    checkpoints.save(model, optimizer, Progress(5, 40), asynchronous)
    if asynchronous:
        with torch.no_grad():
            model.norm.weight.add_(1.0)
            moments(optimizer)[1].add_(1.0)
        (written,) = checkpoints.finished(waiting=True)
        assert written.step == 5
        assert written.total_ns >= written.block_ns
    assert checkpoints.finished() == []
    assert checkpoints.durable == 5
    other, other_optimizer = make_parts(config, seed=9, steps=0)
    resumed = Checkpoints(config)
    found = resumed.resume(other, other_optimizer)
    assert found == (checkpoints.home / "step-00000005", Progress(5, 40))
    assert resumed.durable == 5
    got = [*other.state_dict().values(), *moments(other_optimizer)]
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


def test_settings_of_the_optimizer_are_those_of_the_configuration(tiny):
    """Moments are kept; learning rate, betas and decay are taken from the run that goes on."""
    save(tiny())
    config = tiny({"optim.beta2": 0.5, "optim.weight_decay": 0.7, "checkpoint.allow_semantics_change": True})
    model, optimizer = make_parts(config, steps=0)
    Checkpoints(config).resume(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.7, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.5)}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_newest_k_are_kept_and_drafts_are_swept(tiny, asynchronous):
    """Keep 2 of 5; what a killed process left behind is gone at the next start."""
    config = tiny({"checkpoint.keep": 2})
    checkpoints = Checkpoints(config)
    parts = make_parts(config)
    for step in range(1, 6):
        checkpoints.save(*parts, Progress(step, step * 8), asynchronous)
    assert [one.step for one in checkpoints.finished(waiting=True)] == ([1, 2, 3, 4, 5] if asynchronous else [])
    home = checkpoints.home
    assert [path.name for path in ckpt_folder.complete(home)] == ["step-00000004", "step-00000005"]
    ckpt_folder.draft(home, 6, "dead").mkdir()
    Checkpoints(config)
    assert sorted(path.name for path in home.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_run_that_begins_anew_in_an_old_directory_is_the_newest_and_keeps_what_it_saves(tiny):
    """Steps 1 and 2 of a new run are newer than steps 100 and 200 of the one before; a step may be there twice."""
    config = tiny({"checkpoint.keep": 2})
    for step in (1, 100, 200):
        save(config, step)
    anew = tiny({"checkpoint.keep": 2, "checkpoint.resume": "none"})
    for step in (1, 200, 200):
        path = save(anew, step)
        assert ckpt_folder.find(ckpt.directory(config), "auto") == path
        assert ckpt_folder.read_meta(path).step == step
    assert len(ckpt_folder.complete(ckpt.directory(config))) == 2


def test_a_save_that_comes_too_early_waits_for_the_one_under_way(tiny, monkeypatch):
    """It is counted, nothing is dropped, and never more than one draft exists: the disk sets the pace."""
    config = tiny({"checkpoint.keep": 1})
    checkpoints = Checkpoints(config)
    parts = make_parts(config)
    drafts, really_commit = [], ckpt_folder.commit

    def commit(written, meta):
        drafts.append(len(list(checkpoints.home.glob(f"{ckpt_folder.DRAFT}*"))))
        while checkpoints.waits < min(meta.step, 2):  # the disk is slower than the training, as long as it must be
            pass
        return really_commit(written, meta)

    monkeypatch.setattr(ckpt_folder, "commit", commit)
    for step in (1, 2, 3):
        checkpoints.save(*parts, Progress(step, step * 8), asynchronous=True)
    assert [one.step for one in checkpoints.finished(waiting=True)] == [1, 2, 3]
    assert (checkpoints.waits, drafts) == (2, [1, 1, 1])


def shard(path):
    return next(path.glob("*.distcp"))


def truncate(path):
    shard(path).write_bytes(shard(path).read_bytes()[:-100])


def flip(path):
    content = bytearray(shard(path).read_bytes())
    content[len(content) // 2] ^= 1
    shard(path).write_bytes(bytes(content))


def rewrite(**changes):
    def write(path):
        meta = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps(meta | changes))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"is truncated: __0_0.distcp has \d+ bytes, meta.json says \d+; delete this directory"),
        (lambda path: shard(path).unlink(), "is truncated: __0_0.distcp has 0"),
        (lambda path: (path / ".metadata").unlink(), "is truncated: .metadata has 0"),
        (flip, "CRC-32"),
        (lambda path: (path / "meta.json").write_text("{"), "meta.json cannot be read"),
        (lambda path: (path / "meta.json").unlink(), "meta.json cannot be read"),
        (rewrite(step="many"), "lacks or garbles"),
        (rewrite(format="other/1"), "is no checkpoint of this trainer"),
        (rewrite(format="amdahl.ckpt/3"), "has format amdahl.ckpt/3, .* resume it with the newer trainer"),
        (rewrite(format="amdahl.ckpt/1"), "has format amdahl.ckpt/1, .* finish it with the older one"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_remedy(tiny, damage, message):
    """It never loads half, and an older one is not taken in silence."""
    config = tiny()
    save(config, 2)
    damage(save(config, 3))
    model, optimizer = make_parts(config, seed=5, steps=0)
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(config).resume(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_a_checkpoint_that_cannot_be_read_costs_no_good_one(tiny):
    """Retention counts whole ones only, and leaves the other for a person to look at."""
    config = tiny({"checkpoint.keep": 1})
    (save(config, 2) / "meta.json").unlink()
    save(config, 3)
    save(config, 4)
    home = ckpt.directory(config)
    assert {path.name for path in home.iterdir()} == {"step-00000002", "step-00000004"}


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_is_data_and_runs_nothing(tiny, tmp_path):
    """Metadata that names a function is refused, even where size and sum agree."""
    config = tiny()
    path = save(config)
    (path / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "was here")))
    meta = json.loads((path / "meta.json").read_text())
    found = ckpt_folder.sum_of(path / ".metadata")
    meta["files"][".metadata"] = {"bytes": found.bytes, "crc32": found.crc32}
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read \(it names posix.mkdir"):
        Checkpoints(config).resume(*make_parts(config))
    assert not (tmp_path / "was here").exists()


def test_a_checkpoint_of_another_training_is_refused_unless_allowed(tiny):
    """The message names what changed; settings that do not change the mathematics do not matter."""
    save(tiny())

    def resume(changes):
        config = tiny(changes)
        return Checkpoints(config).resume(*make_parts(config, steps=0))

    other = {"optim.lr": 0.5, "data.num_workers": 3}
    with pytest.raises(CheckpointError, match=r"trained differently: optim.lr 0.003 -> 0.5; set another run.out_dir"):
        resume(other)
    resume({**other, "checkpoint.allow_semantics_change": True})
    resume({"data.num_workers": 3, "batch.micro_batch": 1, "checkpoint.keep": 1})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_is_made_longer_by_keeping_its_schedule(tiny, schedule):
    """The refusal names the setting that keeps it; taken, the run goes on. A constant schedule needs none."""
    schedules = {"optim.schedule": schedule, "optim.decay_steps": 0}
    save(tiny({**schedules, "run.max_steps": 12}))

    def resume(changes):
        config = tiny({**schedules, "run.max_steps": 24, **changes})
        return Checkpoints(config).resume(*make_parts(config, steps=0))

    if schedule != "constant":
        told = r"optim.decay_steps 12 -> 24; set --optim.decay_steps 12 to keep its schedule, another run.out_dir, or"
        with pytest.raises(CheckpointError, match=told):
            resume({})
    assert resume({"optim.decay_steps": 12}) is not None
    other = "linear" if schedule == "cosine" else "cosine"
    with pytest.raises(CheckpointError, match=r"optim.schedule .*; set another run.out_dir"):
        resume({"optim.schedule": other})


def test_a_checkpoint_of_a_constant_schedule_from_before_goes_on(tiny):
    """It names an end of its schedule, which means nothing."""
    config = tiny({"optim.schedule": "constant"})
    path = save(config)
    meta = json.loads((path / "meta.json").read_text())
    meta["semantics"]["optim.decay_steps"] = 7
    (path / "meta.json").write_text(json.dumps(meta))
    assert Checkpoints(config).resume(*make_parts(config)) is not None


def test_a_key_that_a_checkpoint_does_not_know_had_its_default(tiny):
    """A trainer that learnt a setting goes on with checkpoints from before, unless the setting is used."""
    config = tiny()
    path = save(config)
    meta = json.loads((path / "meta.json").read_text())
    del meta["semantics"]["optim.grad_clip"]
    (path / "meta.json").write_text(json.dumps(meta))
    assert Checkpoints(config).resume(*make_parts(config)) is not None
    clipped = tiny({"optim.grad_clip": 0.5})
    with pytest.raises(CheckpointError, match=r"optim.grad_clip 1.0 -> 0.5"):
        Checkpoints(clipped).resume(*make_parts(clipped))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.d_ff": 64},
            r"model.blocks.0.feed.gate.weight is \[48, 32\] in the checkpoint and \[64, 32\] in the model \(and 8 more\)",
        ),
        ({"model.n_layers": 2}, r"model.blocks.1.norm_attention.weight is not in the checkpoint \(and \d+ more\)"),
        ({"model.tie_embeddings": False}, "optim.state.head.weight.step is not in the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_model_names_the_first_weight_that_differs(tiny, changes, message):
    """Even where the change of semantics is allowed."""
    save(tiny())
    config = tiny({**changes, "checkpoint.allow_semantics_change": True})
    with pytest.raises(CheckpointError, match=f"does not fit this model: {message}"):
        Checkpoints(config).resume(*make_parts(config, steps=0))


def test_a_checkpoint_of_a_larger_model_names_what_is_left_over(tiny):
    """Weights that nobody asks for would be lost in silence."""
    save(tiny({"model.n_layers": 2}))
    config = tiny({"checkpoint.allow_semantics_change": True})
    with pytest.raises(CheckpointError, match=r"model.blocks.1.\S+ is not in the model"):
        Checkpoints(config).resume(*make_parts(config, steps=0))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_refuses_is_an_error_at_the_next_chance(tiny, asynchronous):
    """A checkpoint that silently fails would be worse than a crash."""
    config = tiny()
    ckpt.directory(config).parent.mkdir(parents=True, exist_ok=True)
    ckpt.directory(config).write_text("a file where the directory should be")
    checkpoints = Checkpoints(config)

    def fail():
        checkpoints.save(*make_parts(config), Progress(1, 8), asynchronous)
        checkpoints.finished(waiting=True)

    with pytest.raises(TrainerError, match=r"checkpoint of step 1 could not be written .*; there is no other"):
        fail()


class FullStream:
    """A file on a disk with room for so many bytes."""

    def __init__(self, stream, room):
        self._stream, self._room = stream, room

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, content):
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._stream.write(content)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_keeps_the_last_good_one_and_says_what_is_needed(tiny, monkeypatch, asynchronous, room):
    """The draft is taken away, so that the disk is not fuller for the attempt."""
    from contextlib import contextmanager

    from torch.distributed.checkpoint.filesystem import FileSystem

    config = tiny({"checkpoint.keep": 1})
    good = save(config, 2)
    create = FileSystem.create_stream

    @contextmanager
    def full(self, path, mode):
        with create(self, path, mode) as stream:
            yield FullStream(stream, room) if "w" in mode else stream

    monkeypatch.setattr(FileSystem, "create_stream", full)
    checkpoints = Checkpoints(config)

    def fail():
        checkpoints.save(*make_parts(config), Progress(3, 24), asynchronous)
        checkpoints.finished(waiting=True)

    said = r"could not be written .*No space left on device; it takes \d+ bytes and \d+ are free; the newest whole one is of step 2; make room"
    with pytest.raises(TrainerError, match=said):
        fail()
    assert list(checkpoints.home.iterdir()) == [good]
    assert checkpoints.durable is None
    monkeypatch.undo()
    found = Checkpoints(config).resume(*make_parts(config))
    assert found == (good, Progress(2, 16))


def test_which_checkpoint_is_found(tiny):
    """auto: the newest or none; none: none; a path: that one or an error."""
    home = ckpt.directory(tiny())
    assert ckpt_folder.find(home, "auto") is None
    for step in (9, 10):
        save(tiny(), step)
    assert ckpt_folder.find(home, "auto") == home / "step-00000010"
    assert ckpt_folder.find(home, "none") is None
    assert ckpt_folder.find(home, str(home / "step-00000009")) == home / "step-00000009"
    with pytest.raises(CheckpointError, match="is no checkpoint directory"):
        ckpt_folder.find(home, str(home / "step-00000008"))

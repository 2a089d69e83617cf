"""Checkpoints: whole or absent, refused with the reason when damaged or foreign, kept k at a time."""

from __future__ import annotations

import json
import signal
import time

import pytest
import torch

from amdahl_trainer import ckpt, optim
from amdahl_trainer.ckpt import CheckpointError, Checkpoints, Progress
from amdahl_trainer.errors import TrainerError
from amdahl_trainer.model import Llama


def make_state(config, seed=0, steps=1):
    """A model and optimizer that have seen `steps` steps."""
    torch.manual_seed(seed)
    model = Llama(config.model)
    optimizer = optim.build(model, config.optim)
    for _ in range(steps):
        loss = model(torch.randint(0, 256, (1, 8))).float().square().mean()
        loss.backward()
        optim.apply(model, optimizer, config.optim, 0.01, loss.detach())
    return model, optimizer


@pytest.mark.parametrize("asynchronous", [False, True])
def test_state_comes_back_bit_for_bit(tiny, asynchronous):
    """Parameters, moments, step counts, generators, step and position; asynchronously as of the call, not later."""
    config = tiny()
    model, optimizer = make_state(config)
    checkpoints = Checkpoints(config, 1)
    state = ckpt.collect(model, optimizer)
    wanted = [value.clone() for value in model.state_dict().values()]
    checkpoints.save(state, Progress(5, 40), asynchronous)
    if asynchronous:
        with torch.no_grad():
            model.norm.weight.add_(1.0)
        written = checkpoints.finished(wait=True)
        assert written is not None
        assert written.step == 5
        assert written.total_ns >= written.block_ns
    assert checkpoints.finished() is None
    found = ckpt.find(config)
    assert found is not None
    loaded, progress = ckpt.read(found, config)
    assert progress == Progress(5, 40)
    other, other_optimizer = make_state(config, seed=9, steps=0)
    ckpt.restore(loaded, other, other_optimizer, rank=0)
    assert all(torch.equal(a, b) for a, b in zip(wanted, other.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), loaded["rng"]["cpu"])
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[at][name], theirs[at][name]) for at in ours for name in ours[at])


def test_the_newest_k_are_kept_and_drafts_are_swept(tiny):
    """Keep 2 of 5; what a killed process left behind is gone at the next start."""
    config = tiny({"checkpoint.keep": 2})
    checkpoints = Checkpoints(config, 1)
    state = ckpt.collect(*make_state(config))
    for step in range(1, 6):
        checkpoints.save(state, Progress(step, step * 8), False)
    home = ckpt.directory(config)
    assert [path.name for path in ckpt.complete(home)] == ["step-00000004", "step-00000005"]
    (home / f"{ckpt.DRAFT}step-00000006-1").mkdir()
    Checkpoints(config, 1)
    assert sorted(path.name for path in home.iterdir()) == ["step-00000004", "step-00000005"]


def test_saving_a_step_again_replaces_it(tiny):
    """After a resume from an earlier step the same step is reached again."""
    config = tiny()
    state = ckpt.collect(*make_state(config))
    for position in (8, 16):
        ckpt.write(ckpt.directory(config), state, Progress(1, position), config, 1)
    found = ckpt.find(config)
    assert found is not None
    assert ckpt.read(found, config)[1] == Progress(1, 16)


def truncate(path):
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-100])


def flip(path):
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(bytes(content))


def rename_format(path):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": "other/1"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"is truncated: state.pt has \d+ .* delete this directory"),
        (lambda path: (path / "state.pt").unlink(), "is truncated: state.pt has 0"),
        (flip, "CRC-32"),
        (lambda path: (path / "meta.json").write_text("{"), "meta.json cannot be read"),
        (lambda path: (path / "meta.json").unlink(), "meta.json cannot be read"),
        (rename_format, "is no checkpoint of this trainer"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_remedy(tiny, damage, message):
    """It never loads half."""
    config = tiny()
    path = ckpt.write(ckpt.directory(config), ckpt.collect(*make_state(config)), Progress(3, 24), config, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        ckpt.read(path, config)


def test_a_checkpoint_of_another_training_is_refused_unless_allowed(tiny):
    """The message names what changed; settings that do not change the mathematics do not matter."""
    config = tiny()
    path = ckpt.write(ckpt.directory(config), ckpt.collect(*make_state(config)), Progress(3, 24), config, 4)
    other = {"optim.lr": 0.5, "data.num_workers": 3}
    with pytest.raises(CheckpointError, match=r"trained differently: optim.lr 0.003 -> 0.5; set another run.out_dir"):
        ckpt.read(path, tiny(other))
    ckpt.read(path, tiny({**other, "checkpoint.allow_semantics_change": True}))
    ckpt.read(path, tiny({"data.num_workers": 3, "batch.micro_batch": 1, "checkpoint.keep": 1}))
    wider = tiny({"model.d_model": 64, "checkpoint.allow_semantics_change": True})
    state, _ = ckpt.read(path, wider)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        ckpt.restore(state, *make_state(wider, steps=0), rank=0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_refuses_is_an_error_at_the_next_chance(tiny, asynchronous):
    """A checkpoint that silently fails would be worse than a crash."""
    config = tiny()
    checkpoints = Checkpoints(config, 1)
    ckpt.directory(config).parent.mkdir(parents=True, exist_ok=True)
    ckpt.directory(config).write_text("a file where the directory should be")
    state = ckpt.collect(*make_state(config))

    def save():
        checkpoints.save(state, Progress(1, 8), asynchronous)
        checkpoints.finished(wait=True)

    with pytest.raises(TrainerError, match="checkpoint could not be written"):
        save()


def test_which_checkpoint_is_found(tiny, tmp_path):
    """auto: the newest or none; none: none; a path: that one or an error."""
    assert ckpt.find(tiny()) is None
    config = tiny()
    state = ckpt.collect(*make_state(config))
    for step in (9, 10):
        ckpt.write(ckpt.directory(config), state, Progress(step, 0), config, 1)
    assert [path.name for path in [ckpt.find(config)] if path] == ["step-00000010"]
    assert ckpt.find(tiny({"checkpoint.resume": "none"})) is None
    named = ckpt.directory(config) / "step-00000009"
    assert ckpt.find(tiny({"checkpoint.resume": str(named)})) == named


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_any_instant_of_a_save_the_newest_checkpoint_is_whole(start, run, tiny, asynchronous):
    """SIGKILL while saves are written one after the other: the newest one loads, and the run goes on from it."""
    save_always = {"checkpoint.every_steps": 1, "checkpoint.keep": 2, "run.max_steps": 4000}
    save_always["checkpoint.async_save"] = asynchronous
    newest = 0
    for attempt in range(5):
        ranks = start(f"killed{attempt}", save_always, out="killed")
        ranks.wait_for(lambda record, newest=newest: record.get("durable") and record["step"] > newest)
        time.sleep(0.003 * attempt)  # another instant of the save each time
        ranks.signal(signal.SIGKILL)
        assert ranks.join().codes == [-signal.SIGKILL]
        config = tiny(save_always | {"run.out_dir": str(ckpt.directory(tiny()).parents[1] / "out" / "killed")})
        found = ckpt.find(config)
        assert found is not None
        _, progress = ckpt.read(found, config)
        assert progress.position == progress.step * 8
        assert progress.step >= newest
        newest = progress.step
    whole = run("whole", {"run.max_steps": newest + 2})
    resumed = run("resumed", {"run.max_steps": newest + 2}, out="killed")
    assert resumed.codes == [0]
    assert resumed.losses == whole.losses[newest:]

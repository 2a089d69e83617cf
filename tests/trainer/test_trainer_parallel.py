"""Data parallelism equals one process: the same loss and the same gradients, whatever ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path

import torch

SCRIPT = str(Path(__file__).with_name("ddp_gradients.py"))


def test_gradients_of_one_two_and_four_ranks_agree(start, cache):
    """Relative to the largest entry gradients agree to 5e-6, losses to 2e-6, for every micro-batch that divides."""
    found = {}
    for world in (1, 2, 4):
        done = start(f"world{world}", nproc=world, script=SCRIPT).join()
        assert done.codes == [0] * world, done.output
        for size, result in torch.load(done.home / "gradients.pt").items():
            found[world, int(size)] = result
    assert set(found) == {(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)}
    reference = found[1, 8]
    largest = reference["gradients"].abs().max()
    assert largest > 0.01
    for case, result in found.items():
        assert abs(result["loss"] - reference["loss"]) <= 2e-6, case
        assert (result["gradients"] - reference["gradients"]).abs().max() / largest <= 5e-6, case

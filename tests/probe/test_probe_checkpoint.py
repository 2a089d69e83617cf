"""What counts as saving: a file of a checkpoint, and waiting for the disk right after it."""

from types import SimpleNamespace
from typing import Any

import pytest

from amdahl_probe.checkpoint import Savers


@pytest.mark.parametrize(("is_saving", "counted"), [(True, 1), (False, 0)])
def test_a_flush_belongs_to_the_save_before_it(is_saving: bool, counted: int) -> None:
    """`os.fsync` after `torch.save` is part of the save; any other flush of the script is not, and both still happen."""
    saves: list[int] = []
    flushed: list[int] = []
    probe: Any = SimpleNamespace(
        ledger=SimpleNamespace(is_mine=lambda: True),
        is_saving=lambda: is_saving,
        count_save=lambda block_ns, _: saves.append(block_ns),
        enter=lambda phase: phase,
        leave=lambda _: None,
    )

    Savers(probe).time_flush(flushed.append)(7)

    assert flushed == [7]
    assert len(saves) == counted

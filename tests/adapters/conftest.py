"""Local runs of jobs in folders of their own, swept at the end."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from amdahl_loop.adapters.local.runner import LocalRunner
from local_builders import (
    NODE,
    TRAIN,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of the user's manifest, with files to be left alone."""
    base = tmp_path / "job"
    (base / "data" / "inner").mkdir(parents=True)
    (base / "train.py").write_text(TRAIN.replace("\\\\n", "\\n"))
    (base / "data" / "precious.txt").write_text("precious")
    (base / "data" / "inner" / "deep.bin").write_bytes(bytes(range(256)))
    (base / "link").symlink_to("data/precious.txt")
    return base


@pytest.fixture
def runner(tmp_path: Path, base: Path) -> Iterator[LocalRunner]:
    """A runner whose runs are swept at the end, whatever the test did."""
    runner = LocalRunner(tmp_path / "state", base, "test", machine=NODE)
    yield runner
    asyncio.run(runner.sweep(()))


@pytest.fixture
def token() -> str:
    """A word that shows in the command lines of processes started for this test alone."""
    return uuid.uuid4().hex

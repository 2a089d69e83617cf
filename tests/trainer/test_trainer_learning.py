"""It learns: the recipe that the documentation shows, run as the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amdahl_trainer import config as configs

RECIPE = Path(configs.__file__).parents[1] / "configs" / "tiny-cpu.yaml"


@pytest.mark.slow
def test_pydocs_tiny_learns_below_four_bits_per_byte_in_100_steps(zygote, cache, tmp_path):
    """Untrained it needs about 8 bits a byte; after 100 steps less than 4 on documents it has never seen."""
    arguments = ["--config", str(RECIPE), f"--data.cache_dir={cache}", f"--run.out_dir={tmp_path}"]
    done = zygote.start(tmp_path / "run", arguments, 1, {}, None).join(240)
    assert done.codes == [0], done.output
    bits = [float(found) for found in re.findall(r"held out: ([\d.]+) bits/byte", done.output)]
    assert len(done.of("step")) == 100
    assert bits[-1] < 4.0
    assert bits == sorted(bits, reverse=True)

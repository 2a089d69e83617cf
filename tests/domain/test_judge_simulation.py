"""The simulated operating characteristics of the judge, at a small scale and with wide bars."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "judge" / "run.py"


@pytest.mark.slow
def test_small_simulation_reproduces_the_published_rates() -> None:
    """300 nulls of live quick blocks bring no win to speak of, and gains of 20 % are found and told truly."""
    command = [sys.executable, str(RUN), "--reps", "300", "--only", "quick", "--deceits", "shard,harness", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = {row["variant"]: row for row in json.loads(done.stdout)}
    assert rows["true 0%"]["won"] <= 2
    assert rows["true 20%"]["won"] >= 0.8 * rows["true 20%"]["trials"]
    assert rows["true 20%"]["claimed_over_true"] == pytest.approx(1.0, abs=0.1)
    assert rows["shard"]["won"] <= 3
    assert rows["harness"]["won"] <= 4

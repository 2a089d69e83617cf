"""The simulated operating characteristics of the judge, at a small scale and with wide bars."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

JUDGE = Path(__file__).parents[2] / "benchmarks" / "judge"


def simulate(program: str, *options: str) -> list[dict[str, Any]]:
    """Rows of a simulation."""
    command = [sys.executable, str(JUDGE / program), *options, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.slow
def test_small_simulation_reproduces_the_published_rates() -> None:
    """150 nulls of live quick blocks bring no win to speak of, and gains of 20 % are found and told truly."""
    rows = {
        row["variant"]: row
        for row in simulate("run.py", "--reps", "150", "--only", "quick", "--deceits", "shard,harness")
    }
    assert rows["true 0%"]["won"] <= 1
    assert rows["true 20%"]["won"] >= 0.8 * rows["true 20%"]["trials"]
    assert rows["true 20%"]["claimed_over_true"] == pytest.approx(1.0, abs=0.1)
    assert rows["shard"]["won"] <= 1
    assert rows["harness"]["won"] <= 2


@pytest.mark.slow
def test_a_win_that_stays_is_kept_and_one_that_is_gone_is_not() -> None:
    """Ten wins, sixty blocks each: none is taken back, all are once the effect has gone, sooner where it is a loss."""
    rows = {row["fate"]: row for row in simulate("holdout.py", "--wins", "10", "--only", "default noise, 10")}
    assert rows["stays"]["alarms"] == 0
    assert rows["gone"]["alarms"] == 10
    assert rows["5 % worse"]["p95_blocks"] <= rows["gone"]["p95_blocks"] <= 30

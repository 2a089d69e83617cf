"""`/metrics` of a real run: what only the first rank knows of all of them is there, and adds up."""

from __future__ import annotations

import re
import signal
import urllib.request

import pytest

from amdahl_trainer.errors import Exit
from amdahl_trainer.goodput import CAUSES

#: A family with one label, or with none.
SAMPLE = re.compile(r'^(\w+)(?:\{(\w+)="([^"]*)"\})? (\S+)$', re.MULTILINE)


def scrape(ranks):
    """Values by name, and by label where there is one."""
    port = int((ranks.home / "metrics.port").read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for name, _, label, value in SAMPLE.findall(text):
        if label:
            found.setdefault(name, {})[label] = float(value)
        else:
            found[name] = float(value)
    return found, re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_first_rank_shows_stragglers_and_goodput_of_all(start):
    """Useful and badput are all device time, causes are the contract's, the slowest rank is one of two."""
    ranks = start("scraped", {"run.max_steps": 100_000}, nproc=2, environ={"AMDAHL_METRICS_PORT": "0"})
    ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 5)
    found, types = scrape(ranks)
    useful_s, badput_s = found["amdahl_useful_device_seconds"], found["amdahl_badput_device_seconds"]
    assert useful_s > 0
    assert set(badput_s) <= set(CAUSES), "the labels are a fixed set"
    assert badput_s["startup"] > 0
    assert found["amdahl_goodput_ratio"] == pytest.approx(useful_s / (useful_s + sum(badput_s.values())))
    assert found["amdahl_straggler_rank"] in (0, 1)
    assert found["amdahl_rank_excess_seconds_total"] >= 0
    assert len(dict(types)) == len(types), "each family is declared once"
    assert dict(types)["amdahl_rank_excess_seconds_total"] == "counter"
    ranks.signal(signal.SIGTERM)
    assert ranks.join().codes == [Exit.YIELDED] * 2


@pytest.mark.slow
def test_a_restart_goes_on_with_the_account(run, start):
    """What the attempts before were useful for is there from the first scrape; their steps are not lost."""
    before = run("before", {"run.max_steps": 4}, out="one")
    ranks = start("after", {"run.max_steps": 100_000}, out="one", environ={"AMDAHL_METRICS_PORT": "0"})
    ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 1)
    found, _ = scrape(ranks)
    compute_s = sum(step["ph"].get("compute", 0) for step in before.of("step")) / 1e9
    assert found["amdahl_useful_device_seconds"] > compute_s
    assert "lost" not in found["amdahl_badput_device_seconds"]
    assert found["amdahl_rank_excess_seconds_total"] == 0, "one rank is no straggler"
    ranks.signal(signal.SIGTERM)
    assert ranks.join().codes == [Exit.YIELDED]

"""Does the whole loop, through the real command line on real training, find what is true? Words and signs, no speeds."""

from pathlib import Path

import pytest
from catalog import SCENARIOS, Scenario
from loop import Found, prepare, run_loop
from table import is_right_way, judge_scenario

pytestmark = pytest.mark.slow

TOO_NOISY = {"too_noisy", "null_wide", "voids", "looks_spent", "too_few_checks"}
"""Why an experiment may close undecided on a machine that has no quiet minutes. `make bench` shows what a quiet one finds."""

WAITING_LOADER = """\
from common import BATCH, Net, Records, parse_steps, settle, train
from torch.utils.data import DataLoader

if __name__ == "__main__":
    settle()
    train(DataLoader(Records(latency_s=0.001), BATCH, shuffle=True), parse_steps(), Net(repeat=6))
"""
"""The serial loader with less of a model behind it: waiting is most of a step, so that the gain is clear after the fewest
blocks. The scenario itself, whose gain a loud machine nearly drowns, takes up to ten minutes; `make bench` runs it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jobs' folder with their data, as a user's would be."""
    folder = tmp_path_factory.mktemp("jobs")
    prepare(folder, "records")
    return folder


def find(name: str) -> Scenario:
    """The scenario of that name."""
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def loop(scenario: Scenario, work: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Run the loop with state of its own: no other loop's trials are waited for."""
    monkeypatch.setenv("XDG_STATE_HOME", str(out / "state"))
    return run_loop(scenario.name, scenario.manifest, work, out, "quick")


def test_serial_loader_is_found_and_settled(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader without workers is found, more workers are tried, upheld and put in force.

    Where the machine is too noisy to tell, that is said and nothing is changed. No other end is right.
    """
    scenario = find("serial-loader")
    (work / "serial_loader.py").write_text(WAITING_LOADER)
    found = loop(scenario, work, tmp_path, monkeypatch)
    assert found.bottleneck == "InputBound"
    assert found.experiments, found.end
    first = found.experiments[0]
    assert is_right_way(first, scenario)
    if first.verdict == "Won":
        assert first.effect is not None
        assert first.effect > 0
        assert found.knobs["dataloaderWorkers"] == first.after
    else:
        assert (first.verdict, first.reason in TOO_NOISY) == ("Inconclusive", True), first.sentence
        assert found.knobs["dataloaderWorkers"] == first.before


def test_compute_bound_costs_no_trial(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that computes nearly all the time is left alone, and one sentence says so."""
    scenario = find("compute-bound")
    found = loop(scenario, work, tmp_path, monkeypatch)
    assert judge_scenario(scenario, found, swept=None).faults == ()
    assert found.experiments == ()
    assert found.knobs == {"dataloaderWorkers": 0, "checkpointEverySteps": 1500, "gpusPerReplica": 1}
    assert "comput" in found.end

"""`run`: from a manifest to a proven win, told as text and as JSON; a second run starts nothing."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from amdahl_loop.domain.telemetry import PHASES, WindowOutcome
from fakes import Truth, compute_bound, loader_bound

OBSERVATION = {"phases", "step_s", "samples_per_s", "devices"}
EXPERIMENT = {
    "id", "knob", "from", "to", "with", "job", "source", "verdict", "reason", "sentence", "effect", "interval", "refutes",
    "vetoes", "blocks", "device_seconds", "namespace",
}  # fmt: skip
RUN = {
    "job", "reason", "observation", "diagnosis", "experiments", "after", "final", "bank", "manifest", "ledger", "profile",
}  # fmt: skip


def test_the_shape_of_run_is_frozen(cli: Any) -> None:
    """Keys may be added to this test, none may leave it: people's scripts read them."""
    told = cli("run", cli.manifest, "-o", "json").json
    (experiment,) = told["experiments"]

    assert set(told) == RUN
    assert set(told["observation"]) == set(told["after"]) == OBSERVATION
    assert list(told["observation"]["phases"]) == [phase.value for phase in PHASES]
    assert set(told["diagnosis"]) == {"class", "sentence", "ceilings"}
    assert set(told["diagnosis"]["ceilings"]["dataloaderWorkers"]) == {"removable_share", "speedup", "sentence"}
    assert set(experiment) == EXPERIMENT
    assert {tuple(vote) for vote in experiment["refutes"]} == {("agree", "effect", "changed")}
    assert {tuple(veto) for veto in experiment["vetoes"]} == {("name", "silent", "sentence")}
    assert set(told["final"]) == {"knobs"}
    assert set(told["bank"]) == {"gross", "spent", "net", "at_least", "accrued", "basis"}
    assert set(told["manifest"]) == {"path", "diff", "written"}


def test_a_win_is_told_with_its_numbers(cli: Any) -> None:
    """Before, what was tried, after: shares, savings and device-hours agree with each other."""
    called = cli("run", cli.manifest, "-o", "json")
    told, (won,) = called.json, called.json["experiments"]

    assert called.code == 0
    assert told["diagnosis"]["class"] == "InputBound"
    assert (won["knob"], won["from"], won["to"], won["verdict"], won["source"]) == (
        "dataloaderWorkers", 0, 3, "Won", "rule",
    )  # fmt: skip
    assert won["interval"][0] < won["effect"] < won["interval"][1]
    assert won["effect"] == pytest.approx(1 - told["after"]["step_s"] / told["observation"]["step_s"], abs=0.05)
    assert [vote["agree"] for vote in won["refutes"]] == [True, True, True]
    assert told["final"]["knobs"] == {"dataloaderWorkers": 3}
    assert sum(told["observation"]["phases"].values()) == pytest.approx(1)
    assert told["bank"]["net"] == pytest.approx(told["bank"]["gross"] - told["bank"]["spent"])
    assert told["bank"]["spent"] == pytest.approx(won["device_seconds"] / 3600, abs=1e-5)


def test_a_second_run_starts_nothing_and_says_the_same(cli: Any) -> None:
    """A settled ledger answers by itself."""
    first = cli("run", cli.manifest, "-o", "json")
    started = len(cli.submitted)
    second = cli("run", cli.manifest, "-o", "json")

    assert started > 10
    assert len(cli.submitted) == started
    assert second.json == first.json


def test_write_changes_one_value_and_keeps_comments(cli: Any) -> None:
    """Only the proven value differs, and a run on the new file still tells the same story without starting anything."""
    before = cli.manifest.read_text()
    first = cli("run", cli.manifest, "--write", "-o", "json")
    started = len(cli.submitted)
    second = cli("run", cli.manifest, "-o", "json")

    assert cli.manifest.read_text() == before.replace("dataloaderWorkers: 0 ", "dataloaderWorkers: 3 ")
    assert first.json["manifest"]["written"]
    assert "-    dataloaderWorkers: 0   # the culprit" in first.json["manifest"]["diff"]
    assert len(cli.submitted) == started
    assert {**second.json, "manifest": None} == {**first.json, "manifest": None}


def test_without_write_the_manifest_stays(cli: Any) -> None:
    """The diff is shown, the file is left alone."""
    before = cli.manifest.read_text()
    called = cli("run", cli.manifest)

    assert cli.manifest.read_text() == before
    assert "+    dataloaderWorkers: 3" in called.out
    assert "job.yaml, not written" in called.out


def test_the_log_has_a_line_for_each_event(cli: Any) -> None:
    """Off a terminal every decision is told once, in order, on standard output."""
    called = cli("run", cli.manifest)
    lines = [line[10:] for line in called.out.split("Experiments")[0].splitlines()]

    assert lines[0] == "observing pydocs with dataloaderWorkers 0"
    assert re.match(r"observed dataloaderWorkers 0: 1[67]\d ms a step; compute (29|30) %, input 7[01] %", lines[1])
    assert lines[2].startswith("InputBound: ")
    assert lines[3].startswith("trying dataloaderWorkers 0 -> 3: ")
    assert "  proof block 1 (AB): compare the arms over 8 steps from one start" in lines
    told = [line.rpartition(" ")[0] for line in lines if line.startswith("  refute check") and "candidate" not in line]
    assert [line.split(":")[0] for line in told if ": saves 7" in line] == [
        f"  refute check {number} of 3" for number in (1, 2, 3)
    ]
    assert "in force: dataloaderWorkers 3" in lines
    assert sum(line.startswith("Won: dataloaderWorkers 0 -> 3: ") for line in lines) == 1


def test_json_keeps_the_log_off_standard_output(cli: Any) -> None:
    """Standard output is one JSON document; the log goes to standard error."""
    called = cli("run", cli.manifest, "-o", "json")

    assert called.out.startswith("{")
    assert called.out.endswith("}\n")
    assert "observing pydocs" in called.err


def test_train_goes_on_with_the_values_in_force(cli: Any) -> None:
    """The job's own command, in the user's folder, with the tuned knob and the probe; trackers are the user's affair."""
    called = cli("run", cli.manifest, "--train")
    (launch,) = cli.launches

    assert called.code == 0
    assert (launch.command, launch.folder) == (("python", "train.py"), cli.folder)
    assert launch.environment["AMDAHL_DATALOADER_WORKERS"] == "3"
    assert "WANDB_MODE" not in launch.environment
    assert launch.environment["PYTHONPATH"].endswith(".zip")


def test_compute_bound_costs_no_trial(make_cli: Callable[..., Any]) -> None:
    """Nothing to win, nothing spent, exit code 0, and one sentence says why."""
    cli = make_cli(Truth(phases_s=compute_bound))
    told = cli("run", cli.manifest, "-o", "json").json

    assert (told["experiments"], told["bank"]["spent"], len(cli.submitted)) == ([], 0, 1)
    assert told["after"] == told["observation"]
    assert "computes" in told["reason"]


def test_a_job_that_fails_is_code_1(make_cli: Callable[..., Any]) -> None:
    """The sentence says what happened, on standard error too; nothing is diagnosed; `--train` does not start it."""
    cli = make_cli(Truth(phases_s=loader_bound, outcome=lambda _: WindowOutcome.CRASH))
    called = cli("run", cli.manifest, "--train", "-o", "json")

    assert called.code == 1
    assert (called.json["observation"], called.json["diagnosis"], cli.launches) == (None, None, [])
    assert "the training process failed, exit code 1" in called.err


@pytest.mark.parametrize(("mode", "verdicts"), [("Observe", []), ("Recommend", ["Won"])])
def test_modes_that_apply_nothing(make_cli: Callable[..., Any], mode: str, verdicts: list[str]) -> None:
    """Observe tries nothing; Recommend proves, shows the diff, and leaves every value as it is."""
    cli = make_cli(Truth(phases_s=loader_bound), tuning={"mode": mode})
    told = cli("run", cli.manifest, "-o", "json").json

    assert [experiment["verdict"] for experiment in told["experiments"]] == verdicts
    assert told["final"]["knobs"] == {"dataloaderWorkers": 0}
    assert ("dataloaderWorkers: 3" in told["manifest"]["diff"]) == bool(verdicts)


def test_another_profile_may_be_asked_for(cli: Any) -> None:
    """The option wins over the manifest."""
    told = cli("run", cli.manifest, "--profile", "standard", "-o", "json").json

    assert told["profile"] == "standard"
    assert len(told["experiments"][0]["refutes"]) == 5


def test_changed_code_is_another_question(cli: Any) -> None:
    """A verdict holds for the code it was reached on."""
    program = cli.folder / "train.py"
    program.write_text("print('one')")
    cli("run", cli.manifest)
    started = len(cli.submitted)
    program.write_text("print('two')")
    cli("run", cli.manifest)

    assert len(cli.submitted) > started

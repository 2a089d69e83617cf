"""Bad input: a message that names what is wrong and the fix, the right code, and never a traceback."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.file import MIGRATIONS
from amdahl_loop.cli.exits import Exit, explained

GOOD = """\
apiVersion: amdahl-loop.io/v1alpha1
kind: TrainingJob
metadata: {name: pydocs}
spec:
  knobs: {dataloaderWorkers: 0}
  template: {spec: {containers: [{name: trainer, command: [python, train.py]}]}}
"""

MANIFESTS = {
    "no yaml": ("a: [1, 2", ["line 1", "mend the YAML"]),
    "no object": ("- 1\n- 2\n", ["no document of kind TrainingJob"]),
    "empty": ("", ["no document of kind TrainingJob"]),
    "two jobs": (f"{GOOD}---\n{GOOD}", ["2 TrainingJobs (lines 1, 8)", "a file of its own"]),
    "unknown knob": (
        GOOD.replace("dataloaderWorkers: 0", "dataloaderWorker: 0"),
        ["spec.knobs.dataloaderWorker", "0", "use one of dataloaderWorkers"],
    ),
    "wrong type": (GOOD.replace("dataloaderWorkers: 0", "dataloaderWorkers: many"), ["dataloaderWorkers", "'many'"]),
    "below zero": (GOOD.replace("dataloaderWorkers: 0", "dataloaderWorkers: -1"), ["dataloaderWorkers", "-1", "0"]),
    "bound inverted": (
        f"{GOOD}  tuning: {{knobs: {{dataloaderWorkers: {{min: 4, max: 1}}}}}}\n",
        ["spec.tuning.knobs.dataloaderWorkers", "min 4 is above max 1", "swap them"],
    ),
    "value outside its bound": (
        f"{GOOD}  tuning: {{knobs: {{dataloaderWorkers: {{min: 1}}}}}}\n",
        ["knobs.dataloaderWorkers is 0", "widen one of them"],
    ),
    "no command": (GOOD.replace(", command: [python, train.py]", ""), ["trainer container has no command"]),
    "bad quantity": (
        GOOD.replace("train.py]", "train.py], resources: {limits: {memory: lots}}"),
        ["line 6", "containers.0.resources.limits.memory", "'lots' is no resource quantity", "8Gi"],
    ),
    "volumes as a map": (
        GOOD.replace("{spec: {containers", "{spec: {volumes: {data: {}}, containers"),
        ["line 6", "spec.template.spec.volumes", "is a map; write a list"],
    ),
    "no trainer": (GOOD.replace("name: trainer", "name: main"), ["['main']", "'trainer'"]),
    "bad duration": (
        f"{GOOD}  tuning: {{checkpoint: {{maxLostWork: soon}}}}\n",
        ["spec.tuning.checkpoint.maxLostWork", "'soon'", "30m"],
    ),
    "bad name": (GOOD.replace("pydocs", "Py_Docs"), ["metadata.name", "'Py_Docs'", "rename it"]),
    "another version": (GOOD.replace("v1alpha1", "v9"), ["apiVersion", "v9"]),
}


@pytest.mark.parametrize("command", ["run", "explain", "trace"])
@pytest.mark.parametrize(("text", "told"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_cannot_be_used(cli: Any, command: str, text: str, told: list[str]) -> None:
    """Code 2, field, value and fix on standard error, nothing on standard output, nothing started."""
    cli.write(text)
    called = cli(command, cli.manifest)

    assert (called.code, called.out, cli.submitted) == (2, "", [])
    assert "Traceback" not in called.err
    for words in told:
        assert words in called.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "JOB.yaml"),
        (["run", "job.yaml", "--profile", "hasty"], "'hasty'"),
        (["run", "job.yaml", "-o", "xml"], "'xml'"),
        (["show"], "EXPERIMENT"),
        (["trace", "job.yaml", "--seconds", "0"], "1 to 600"),
    ],
)
def test_wrong_usage_is_code_2(cli: Any, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    """Argparse says what is expected."""
    called = cli(*words)

    assert called.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_path_that_is_no_manifest(cli: Any, tmp_path: Path, kind: str) -> None:
    """The path is named with what is wrong about it."""
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\x00\xff\xfe")
    called = cli("run", path)

    assert called.code == 2
    assert str(path) in called.err


def break_header(path: Path) -> None:
    """Not a database any more."""
    path.write_bytes(b"garbage" * 100)


def break_page(path: Path) -> None:
    """One byte of an entry differs."""
    content = bytearray(path.read_bytes())
    at = content.index(b"dataloaderWorkers")
    content[at] ^= 1
    path.write_bytes(content)


def make_newer(path: Path) -> None:
    """Written by a later program."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "told"), [(break_header, "damaged"), (break_page, "damaged"), (make_newer, "schema version")]
)
@pytest.mark.parametrize("command", ["run", "ledger", "replay"])
def test_a_ledger_that_cannot_be_believed(cli: Any, command: str, spoil: Callable[[Path], None], told: str) -> None:
    """Code 3; the file is left exactly as it is, and nothing is started."""
    cli("run", cli.manifest)
    started = len(cli.submitted)
    fold_log(cli.ledger)
    spoil(cli.ledger)
    before = cli.ledger.read_bytes()
    called = cli(command, *{"run": [cli.manifest], "replay": [cli.ledger]}.get(command, []))

    assert (called.code, called.out, len(cli.submitted)) == (3, "", started)
    assert told in called.err
    assert cli.ledger.read_bytes() == before


def fold_log(path: Path) -> None:
    """Put the write-ahead log into the file, so that a test may spoil the file itself."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@pytest.mark.parametrize("command", ["ledger", "show", "replay", "export"])
def test_a_ledger_that_is_not_there(cli: Any, tmp_path: Path, command: str) -> None:
    """Reading creates nothing; the fix is to run a job first."""
    path = tmp_path / "none" / "ledger.sqlite"
    words = {"replay": [path], "show": ["x", "--ledger", path]}.get(command, ["--ledger", path])
    called = cli(command, *words)

    assert called.code == 3
    assert "run a job first" in called.err
    assert not path.parent.exists()


def test_two_loops_on_one_ledger(cli: Any) -> None:
    """The second is told who holds it, and starts nothing; readers are not held up."""
    with SqliteLedger.open(cli.ledger):
        called = cli("run", cli.manifest)
        listed = cli("ledger")

    assert called.code == 3
    assert "in use by another loop (process" in called.err
    assert cli.submitted == []
    assert (listed.code, listed.out) == (0, "No experiment is recorded yet.\n")


def test_an_unknown_experiment_lists_the_known(cli: Any) -> None:
    """Code 2 with the names to choose from."""
    cli("run", cli.manifest)
    called = cli("show", "nothing")

    assert called.code == 2
    assert "name one of: pydocs-" in called.err


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"v": "amdahl.ledger/1", "entries": 3, "head": "x"}'])
def test_an_export_that_was_spoilt(cli: Any, tmp_path: Path, text: str) -> None:
    """Code 3, all or nothing."""
    file = tmp_path / "export.jsonl"
    file.write_text(text)
    called = cli("import", file)

    assert called.code == 3
    assert "export" in called.err
    assert cli("ledger", "-o", "json").json["experiments"] == []


@pytest.mark.parametrize("words", [["show", "pydocs", "--svg"], ["export"]])
def test_a_file_that_cannot_be_written(cli: Any, tmp_path: Path, words: list[str]) -> None:
    """Code 4 names the file."""
    cli("run", cli.manifest)
    called = cli(*words, tmp_path / "no" / "such" / "folder")

    assert called.code == 4
    assert "no/such/folder" in called.err


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    """Only what is expected is explained away."""
    with pytest.raises(ZeroDivisionError), explained():
        _ = 1 / 0


def test_help_lists_every_command_and_code(cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The first page of the manual."""
    called = cli("--help")
    text = capsys.readouterr().out

    assert called.code == 0
    for word in ("run", "explain", "ledger", "show", "replay", "export", "import", "trace"):
        assert f"\n    {word} " in text
    for code in Exit:
        assert f"\n  {code.value:<4} " in text

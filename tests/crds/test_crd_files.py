"""Do the files in `crds/` and `docs/api.md` say what the models say, and does the command notice when they do not?"""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from amdahl_loop.adapters.crds import FILES, find_drift
from amdahl_loop.adapters.crds.definitions import KINDS, define
from amdahl_loop.adapters.crds.reference import render_reference
from amdahl_loop.cli.crds import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_checked_in_files_are_in_step() -> None:
    """A change of a model comes with the files that follow from it: `python -m amdahl_loop.cli.crds` writes them."""
    assert [str(drift.path) for drift in find_drift(ROOT)] == []


def test_writing_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run writes every file, the second none."""
    assert main(["--root", str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert main(["--root", str(tmp_path)]) == 0

    assert first == [str(path) for path in FILES]
    assert capsys.readouterr().out == ""
    assert main(["--check", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("path", FILES, ids=str)
def test_an_edited_file_is_drift(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file edited by hand ends the check with 1 and a diff of exactly that line; nothing is written."""
    main(["--root", str(tmp_path)])
    edited = tmp_path / path
    edited.write_text(edited.read_text() + "mine\n")
    capsys.readouterr()

    assert main(["--check", "--root", str(tmp_path)]) == 1

    said = capsys.readouterr()
    changes = [line for line in said.out.splitlines() if line.startswith(("+", "-")) and line[:3] not in ("+++", "---")]
    assert changes == ["-mine"]
    assert f"{path}: out of step with the models; run `python -m amdahl_loop.cli.crds`" in said.err
    assert edited.read_text().endswith("mine\n")


def test_a_missing_file_and_a_stray_one_are_drift(tmp_path: Path) -> None:
    """A definition that is gone is named, and so is a file that no kind makes."""
    main(["--root", str(tmp_path)])
    (tmp_path / "crds" / "experiments.yaml").unlink()
    (tmp_path / "crds" / "old.yaml").write_text("kind: Old\n")

    found = {str(drift.path): drift.diff for drift in find_drift(tmp_path)}

    assert list(found) == ["crds/experiments.yaml", "crds/old.yaml"]
    assert found["crds/old.yaml"] == "crds/old.yaml belongs to no kind; remove it\n"


def test_the_yaml_holds_the_definition() -> None:
    """What is written reads back as the very object."""
    for kind in KINDS:
        text = (ROOT / "crds" / f"{kind.plural}.yaml").read_text()
        assert YAML(typ="safe", pure=True).load(text) == define(kind)


def test_the_page_names_every_field_and_every_rule() -> None:
    """The reference has a row for each field of each kind, and one for each thing that the server refuses."""
    page = render_reference()

    for row in (
        "| `tuning.trial.scratchStorageClass` | string, at most 253 characters | Storage class of the scratch folders;",
        "| `tuning.mode` | `Observe` or `Recommend` or `Auto` or `Spec` or `Overlay`, default `Auto` | How far the loop may go.",
        "| `hypothesis.expectedGain` | decimal text, required | Share of the cost that the change is expected to save. |",
        "| `template.spec.containers` | list of object by name, at most 8 items, required |",
        "| `bank.netDeviceHours` | decimal text, required |",
        "| `spec.knobs.dataloaderWorkers` | knobs.dataloaderWorkers is outside tuning.knobs.dataloaderWorkers; widen one of them |",
        "| `status.blocks[]` | a finished block never changes; leave it as it is |",
        "| `TrainingJob` | metadata.name must be lower-case letters",
    ):
        assert row in page

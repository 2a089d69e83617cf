"""The digest of a program's files: what changes it, what does not, and that it stays bounded."""

from pathlib import Path

import pytest

from amdahl_loop.adapters import code
from amdahl_loop.adapters.code import MAX_BYTES, digest_program
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from builders import make_manifest


def make_job(*command: str) -> TrainingJob:
    """A job with a command."""
    manifest = make_manifest()
    manifest["spec"]["template"]["spec"]["containers"][0]["command"] = list(command)
    return parse_training_job(manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program with a module, a configuration beside its folder, data, and an environment."""
    job = tmp_path / "job"
    for name in (
        "train.py",
        "model/net.py",
        "../shared.yaml",
        "data.bin",
        "notes.txt",
        ".venv/lib.py",
        "__pycache__/x.py",
    ):
        path = job / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return job


JOB = make_job("python", "train.py", "--config", "../shared.yaml", "--data", "data.bin")


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("train.py", True),
        ("model/net.py", True),
        ("model/new.py", True),
        ("../shared.yaml", True),
        ("data.bin", True),
        ("notes.txt", False),
        (".venv/lib.py", False),
        ("__pycache__/x.py", False),
    ],
)
def test_what_changes_a_program(folder: Path, name: str, matters: bool) -> None:
    """Python below the folder and files that the command names; not notes, environments and caches."""
    before = digest_program(JOB, folder)
    (folder / name).write_text("changed")

    assert (digest_program(JOB, folder) != before) is matters


def test_the_same_program_elsewhere_is_the_same(folder: Path, tmp_path: Path) -> None:
    """A moved folder keeps its memory."""
    before = digest_program(JOB, folder)
    moved = tmp_path / "else" / "where"
    moved.parent.mkdir()
    folder.rename(moved)
    (tmp_path / "shared.yaml").rename(moved.parent / "shared.yaml")

    assert digest_program(JOB, moved) == before


def test_large_files_count_with_their_size(folder: Path) -> None:
    """Weights and data are not read."""
    (folder / "data.bin").write_bytes(b"a" * (MAX_BYTES + 1))
    before = digest_program(JOB, folder)
    (folder / "data.bin").write_bytes(b"b" * (MAX_BYTES + 1))
    assert digest_program(JOB, folder) == before
    (folder / "data.bin").write_bytes(b"b" * (MAX_BYTES + 2))
    assert digest_program(JOB, folder) != before


def test_words_that_are_no_files_do_no_harm(folder: Path) -> None:
    """Long words, empty ones, folders, and a folder that is not there."""
    job = make_job("python", "-c", "x" * 5000, "", ".", "a\0b")

    assert len(digest_program(job, folder)) == 16
    assert len(digest_program(job, folder / "none")) == 16


def test_a_file_that_cannot_be_read_counts_with_its_name(folder: Path) -> None:
    """A dangling link is part of the program, too."""
    before = digest_program(JOB, folder)
    (folder / "broken.py").symlink_to(folder / "nowhere.py")

    assert digest_program(JOB, folder) != before


def test_a_huge_tree_does_not_delay_the_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound nothing is looked at."""
    monkeypatch.setattr(code, "MAX_FILES", 1)
    before = digest_program(JOB, folder)
    (folder / "zzz.py").write_text("beyond")

    assert digest_program(JOB, folder) == before


def test_packages_are_part_of_the_program(folder: Path) -> None:
    """Another version is another program; the same list is the same one."""
    digests = [digest_program(JOB, folder, [package]) for package in ("torch-2.9.0", "torch-2.9.1", "torch-2.9.0")]

    assert digests[0] == digests[2]
    assert len({digest_program(JOB, folder), *digests}) == 3

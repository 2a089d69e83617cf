"""Is what we pack an OCI layout that holds the files described, and nothing that changes from one run to the next?"""

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from testbed.images import Entry, Image, ImageError, Link, NewFolder, programs, shared_libraries, write_layout


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    """The file that a descriptor names."""
    return layout / "blobs" / str(descriptor["digest"]).replace(":", "/")


def manifest_of(layout: Path) -> dict[str, Any]:
    """The one manifest of a layout."""
    index = json.loads((layout / "index.json").read_text())
    found: dict[str, Any] = json.loads(blob(layout, index["manifests"][0]).read_text())
    return found


def members_of(layout: Path, layer: int = 0) -> dict[str, tarfile.TarInfo]:
    """The content of a layer by path."""
    with tarfile.open(blob(layout, manifest_of(layout)["layers"][layer])) as archive:
        return {member.name: member for member in archive.getmembers()}


@pytest.mark.parametrize(
    ("name", "full_name"),
    [
        ("python", "docker.io/library/python:latest"),
        ("amdahl-loop/trainer:dev", "docker.io/amdahl-loop/trainer:dev"),
        ("localhost/trainer", "localhost/trainer:latest"),
        ("example.com:5000/a/b:1", "example.com:5000/a/b:1"),
    ],
)
def test_names_are_completed_as_container_runtimes_do(name: str, full_name: str) -> None:
    """A pod's short name must meet the name under which the image is stored."""
    assert Image(name, ()).full_name == full_name


def test_a_layer_holds_what_its_entries_say(tmp_path: Path) -> None:
    """Folders, files, links and bytes arrive at their targets, owned by root and readable by everybody; what is left out stays out."""
    source = tmp_path / "app"
    (source / "tests").mkdir(parents=True)
    (source / "main.py").write_text("print(1)")
    (source / "main.py").chmod(0o600)
    (source / "tests" / "test_main.py").write_text("")
    entries = (
        Entry(source, "/opt/app", frozenset({"tests"})),
        Entry(b"root:x:0:0::/:\n", "/etc/passwd"),
        Entry(Link("app/main.py"), "/opt/main.py"),
        Entry(NewFolder(0o1777), "/tmp"),
    )
    members = members_of(write_layout(Image("app", (entries,)), tmp_path / "layout"))
    assert sorted(members) == ["etc", "etc/passwd", "opt", "opt/app", "opt/app/main.py", "opt/main.py", "tmp"]
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert (members["opt/app/main.py"].mode & 0o777, members["tmp"].mode) == (0o644, 0o1777)
    assert members["opt/main.py"].linkname == "app/main.py"


def test_two_names_of_one_file_both_hold_its_content(tmp_path: Path) -> None:
    """Hard links are an accident of this machine's disk: each name becomes a file of its own."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a").write_text("content")
    os.link(tmp_path / "app" / "a", tmp_path / "app" / "b")
    members = members_of(write_layout(Image("app", ((Entry(tmp_path / "app", "/app"),),)), tmp_path / "layout"))
    assert [(members[name].isreg(), members[name].size) for name in ("app/a", "app/b")] == [(True, 7), (True, 7)]


def test_the_same_files_make_the_same_image(tmp_path: Path) -> None:
    """Digests do not depend on when or where a layout is written."""
    image = Image(
        "app", ((Entry(Path(__file__), "/test.py"),),), entrypoint=("/x",), environment={"A": "1"}, user="1000"
    )
    first, second = write_layout(image, tmp_path / "first"), write_layout(image, tmp_path / "second")
    assert (first / "index.json").read_text() == (second / "index.json").read_text()


def test_the_configuration_says_how_to_run_it(tmp_path: Path) -> None:
    """Entry point, command, environment, user and folder reach the image's configuration; the layer's digest is its unpacked one."""
    image = Image("app", ((Entry(b"", "/x"),),), ("/x",), ("--help",), {"A": "1"}, "1000", "/work")
    layout = write_layout(image, tmp_path / "layout")
    manifest = manifest_of(layout)
    config = json.loads(blob(layout, manifest["config"]).read_text())
    assert config["config"] == {
        "Env": ["A=1"],
        "Entrypoint": ["/x"],
        "Cmd": ["--help"],
        "User": "1000",
        "WorkingDir": "/work",
    }
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]


def test_programs_bring_the_libraries_and_the_loader_they_need(tmp_path: Path) -> None:
    """Everything that ldd names goes in, as files and not as links that lead nowhere."""
    shell = Path("/bin/sh")
    members = members_of(write_layout(Image("sh", (programs(shell),)), tmp_path / "layout"))
    wanted = {str(path).lstrip("/") for path in (shell, *shared_libraries(shell))}
    assert len(wanted) > 1
    assert all(members[path].isreg() for path in wanted)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    """The message says what is missing and what it was meant for."""
    image = Image("app", ((Entry(tmp_path / "absent", "/opt/app"),),))
    with pytest.raises(ImageError, match="absent, meant for /opt/app"):
        write_layout(image, tmp_path / "layout")


def test_a_static_program_brings_nothing(tmp_path: Path) -> None:
    """What ldd cannot read has no libraries."""
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert shared_libraries(tmp_path / "script") == []
    assert shared_libraries() == []
    assert shared_libraries(Path(sys.executable).resolve())

"""The installed packages that a program may import: whose environment, which names, and what is left out."""

from pathlib import Path

import pytest

from amdahl_loop.adapters.packages import list_packages

SITE = "lib/python3.11/site-packages"


def install(*folders: Path) -> None:
    """What an installer leaves of a distribution: a folder that bears its name and version."""
    for folder in folders:
        folder.mkdir(parents=True)


def make_program(path: Path) -> Path:
    """Something that can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A system's Python with packages of its own, of its distributor's and of the user's."""
    make_program(tmp_path / "usr/bin/python3")
    install(
        tmp_path / "usr" / SITE / "numpy-1.0.dist-info",
        tmp_path / "usr/lib/python3/dist-packages/apt-2.0.egg-info",
        tmp_path / "usr/local/lib/python3.11/dist-packages/scipy-3.0.dist-info",
        tmp_path / "home/.local" / SITE / "rich-4.0.dist-info",
    )
    return tmp_path / "usr"


@pytest.fixture
def venv(tmp_path: Path, base: Path) -> Path:
    """A virtual environment made from it."""
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(base / "bin/python3")
    make_program(environment / "bin/torchrun")
    (environment / "pyvenv.cfg").write_text("include-system-site-packages = false\nversion = 3.11.7\n")
    install(
        environment / SITE / "torch-2.9.0.dist-info",
        environment / SITE / "torch",
        environment / SITE / "amdahl_loop-0.1.0.dist-info",
    )
    return environment


SYSTEM = ("python3.11/numpy-1.0", "python3.11/rich-4.0", "python3.11/scipy-3.0", "python3/apt-2.0")
OWN = "python3.11/torch-2.9.0"


@pytest.mark.parametrize(
    ("command", "path", "found"),
    [
        pytest.param("python", "venv/bin", (OWN,), id="a sealed environment"),
        pytest.param("torchrun", "venv/bin", (OWN,), id="a script beside its interpreter"),
        pytest.param("./venv/bin/python", "", (OWN,), id="a path from the working directory"),
        pytest.param("bash", "venv/bin", (OWN,), id="a shell script finds it on PATH"),
        pytest.param("python3", "usr/bin", SYSTEM, id="the system's, with the distributor's and the user's"),
        pytest.param("python", "venv/bin:usr/bin", (*SYSTEM, OWN), id="two that a script may mean"),
        pytest.param("python", "nowhere", (), id="none"),
        pytest.param("x" * 5000, "nowhere", (), id="no name of a program"),
    ],
)
def test_packages_are_those_of_the_program_s_environment(
    venv: Path, tmp_path: Path, command: str, path: str, found: tuple[str, ...]
) -> None:
    """Distributions by name and version, each under the Python that sees it; the loop itself does not count."""
    folders = ":".join(str(tmp_path / folder) for folder in path.split(":"))
    environment = {"PATH": folders, "HOME": str(tmp_path / "home")}

    assert venv.is_dir()
    assert list_packages(command, tmp_path, environment) == tuple(sorted(found))


def test_an_environment_may_let_the_system_s_packages_in(venv: Path, tmp_path: Path) -> None:
    """Then both count."""
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = TRUE\n")

    environment = {"PATH": str(venv / "bin"), "HOME": str(tmp_path / "home")}

    assert list_packages("python", tmp_path, environment) == tuple(sorted((*SYSTEM, OWN)))


def test_an_upgrade_is_another_list(venv: Path, tmp_path: Path) -> None:
    """The version is part of the name; files within a package are not looked at."""
    environment = {"PATH": str(venv / "bin")}
    before = list_packages("python", tmp_path, environment)
    (venv / SITE / "torch/version.py").write_text("2.9.1")
    assert list_packages("python", tmp_path, environment) == before

    (venv / SITE / "torch-2.9.0.dist-info").rename(venv / SITE / "torch-2.9.1.dist-info")

    assert list_packages("python", tmp_path, environment) == ("python3.11/torch-2.9.1",)

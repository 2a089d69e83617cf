"""Does the image's recipe hold what the chart starts, and nothing that the project's lock does not pin?"""

import json
import re
import tomllib

import pytest

from chart.helm import ROOT, render
from chart.image_lock import FILES, select

RECIPE = (ROOT / "operator" / "Dockerfile").read_text()


@pytest.mark.parametrize(("file", "root"), FILES.items())
def test_the_image_installs_a_part_of_the_projects_lock(file: str, root: str) -> None:
    """Versions and hashes are those of requirements.lock; the part is what the operator requires, and no more."""
    fix = "run: PYTHONPATH=tests .venv/bin/python -m chart.image_lock"
    locked = (ROOT / "operator" / file).read_text()
    assert locked == select(root), fix
    assert not re.search(r"^(torch|numpy|nvidia|pytest)", locked, re.MULTILINE)


def test_every_install_is_pinned_by_hash_or_local() -> None:
    """No step of the build chooses a version, and none goes through a shell."""
    steps = [json.loads(step) for step in re.findall(r"^RUN (.+)$", RECIPE, re.MULTILINE)]
    installs = [step for step in steps if "install" in step or "wheel" in step]
    assert len(installs) == 4
    assert all("--require-hashes" in step or {"--no-index", "--no-deps"} <= set(step) for step in installs)


def test_the_image_runs_as_a_numbered_user_on_a_plain_base() -> None:
    """Both stages start from the same base, named without a host; the kubelet can see that the user is not root."""
    assert set(re.findall(r"^FROM (\S+)", RECIPE, re.MULTILINE)) == {"python:3.11-slim"}
    assert re.findall(r"^USER (.+)$", RECIPE, re.MULTILINE) == ["65532:65532"]


@pytest.mark.slow
def test_the_chart_starts_what_the_image_holds() -> None:
    """The entry point is the command of the chart and a script of the package; image and package bear one version."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", RECIPE, re.MULTILINE)[0])
    assert entry == render().container["command"]
    assert entry[0] in package["scripts"]
    assert re.findall(r"^ARG VERSION=(.+)$", RECIPE, re.MULTILINE) == [package["version"]]


def test_the_builder_gets_what_the_recipe_copies() -> None:
    """Every source of a COPY exists, and the ignore file lets it through."""
    allowed = [
        line[1:]
        for line in (ROOT / "operator" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copies = [line.split()[:-1] for line in re.findall(r"^COPY (?!--from)(.+)$", RECIPE, re.MULTILINE)]
    sources = [source for copy in copies for source in copy]
    assert all((ROOT / source).exists() for source in sources)
    assert sorted(sources) == sorted(allowed)

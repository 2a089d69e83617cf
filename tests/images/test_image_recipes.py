"""Do the images' recipes hold what the chart starts, and nothing that the project's lock does not pin?"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from chart.helm import ROOT, render
from images.image_lock import FILES, select
from testbed.dockerfiles import IMAGES, context_files

RECIPES = {name: (ROOT / "images" / f"{name}.Dockerfile").read_text() for name in IMAGES}
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each_image = pytest.mark.parametrize("name", sorted(RECIPES))


def find(instruction: str, recipe: str) -> list[str]:
    """What follows an instruction, at each place where it stands."""
    return re.findall(rf"^{instruction} (.+)$", recipe, re.MULTILINE)


@pytest.mark.parametrize(("file", "root"), FILES.items())
def test_each_image_installs_a_part_of_the_projects_lock(file: str, root: str) -> None:
    """Versions and hashes are those of requirements.lock; the part is what is required, and no more."""
    fix = "run: PYTHONPATH=tests .venv/bin/python -m images.image_lock"
    assert (ROOT / "images" / file).read_text() == select(root), fix


@pytest.mark.parametrize("file", sorted(FILES))
def test_no_image_holds_what_only_tests_need(file: str) -> None:
    """Only the trainer's holds PyTorch."""
    left_out = "pytest|mypy|ruff|scipy" + ("" if file == "trainer.lock" else "|torch|numpy|nvidia|triton")
    assert not re.search(f"^({left_out})", (ROOT / "images" / file).read_text(), re.MULTILINE)


@each_image
def test_every_install_is_pinned_by_hash_or_local(name: str) -> None:
    """No step of a build chooses a version of a Python package, and none of these goes through a shell."""
    steps = [json.loads(step) for step in find("RUN", RECIPES[name])]
    installs = [step for step in steps if "install" in step or "wheel" in step]
    assert len(installs) == 4
    assert all("--require-hashes" in step or {"--no-index", "--no-deps"} <= set(step) for step in installs)


def test_both_images_are_made_by_the_same_steps() -> None:
    """They differ in what they install, say and start, and in a compiler; where one is mended, so is the other."""
    steps = {
        name: [
            step.replace(f"{name}.lock", "X.lock")
            for step in find("(?:RUN|COPY|USER|FROM|WORKDIR)", recipe)
            if not any(word in step for word in ("import", "configs", "apt-get"))
        ]
        for name, recipe in RECIPES.items()
    }
    assert steps["operator"] == steps["trainer"]


@each_image
def test_each_image_runs_as_a_numbered_user_on_a_pinned_base(name: str) -> None:
    """Both stages start from one base, by its digest and without a host; the kubelet can see that the user is not root."""
    recipe = RECIPES[name]
    assert find("FROM", recipe) == ["${BASE} AS build", "${BASE}"]
    assert find("USER", recipe) == ["65532:65532"]
    (base,) = re.findall(r"^ARG BASE=(\S+)$", recipe, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)


@each_image
def test_each_image_bears_the_packages_version(name: str) -> None:
    """Label and package agree."""
    assert re.findall(r"^ARG VERSION=(.+)$", RECIPES[name], re.MULTILINE) == [PACKAGE["version"]]


@pytest.mark.slow
def test_the_chart_starts_what_the_image_holds() -> None:
    """The entry point is the command of the chart and a script of the package."""
    entry = json.loads(find("ENTRYPOINT", RECIPES["operator"])[0])
    assert entry == render().container["command"]
    assert entry[0] in PACKAGE["scripts"]


@each_image
def test_the_builder_gets_what_the_recipe_copies(name: str) -> None:
    """Every source of a COPY exists, and the ignore file lets it through, and nothing else."""
    ignored = (ROOT / "images" / f"{name}.Dockerfile.dockerignore").read_text().splitlines()
    copies = [line.split()[:-1] for line in find("COPY(?! --from)", RECIPES[name])]
    sources = [source for copy in copies for source in copy]
    assert all((ROOT / source).exists() for source in sources)
    assert sorted(sources) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert context_files(ROOT / "images" / f"{name}.Dockerfile")


def test_the_trainers_image_can_compile_and_the_operators_cannot() -> None:
    """The last stage gets a compiler, no lists of packages, and is built only if the trainer finds there what it compiles with."""
    stages = {name: recipe.split("\nFROM ")[-1] for name, recipe in RECIPES.items()}
    install, check = (json.loads(step) for step in find("RUN", stages["trainer"])[1:])
    assert install[:2] == ["sh", "-c"]
    assert re.fullmatch(
        r"apt-get update && apt-get install --yes --no-install-recommends g\+\+ && rm -rf /var/lib/apt/lists/\*",
        install[2],
    )
    assert "compiled.check(torch.device(kind)) for kind in ('cpu', 'cuda')" in check[-1]
    assert len(find("RUN", stages["operator"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("has_compiler", [True, False])
def test_the_step_that_looks_for_a_compiler_fails_without_one(has_compiler: bool, tmp_path: Path) -> None:
    """As the build runs it, on this machine, which has one, and with nothing on its path."""
    *_, check = (json.loads(step) for step in find("RUN", RECIPES["trainer"]))
    path = os.environ["PATH"] if has_compiler else str(tmp_path)
    told = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")} | {"PATH": path}
    ran = subprocess.run([sys.executable, *check[1:]], env=told, capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) == has_compiler, ran.stderr
    assert ("install g++ (gcc)" in ran.stderr) != has_compiler

"""How do the tests of the chart speak to Helm? Real Helm renders, installs and removes; what it renders is read as objects."""

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.binaries import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "amdahl-loop"
RELEASE, NAMESPACE = "amdahl-loop", "amdahl-system"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:amdahl-loop"

Object = dict[str, Any]
Values = Mapping[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it said."""


@dataclass(frozen=True)
class Manifests:
    """The objects that a set of values renders."""

    objects: tuple[Object, ...]

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    @property
    def kinds(self) -> set[str]:
        """The kinds that are there."""
        return {item["kind"] for item in self.objects}

    def names(self, kind: str) -> list[str]:
        """Names of the objects of a kind, with their namespaces where they have one, sorted."""
        return sorted(
            f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            if "namespace" in item["metadata"]
            else item["metadata"]["name"]
            for item in self.objects
            if item["kind"] == kind
        )

    def one(self, kind: str, name: str | None = None) -> Object:
        """The only object of a kind, or the one of that name."""
        found = [item for item in self.objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}: {self.names(kind)}"
        return found[0]

    @property
    def container(self) -> Object:
        """The operator's container."""
        containers: list[Object] = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return containers[0]

    @property
    def env(self) -> dict[str, str]:
        """The operator's environment."""
        return {variable["name"]: variable["value"] for variable in self.container["env"]}


def render(values: Values | None = None, *, release: str = RELEASE, hooks: bool = False) -> Manifests:
    """The objects of the chart for these values; definitions are left out unless the values ask for them.

    Raises:
        HelmError: Helm refused.
    """
    asked = {"crds": {"enabled": False}} | dict(values or {})
    return _render(json.dumps(asked, sort_keys=True), release, hooks)


@functools.cache
def _render(values: str, release: str, hooks: bool) -> Manifests:
    said = run_helm(
        "template",
        release,
        CHART,
        "--namespace",
        NAMESPACE,
        *([] if hooks else ["--no-hooks"]),
        values=json.loads(values),
    )
    documents = yaml.load_all(said, Loader=yaml.CSafeLoader)
    return Manifests(tuple(document for document in documents if document))


def run_helm(*arguments: str | Path, values: Values | None = None, kubeconfig: Path | None = None) -> str:
    """Run Helm with its caches in a folder of its own; returns what it printed.

    Raises:
        HelmError: it ended with another status than 0.
    """
    with tempfile.TemporaryDirectory(prefix="chart-") as scratch:
        command = [str(binary("helm")), *map(str, arguments)]
        if values is not None:
            file = Path(scratch, "values.json")
            file.write_text(json.dumps(values))
            command += ["--values", str(file)]
        homes = {f"HELM_{kind}_HOME": scratch for kind in ("CACHE", "CONFIG", "DATA")}
        environment = os.environ | homes | {"KUBECONFIG": str(kubeconfig or os.devnull)}
        ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    if ran.returncode:
        raise HelmError(ran.stderr.strip())
    return ran.stdout


def read_values(file: Path) -> Object:
    """The values of a file."""
    values: Object = yaml.load(file.read_text(), Loader=yaml.CSafeLoader) or {}
    return values

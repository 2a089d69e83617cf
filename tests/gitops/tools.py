"""How does each tool bring its source to the cluster, again and again?

A tool is asked for one thing: to make the cluster as its source says, now. What is refused is said, not raised.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import yaml

from gitops.jobs import Source
from testbed.access import Access
from testbed.binaries import binary

TIMEOUT_S = 300

Refusals = Mapping[str, str]
"""What a tool said of jobs that it could not bring, by their names; empty when all is well."""


class Tool(Protocol):
    """Something that keeps TrainingJobs as a source says."""

    @property
    def name(self) -> str:
        """One word; the images of its jobs bear it."""

    @property
    def namespace(self) -> str:
        """Where its jobs are."""

    def put(self, sources: Sequence[Source]) -> Refusals:
        """Bring all of them to the cluster."""


@dataclass(frozen=True)
class Kubectl:
    """`kubectl apply`, with flags; a person's, or in the name of a tool that applies by the same code."""

    name: str
    access: Access
    namespace: str
    flags: tuple[str, ...] = ()

    def put(self, sources: Sequence[Source]) -> Refusals:
        """One apply for each job, as a refused one must not hide the others."""
        refusals = {}
        for source in sources:
            applied = self.access.try_kubectl(
                "apply", "--namespace", self.namespace, *self.flags, "-f", "-", stdin=source.render(self.name)
            )
            if applied.returncode:
                refusals[source.name] = applied.stderr.strip().splitlines()[0]
        return refusals


@dataclass(frozen=True)
class Helm:
    """Helm 4 with a chart of its own, as `helm upgrade --install`."""

    name: str
    access: Access
    namespace: str
    folder: Path
    flags: tuple[str, ...] = ()

    def put(self, sources: Sequence[Source]) -> Refusals:
        """One release holds all jobs: what is refused of one is refused of all."""
        chart = self.folder / "chart"
        (chart / "templates").mkdir(parents=True, exist_ok=True)
        (chart / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "jobs", "version": "1.0.0"}))
        for source in sources:
            (chart / "templates" / f"{source.name}.yaml").write_text(yaml.safe_dump(source.render(self.name)))
        command = [str(binary("helm")), "upgrade", "--install", "jobs", str(chart), "--namespace", self.namespace]
        homes = {f"HELM_{kind}_HOME": str(self.folder / "home") for kind in ("CACHE", "CONFIG", "DATA")}
        environment = os.environ | homes | {"KUBECONFIG": str(self.access.kubeconfig)}
        ran = subprocess.run(
            [*command, *self.flags], env=environment, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        return {source.name: ran.stderr.strip() for source in sources} if ran.returncode else {}


@dataclass(frozen=True)
class ArgoCD:
    """What Argo CD sends, without Argo CD: kubectl's own apply under its manager's name, with its tracking mark.

    Argo CD applies with kubectl's libraries: client-side by default, server-side and forced with ServerSideApply=true.
    With RespectIgnoreDifferences=true it first puts the live values of ignored fields into what it applies; that step
    is done here the same way, for the jobs in `ignoring`. Argo CD itself cannot be built here.
    """

    name: str
    access: Access
    namespace: str
    is_server_side: bool = True
    ignoring: set[str] = field(default_factory=set)

    def put(self, sources: Sequence[Source]) -> Refusals:
        """A sync."""
        flags: tuple[str, ...] = ("--field-manager=argocd-controller",)
        if self.is_server_side:
            flags += ("--server-side", "--force-conflicts")
        kubectl = Kubectl(self.name, self.access, self.namespace, flags)
        return kubectl.put([self._track(self._respect(source)) for source in sources])

    def _track(self, source: Source) -> Source:
        target = f"jobs:amdahl-loop.io/TrainingJob:{self.namespace}/{source.name}"
        return source.mark({"argocd.argoproj.io/tracking-id": target})

    def _respect(self, source: Source) -> Source:
        """The source with the live value of the field that is ignored."""
        if source.name not in self.ignoring:
            return source
        said = self.access.kubectl("get", "trainingjob", source.name, "--namespace", self.namespace, "-o", "json")
        return replace(source, workers=json.loads(said)["spec"].get("knobs", {}).get("dataloaderWorkers"))

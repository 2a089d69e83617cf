"""Fixtures of the GitOps tests: every selected tool's jobs go through the whole story once, side by side."""

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster_operator import define, operator
from fakes import Truth, loader_bound
from gitops.expected import TOOLS, Phase
from gitops.flux import Flux, Shop, flux_running
from gitops.handover import first_sources, hand_over
from gitops.jobs import PROVEN, Source
from gitops.matrix import Matrix
from gitops.table import render
from gitops.tools import ArgoCD, Helm, Kubectl, Tool
from hollow import HollowNodes
from testbed.cluster import Cluster
from testbed.fixtures import control_plane

__all__ = ["control_plane"]

_MATRIX = pytest.StashKey[Matrix]()


@pytest.fixture(scope="session")
def matrix(control_plane: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """What was seen of the selected tools' jobs."""
    wanted = {item.callspec.params.get("tool") for item in request.session.items if hasattr(item, "callspec")}
    with ExitStack() as stack:
        tools = make_tools([t for t in TOOLS if t in wanted], define(control_plane), tmp_path_factory, stack)
        found = Matrix.of(control_plane.admin, control_plane.audit_log, tools)
        request.config.stash[_MATRIX] = found
        play(found, control_plane, tmp_path_factory.mktemp("operator") / "operator.log")
    return found


def make_tools(names: Sequence[str], cluster: Cluster, scratch: pytest.TempPathFactory, stack: ExitStack) -> list[Tool]:
    """Each with a namespace of its own."""
    admin = cluster.admin

    @functools.cache
    def shop() -> Shop:
        return stack.enter_context(flux_running(admin, scratch.mktemp("flux")))

    def make(name: str) -> Tool:
        namespace = cluster.create_namespace(name)
        match name:
            case "flux" | "flux-overruled":
                return Flux(name, admin, namespace, shop())
            case "helm" | "helm-client" | "helm-overruled":
                helm_flags = ("--server-side=false",) if name == "helm-client" else ()
                return Helm(name, admin, namespace, scratch.mktemp(name), helm_flags)
            case "argocd" | "argocd-client":
                return ArgoCD(name, admin, namespace, is_server_side=name == "argocd")
            case _:
                flags = {"kubectl": (), "kubectl-server": ("--server-side",)}
                return Kubectl(name, admin, namespace, flags.get(name, ("--server-side", "--force-conflicts")))

    return [make(name) for name in names]


def play(matrix: Matrix, cluster: Cluster, log: Path) -> None:
    """The whole story."""
    sources = {name: first_sources(tool) for name, tool in matrix.tools.items()}
    matrix.put(Phase.WON, sources)
    namespaces = ",".join(tool.namespace for tool in matrix.tools.values())
    with (
        HollowNodes(cluster.admin, Truth(phases_s=loader_bound), prefix="gitops"),
        operator(cluster.admin.kubeconfig, log, NAMESPACES=namespaces, PARALLEL_TRIALS="100"),
    ):
        matrix.settle(Phase.WON)
        matrix.rest(Phase.WON)
        matrix.put_again(Phase.AGAIN, sources)
        handed = {name: hand_over(matrix.tools[name], sources[name]) for name in matrix.tools}
        matrix.put(Phase.HANDED, handed)
        matrix.settle(Phase.HANDED)
        matrix.rest(Phase.HANDED)
        matrix.put_again(Phase.STAYS, handed)
        matrix.put(
            Phase.TAKEN,
            {name: [Source(mode=source.mode, workers=PROVEN) for source in some] for name, some in sources.items()},
        )
        matrix.settle(Phase.TAKEN)
        matrix.rest(Phase.TAKEN)
    for tool in matrix.tools.values():
        cluster.delete_namespace(tool.namespace)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was seen, as in docs/gitops.md."""
    found = config.stash.get(_MATRIX, None)
    if found is not None and all(Phase.TAKEN in row.written for row in found.rows.values()):
        terminalreporter.section("GitOps: what was seen")
        terminalreporter.write(render(found.rows.values()))

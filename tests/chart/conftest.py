"""An API server of the chart's own: definitions and policies are the cluster's, and other suites must not meet them."""

from collections.abc import Iterator

import pytest

from chart.helm import CHART, NAMESPACE, RELEASE, Object, run_helm
from testbed.cluster import Cluster, plan_for_session, started, wait_for

DEFINITIONS = tuple(f"{plural}.amdahl-loop.io" for plural in ("experiments", "trainingjobs", "tuningpolicies"))


@pytest.fixture(scope="session")
def chart_server() -> Iterator[Cluster]:
    """API server and etcd, with the namespaces that the chart's values name."""
    with started(plan_for_session(api_only=True)) as cluster:
        # The operator must run where nothing but restricted pods may.
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name in (NAMESPACE, "team-a", "team-b"):
            item: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            if name == NAMESPACE:
                item["metadata"]["labels"] = labels
            assert cluster.admin.post("/api/v1/namespaces", item).status == 201
            account: Object = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
            assert cluster.admin.post(f"/api/v1/namespaces/{name}/serviceaccounts", account).status == 201
        yield cluster


@pytest.fixture(scope="module")
def installed(chart_server: Cluster) -> Iterator[Cluster]:
    """The chart with its defaults, in force: its policies refuse what they refuse."""
    run_helm("install", RELEASE, CHART, "--namespace", NAMESPACE, kubeconfig=chart_server.admin.kubeconfig)
    wait_until_policies_hold(chart_server)
    yield chart_server
    uninstall(chart_server)


def wait_until_policies_hold(cluster: Cluster) -> None:
    """A policy takes a moment from its creation to its first refusal, and all of the chart's are created together."""
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"generateName": "forged-", "labels": {"amdahl-loop.io/job": "x"}},
    }
    maps = "/api/v1/namespaces/team-a/configmaps?dryRun=All"
    wait_for(lambda: cluster.admin.post(maps, forged).status == 403, 60, "the policies are in force")


def uninstall(cluster: Cluster) -> None:
    """Remove the release and what it keeps on purpose."""
    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=cluster.admin.kubeconfig)
    cluster.admin.kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found")

"""An API server of the chart's own: definitions and policies are the cluster's, and other suites must not meet them."""

from collections.abc import Iterator

import pytest

from chart.helm import NAMESPACE, Object
from chart.release import helm, uninstall, wait_until_policies_hold
from testbed.cluster import Cluster, plan_for_session, started


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
    helm(chart_server, "install")
    wait_until_policies_hold(chart_server)
    yield chart_server
    uninstall(chart_server)

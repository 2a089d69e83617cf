"""A control plane of its own with the chart installed by Helm: its policies are the cluster's, and other suites must not meet them."""

from collections.abc import Iterator

import pytest

from chart.helm import NAMESPACE, Object
from chart.release import helm, wait_until_policies_hold
from security.scene import TEAM, VALUES
from testbed.cluster import Cluster, plan_for_session, started
from testbed.fixtures import api_namespace, api_server, cluster

__all__ = ["api_namespace", "api_server", "cluster"]


@pytest.fixture(scope="session")
def secured() -> Iterator[Cluster]:
    """API server, controllers and scheduler, with the chart as an administrator installs it for everybody and for one team."""
    with started(plan_for_session(api_only=False)) as plane:
        for name, labels in ((NAMESPACE, {"pod-security.kubernetes.io/enforce": "restricted"}), (TEAM, {})):
            item: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            assert plane.admin.post("/api/v1/namespaces", item).status == 201
        helm(plane, "install", VALUES)
        wait_until_policies_hold(plane)
        yield plane

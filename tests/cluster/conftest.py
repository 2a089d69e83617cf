"""Fixtures of the tests that run the operator on a real control plane whose nodes only report."""

from pathlib import Path

import pytest

from testbed.cluster import Cluster
from testbed.fixtures import control_plane

__all__ = ["control_plane"]

DEFINITIONS = Path(__file__).parents[2] / "crds"
PRIORITY = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "amdahl-loop-trial"},
    "value": -1000,
    "preemptionPolicy": "Never",
}


@pytest.fixture(scope="session")
def plane(control_plane: Cluster) -> Cluster:
    """A control plane with our definitions and the trials' priority class."""
    control_plane.admin.kubectl("apply", "--server-side", "-f", str(DEFINITIONS))
    control_plane.admin.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(DEFINITIONS))
    control_plane.admin.kubectl("apply", "-f", "-", stdin=PRIORITY)
    return control_plane

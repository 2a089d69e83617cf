"""Fixtures of the tests that run the operator on a real control plane whose nodes only report."""

import pytest

from cluster_operator import define
from testbed.cluster import Cluster
from testbed.fixtures import control_plane

__all__ = ["control_plane"]


@pytest.fixture(scope="session")
def plane(control_plane: Cluster) -> Cluster:
    """A control plane with our definitions and the trials' priority class."""
    return define(control_plane)

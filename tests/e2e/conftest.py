"""Fixtures of the tests that need real nodes and real pods."""

import pytest

from cluster_operator import define
from testbed.cluster import Cluster
from testbed.fixtures import cluster, cluster_namespace

__all__ = ["cluster", "cluster_namespace"]


@pytest.fixture(scope="session")
def cluster_with_definitions(cluster: Cluster) -> Cluster:
    """The cluster with our definitions and the trials' priority class."""
    return define(cluster)

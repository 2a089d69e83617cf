"""Fixtures of the tests that need real nodes and real pods."""

from testbed.fixtures import cluster, cluster_namespace

__all__ = ["cluster", "cluster_namespace"]

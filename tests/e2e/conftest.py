"""Fixtures of the tests that need real nodes and real pods."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster_builders import PRIORITY_CLASS
from cluster_operator import define
from kube_builders import install_crds
from pods_on_nodes import IMAGE, PROGRAM, RESTRICTED
from testbed.cluster import Cluster
from testbed.fixtures import cluster, cluster_namespace
from testbed.python_images import python_image

__all__ = ["cluster", "cluster_namespace"]


@pytest.fixture(scope="session")
def cluster_with_definitions(cluster: Cluster) -> Cluster:
    """The cluster with our definitions and the trials' priority class."""
    return define(cluster)


@pytest.fixture(scope="session")
def nodes_with_python(cluster: Cluster) -> Cluster:
    """Our kinds and the priority class are there, and every node has an image with Python and nothing else."""
    install_crds(cluster)
    cluster.admin.kubectl("apply", "-f", "-", stdin=PRIORITY_CLASS)
    image = python_image(IMAGE)
    cluster.load_image(replace(image, environment={**image.environment, "PYTHONPATH": "/image/lib"}))
    return cluster


@pytest.fixture
def namespace(nodes_with_python: Cluster) -> Iterator[str]:
    """A namespace under the restricted standard, with the user's program in it."""
    cluster = nodes_with_python
    name = cluster.create_namespace("trials", RESTRICTED)
    script = {"metadata": {"name": "script"}, "data": {"train.py": PROGRAM}, "apiVersion": "v1", "kind": "ConfigMap"}
    cluster.admin.kubectl("apply", "--namespace", name, "-f", "-", stdin=script)
    yield name
    cluster.delete_namespace(name)

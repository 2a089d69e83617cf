"""Which clusters can a test ask for? Import the fixtures that a folder needs into its conftest.py.

`AMDAHL_KUBECONFIG` runs the same suites on a cluster of the user's; its current context must be on the list `AMDAHL_KUBE_CONTEXTS`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.cluster import Cluster, attach, plan_for_session, started

_API_SERVER = pytest.StashKey[Cluster]()
_CONTROL_PLANE = pytest.StashKey[Cluster]()
_CLUSTER = pytest.StashKey[Cluster]()
NODES = 2


@pytest.fixture(scope="session")
def api_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """An API server and its etcd, nothing else, ready in seconds: nothing schedules, collects garbage or finishes a namespace's deletion."""
    return _shared(request.config, _API_SERVER, tmp_path_factory, api_only=True, nodes=0)


@pytest.fixture
def api_namespace(api_server: Cluster) -> Iterator[str]:
    """A namespace of this test's own on the API server."""
    name = api_server.create_namespace("test")
    yield name
    api_server.delete_namespace(name)


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """An API server with controllers and scheduler but no nodes: garbage is collected, roles are aggregated, Jobs make pods that stay pending."""
    return _shared(request.config, _CONTROL_PLANE, tmp_path_factory, api_only=False, nodes=0)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The whole: control plane, controllers, DNS and two nodes with real pods. Needs root."""
    return _shared(request.config, _CLUSTER, tmp_path_factory, api_only=False, nodes=NODES)


@pytest.fixture
def cluster_namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test's own on the cluster."""
    name = cluster.create_namespace("test")
    yield name
    cluster.delete_namespace(name)


def _shared(
    config: pytest.Config, key: pytest.StashKey[Cluster], scratch: pytest.TempPathFactory, *, api_only: bool, nodes: int
) -> Cluster:
    """One cluster per kind and session, however many conftest files import the fixture."""
    if key not in config.stash:
        of_user = os.environ.get("AMDAHL_KUBECONFIG")
        stack = ExitStack()
        config.add_cleanup(stack.close)
        if of_user:
            config.stash[key] = attach(Path(of_user), scratch.mktemp("users"))
        else:
            config.stash[key] = stack.enter_context(started(plan_for_session(api_only=api_only, nodes=nodes)))
    return config.stash[key]

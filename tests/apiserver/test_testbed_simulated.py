"""Do simulated nodes take pods as real ones do? The scale benchmarks lean on them."""

from pathlib import Path

import pytest

from testbed.cluster import Cluster, wait_for
from testbed.simulated import LABEL, simulated_nodes

pytestmark = pytest.mark.slow

GPUS_PER_NODE = 8


def test_pods_run_on_simulated_nodes_as_far_as_their_gpus_go(control_plane: Cluster, tmp_path: Path) -> None:
    """Two nodes with eight GPUs hold four pods of four; a fifth stays pending; deleting the Job leaves no pod, by real garbage collection."""
    namespace = control_plane.create_namespace("simulated")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    pod = {
        "restartPolicy": "Never",
        "tolerations": [{"key": LABEL, "operator": "Exists"}],
        "containers": [
            {"name": "trainer", "image": "none", "resources": {"limits": {"nvidia.com/gpu": str(GPUS_PER_NODE // 2)}}}
        ],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "many"},
        "spec": {"parallelism": 5, "completions": 5, "template": {"spec": pod}},
    }

    def phases() -> list[str]:
        return sorted(item["status"]["phase"] for item in control_plane.admin.get(pods).body["items"])

    with simulated_nodes(control_plane, 2, GPUS_PER_NODE, tmp_path / "kwok.log"):
        control_plane.admin.kubectl("create", "--namespace", namespace, "-f", "-", stdin=job)
        wait_for(lambda: phases() == ["Pending", *["Running"] * 4], 120, "four pods run and one waits")
        addresses = [item["status"].get("podIP") for item in control_plane.admin.get(pods).body["items"]]
        assert len({address for address in addresses if address}) == 4
        control_plane.admin.kubectl("delete", "--namespace", namespace, "job/many", "--wait=false")
        wait_for(lambda: not phases(), 120, "the pods are gone with their Job")
    assert not control_plane.admin.get(f"/api/v1/nodes?labelSelector={LABEL}").body["items"]

"""[P] The probe leaves the job as it was, also where nobody can see from outside that it does not: on real nodes, with a real image."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_operator import CONFINED, TIMEOUT_S, condition, operator, read, wait_for_condition
from pods_on_nodes import RESTRICTED
from testbed.cluster import Cluster, wait_for
from testbed.images import Entry
from testbed.python_images import python_image

pytestmark = pytest.mark.slow

IMAGE = "amdahl-testbed/finds-its-modules-by-path:1"
PROGRAM = "import sys, time, mine; print(mine.WORD, sys.path[1:3], flush=True); time.sleep(3600)"
"""It needs a module that only the image's own PYTHONPATH leads to."""


@pytest.fixture
def namespace(cluster_with_definitions: Cluster) -> Iterator[str]:
    """A namespace under the restricted standard; the nodes have an image that sets PYTHONPATH in its configuration alone."""
    image = python_image(IMAGE, (Entry(b"WORD = 'found'\n", "/image/lib/mine.py"),))
    cluster_with_definitions.load_image(replace(image, environment={**image.environment, "PYTHONPATH": "/image/lib"}))
    name = cluster_with_definitions.create_namespace("hidden", RESTRICTED)
    yield name
    cluster_with_definitions.delete_namespace(name)


def training_job(**trainer: Any) -> dict[str, Any]:
    """The program as its owner runs it anywhere."""
    container = {"name": "trainer", "image": IMAGE, "imagePullPolicy": "Never", "command": ["python3", "-c", PROGRAM]}
    container |= {"securityContext": CONFINED, **trainer}
    template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "paths"},
        "spec": {"knobs": {"dataloaderWorkers": 0}, "template": template},
    }


def logs(cluster: Cluster, namespace: str, revision: int) -> str:
    """What the pods of a revision said."""
    label = f"amdahl-loop.io/revision={revision}"
    return cluster.admin.try_kubectl("logs", "--namespace", namespace, "-l", label, "--prefix").stdout


def test_a_path_that_only_the_image_sets_is_given_back(
    cluster_with_definitions: Cluster, namespace: str, tmp_path: Path
) -> None:
    """The unmodified program dies of a missing module under the probe's path, and runs on without it; its owner reads why and what to do."""
    cluster, log = cluster_with_definitions, tmp_path / "operator.log"
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=training_job())
    with operator(cluster.admin.kubeconfig, log, NAMESPACES=namespace):
        wait_for(
            lambda: "No module named 'mine'" in logs(cluster, namespace, 0), TIMEOUT_S, "it dies of the missing module"
        )
        wait_for_condition(cluster, namespace, "paths", "Observed", "False", log)
        job = wait_for_condition(cluster, namespace, "paths", "Ready", "True", log)
        wait_for(lambda: "found" in logs(cluster, namespace, 1), TIMEOUT_S, "the program runs")
        assert "/image/lib" in logs(cluster, namespace, 1)
        for type_name, status in (("Observed", "False"), ("TrialsBlocked", "True")):
            assert condition(job, type_name)["status"] == status
            assert condition(job, type_name)["reason"] == "ProbeRemoved"
            assert "PYTHONPATH" in condition(job, type_name)["message"]
        named = training_job(env=[{"name": "PYTHONPATH", "value": "/image/lib"}])
        cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=named)
        wait_for(
            lambda: "found" in logs(cluster, namespace, 2), TIMEOUT_S, "it runs with the probe, and its path is named"
        )
        assert "['/amdahl/probe/probe.zip', '/image/lib']" in logs(cluster, namespace, 2)
        job = wait_for_condition(cluster, namespace, "paths", "TrialsBlocked", "False", log)
        assert condition(job, "Observed")["reason"] == "Measuring"
    assert [e["metadata"]["name"] for e in read(cluster, namespace, "experiments")["items"]] == []

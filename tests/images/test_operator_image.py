"""Does the operator's image, built from its Dockerfile, do its work as the chart deploys it? On real nodes, with the account's own rights."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chart.helm import NAMESPACE, RELEASE, run_helm
from chart.release import helm
from cluster_operator import CONFINED, condition, define, read
from testbed.cluster import Cluster, wait_for
from testbed.dockerfiles import build
from testbed.python_images import python_image

pytestmark = pytest.mark.slow

USER_IMAGE = "amdahl-testbed/python:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
LIMIT_S = 900.0
"""A bound on hanging."""
VALUES = {
    "image": {"tag": "dev", "pullPolicy": "Never"},
    "crds": {"enabled": False},  # the cluster has them, and other tests need them
    "trials": {"priorityClass": {"create": False}},
}
WORDS = (("describe", "pods"), ("logs", "deployment/amdahl-loop", "--tail=40"))
# Computes and nothing else, and serves its counters itself, by docs/telemetry.md.
PROGRAM = """
import http.server, os, time

began_s = time.monotonic()

class Counters(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        steps = int((time.monotonic() - began_s) / 0.05)
        lines = [
            'amdahl_info{rank="0",world="1",device="cpu",by="probe"} 1',
            f"amdahl_steps_total {steps}",
            f"amdahl_samples_total {8 * steps}",
            f"amdahl_step_seconds_sum {0.05 * steps}",
            "amdahl_checkpoints_total 0",
            "amdahl_checkpoint_block_seconds_total 0",
            f"amdahl_loader_batches_total {steps}",
            f"amdahl_loader_batch_seconds_total {0.0002 * steps}",
            f'amdahl_phase_seconds_total{{phase="compute"}} {0.05 * steps}',
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\\n".join([*lines, ""]).encode())

address = os.environ["AMDAHL_METRICS_HOST"], int(os.environ["AMDAHL_METRICS_PORT"])
http.server.ThreadingHTTPServer(address, Counters).serve_forever()
"""
# What must not be found in the image, whoever looks.
LOOK = """
import importlib.util, os, shutil
print(sorted(n for n in ("torch", "numpy", "pip", "setuptools", "ensurepip", "pytest") if importlib.util.find_spec(n)))
print(sorted(n for n in ("gcc", "cc", "make", "git", "curl", "pip", "pip3") if shutil.which(n)))
print(os.getuid(), [p for p in ("/", "/venv", "/usr") if os.access(p, os.W_OK)])
"""


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Cluster]:
    """The chart's own Deployment in a restricted namespace, with the image on every node."""
    define(cluster)
    cluster.load_layout(build("operator"))
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}}
    cluster.admin.kubectl("apply", "-f", "-", stdin=body)
    helm(cluster, "install", VALUES)
    forged = {"metadata": {"generateName": "forged-", "labels": {"amdahl-loop.io/job": "x"}}}
    maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps?dryRun=All"
    wait_for(lambda: cluster.admin.post(maps, forged).status == 403, LIMIT_S, "the chart's policies are in force")
    yield cluster
    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=cluster.admin.kubeconfig)
    cluster.delete_namespace(NAMESPACE)


@pytest.fixture(scope="module")
def pod(installed: Cluster) -> dict[str, Any]:
    """The operator's pod, once the chart's probes find it ready."""
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/amdahl-loop/status"
    with explained(installed):
        wait_for(lambda: installed.admin.get(path).body["status"].get("availableReplicas") == 1, LIMIT_S, "it is ready")
    (found,) = read(installed, NAMESPACE, "pods")["items"]
    return dict(found)


@contextmanager
def explained(cluster: Cluster) -> Iterator[None]:
    """What does not come about is told with the operator's own words."""
    try:
        yield
    except TimeoutError as error:
        told = [cluster.admin.try_kubectl(*words, "--namespace", NAMESPACE).stdout[-4000:] for words in WORDS]
        raise AssertionError("\n".join([str(error), *told])) from error


def fetch(pod: dict[str, Any], port: int, path: str) -> str:
    """What the operator's pod serves."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:{port}{path}", timeout=10) as response:
        text: str = response.read().decode()
    return text


def test_the_operator_is_well_and_says_so(pod: dict[str, Any]) -> None:
    """Health and metrics answer, on a read-only root, as a user without rights."""
    (status,) = pod["status"]["containerStatuses"]
    assert (status["ready"], status["restartCount"]) == (True, 0)
    assert "secondsSinceLastPass" in fetch(pod, 8081, "/healthz")
    assert "amdahl_loop_build_info" in fetch(pod, 8080, "/metrics")
    assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_nothing_is_in_the_image_that_could_build_or_train(installed: Cluster, pod: dict[str, Any]) -> None:
    """No PyTorch, no installer, no compiler, nothing that downloads; and not a folder to write to."""
    said = installed.admin.kubectl(
        "exec", "--namespace", NAMESPACE, pod["metadata"]["name"], "--", "python", "-c", LOOK
    )
    assert said.split("\n")[:3] == ["[]", "[]", "65532 []"]


def test_the_operator_runs_a_job_and_observes_it(installed: Cluster, pod: dict[str, Any]) -> None:
    """With its service account's rights and the policies in force: Ready, then Observed, by counters of the job's pod."""
    cluster = installed
    cluster.load_image(python_image(USER_IMAGE))
    namespace = cluster.create_namespace("team", RESTRICTED | {"amdahl-loop.io/enabled": "true"})
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": {"train.py": PROGRAM}}
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=[script, make_job()])

    def has(type_name: str) -> bool:
        return condition(read(cluster, namespace, "trainingjobs", "steady"), type_name).get("status") == "True"

    with explained(cluster):
        wait_for(lambda: has("Observed"), LIMIT_S, "the job has been observed")
    assert has("Ready")
    assert 'amdahl_loop_jobs{condition="Observed"' in fetch(pod, 8080, "/metrics")
    cluster.delete_namespace(namespace)


def make_job() -> dict[str, Any]:
    """A TrainingJob whose pods the restricted standard lets in; nobody may change it."""
    container = {
        "name": "trainer",
        "image": USER_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "/job/train.py"],
        "securityContext": CONFINED,
        "resources": {"limits": {"cpu": "1", "memory": "256Mi"}},
        "volumeMounts": [{"name": "script", "mountPath": "/job"}],
    }
    volumes = [{"name": "script", "configMap": {"name": "script"}}]
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "steady"},
        "spec": {
            "knobs": {"dataloaderWorkers": 4},
            "template": {"spec": {"containers": [container], "volumes": volumes}},
            "tuning": {"mode": "Observe", "profile": "quick"},
        },
    }

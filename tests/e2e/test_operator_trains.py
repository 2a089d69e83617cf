"""Real pods, real PyTorch, an image that holds nothing of ours: an input-bound job is tuned on a cluster."""

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster_operator import Object, condition, operator, read, wait_for_condition
from testbed.cluster import Cluster, wait_for
from testbed.images import Entry, shared_libraries
from testbed.python_images import python_image

pytestmark = [pytest.mark.slow, pytest.mark.quiet]

ROOT = Path(__file__).parents[2]
IMAGE = "amdahl-testbed/torch-user:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TIMEOUT_S = 2700.0
"""A bound on hanging; on a quiet machine the experiment takes about six minutes, in turn with the job longer."""


@pytest.fixture(scope="module")
def user_image(cluster: Cluster) -> str:
    """The user's image: an interpreter and system libraries; PyTorch comes from a claim, as site-wide packages do."""
    packages = Path(sysconfig.get_path("purelib"))
    built = [
        packages / "torch/lib" / name for name in ("libtorch_cpu.so", "libtorch_python.so", "libtorch_global_deps.so")
    ]
    system = [library for library in shared_libraries(*built) if not library.is_relative_to(packages)]
    cluster.load_image(python_image(IMAGE, tuple(Entry(library.resolve(), str(library)) for library in system)))
    return IMAGE


def example_job(image: str) -> Object:
    """examples/cluster/job.yaml with this image, and the packages from a claim."""
    job: Object = YAML(typ="safe").load((ROOT / "examples/cluster/job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    trainer |= {"image": image, "imagePullPolicy": "Never", "env": [{"name": "PYTHONPATH", "value": "/packages"}]}
    trainer["volumeMounts"].append({"name": "packages", "mountPath": "/packages", "readOnly": True})
    pod["volumes"].append({"name": "packages", "persistentVolumeClaim": {"claimName": "packages", "readOnly": True}})
    return job


def in_turn(job: Object) -> Object:
    """The job on the only device of the cluster: its trials run in turn with it, from its checkpoints on a claim."""
    pod, tuning = job["spec"]["template"]["spec"], job["spec"]["tuning"]
    (trainer,) = pod["containers"]
    trainer["resources"]["limits"]["nvidia.com/gpu"] = "1"
    pod["terminationGracePeriodSeconds"] = 5
    for volume in pod["volumes"]:
        if volume["name"] == "checkpoints":
            del volume["emptyDir"]
            volume["persistentVolumeClaim"] = {"claimName": "checkpoints"}
    job["spec"]["knobs"]["checkpointEverySteps"] = 50
    tuning["trial"]["placement"] = "InTurn"
    return job | {"spec": job["spec"] | {"tuning": tuning | {"pin": ["checkpointEverySteps"]}}}


@contextmanager
def tell(cluster: Cluster, namespace: str) -> Iterator[None]:
    """What a user sees meanwhile: `kubectl get trainingjobs,experiments --watch`, a watch a kind."""
    kubectl = [str(cluster.admin.kubectl_binary), "--kubeconfig", str(cluster.admin.kubeconfig), "get"]
    with ExitStack() as watches:
        for kind in ("trainingjobs", "experiments"):
            command = [*kubectl, kind, "--namespace", namespace, "--watch", "--output-watch-events"]
            watch = watches.enter_context(subprocess.Popen(command))
            watches.callback(watch.terminate)
        yield


def apply_and_tune(cluster: Cluster, namespace: str, job: Object, log: Path) -> Object:
    """Kubectl apply, then Tuned=True: the spec patched by our manager, and the job running on with the new value."""
    cluster.share_folder(namespace, "packages", Path(sysconfig.get_path("purelib")))
    script = (ROOT / "examples/cluster/train.py").read_text()
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "remote-data-script"}}
    config |= {"data": {"train.py": script}}
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=[config, job])
    with tell(cluster, namespace), operator(cluster.admin.kubeconfig, log, NAMESPACES=namespace):
        wait_for_condition(cluster, namespace, "remote-data", "Tuned", "True", log, TIMEOUT_S)
        tuned = wait_for_condition(cluster, namespace, "remote-data", "Ready", "True", log, TIMEOUT_S)
    experiments = read(cluster, namespace, "experiments")["items"]
    won = [e for e in experiments if e["status"].get("verdict", {}).get("word") == "Won"]
    assert won, json.dumps(experiments)[:4000]
    assert tuned["spec"]["knobs"]["dataloaderWorkers"] > 0
    assert condition(tuned, "ApplyConflict")["status"] == "False"
    assert pods_of_trials(cluster, namespace) == []
    print(cluster.admin.kubectl("get", "trainingjobs,experiments", "--namespace", namespace))
    return tuned


def test_an_input_bound_job_is_tuned_on_real_nodes(
    cluster_with_definitions: Cluster, user_image: str, tmp_path: Path
) -> None:
    """Trials run beside the job, on devices that are free."""
    cluster = cluster_with_definitions
    namespace = cluster.create_namespace("train", RESTRICTED)
    apply_and_tune(cluster, namespace, example_job(user_image), tmp_path / "operator.log")
    cluster.delete_namespace(namespace)


def test_on_a_full_cluster_trials_run_in_turn_with_the_job(
    cluster_with_definitions: Cluster, user_image: str, tmp_path: Path
) -> None:
    """The job holds the only device: it makes way with its work saved, and goes on from its checkpoint each time."""
    cluster, checkpoints = cluster_with_definitions, tmp_path / "checkpoints"
    checkpoints.mkdir()
    checkpoints.chmod(0o777)
    node, namespace = cluster.node_names[0], cluster.create_namespace("turns", RESTRICTED)
    cluster.share_folder(namespace, "checkpoints", checkpoints, is_writable=True)
    with cluster.lend_gpus({node: 1}):
        apply_and_tune(cluster, namespace, in_turn(example_job(user_image)), tmp_path / "operator.log")
        pods = read(cluster, namespace, "pods")["items"]
        (name,) = (pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running")
        wait_for(
            lambda: "step" in cluster.admin.kubectl("logs", name, "--namespace", namespace), TIMEOUT_S, "the job trains"
        )
        first = cluster.admin.kubectl("logs", name, "--namespace", namespace).split()
        assert int(first[first.index("step") + 1]) > 400, "the job goes on from its checkpoint"
        cluster.delete_namespace(namespace)


def pods_of_trials(cluster: Cluster, namespace: str) -> list[Any]:
    """Names of pods that a trial has left."""
    pods = read(cluster, namespace, "pods")["items"]
    return [pod["metadata"]["name"] for pod in pods if "amdahl-loop.io/experiment" in pod["metadata"].get("labels", {})]

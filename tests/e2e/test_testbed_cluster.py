"""Is the testbed's cluster a real one? What later suites lean on is shown once here."""

import http.client
import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from testbed.cluster import Cluster, wait_for
from testbed.python_images import SITE_PACKAGES, packages_layer, python_image

pytestmark = pytest.mark.slow

IMAGE = "amdahl-testbed/python:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TIMEOUT_S = 600  # a bound on hanging: pods start within seconds here

# Serves its own index, asks the other pod for its index by its DNS name, and leaves what it saw as its termination message.
PROGRAM = """
import http.server, json, os, pathlib, threading, time, urllib.request

index = int(os.environ["JOB_COMPLETION_INDEX"])
asked = threading.Event()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(index).encode())
        asked.set()

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    try:
        other = int(urllib.request.urlopen(f"http://pair-{1 - index}.pair:8000", timeout=60).read())
        break
    except OSError as problem:
        print("waiting:", problem)
        time.sleep(0.5)
print("other pod says", other)
seen = {"index": index, "other": other, "uid": os.getuid(), "node": os.environ["NODE"]}
pathlib.Path("/dev/termination-log").write_text(json.dumps(seen))
asked.wait()  # the other one may be slower
"""

HUNGRY = """
import pathlib, time

pathlib.Path("/dev/termination-log").write_text("window 2, variant")
while not pathlib.Path("/tmp/go").exists():
    time.sleep(0.1)
held = [bytearray(8 << 20) for _ in range(64)]
"""


def container(**more: Any) -> dict[str, Any]:
    """A container of the Python image that satisfies the restricted pod security standard."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "securityContext": security, **more}


def pair_of_pods(program: str) -> dict[str, Any]:
    """An Indexed Job of two pods with a GPU limit that only one of them can have per node."""
    environment = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    resources = {"limits": {"cpu": "500m", "memory": "128Mi", "nvidia.com/gpu": "2"}}
    pod = {
        "subdomain": "pair",
        "restartPolicy": "Never",
        "containers": [container(command=["python3", "-c", program], env=environment, resources=resources)],
    }
    spec = {
        "completions": 2,
        "parallelism": 2,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"metadata": {"labels": {"app": "pair"}}, "spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "pair"}, "spec": spec}


HEADLESS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "pair"},
    "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"app": "pair"},
        "ports": [{"port": 8000}],
    },
}


@pytest.fixture(scope="module")
def python_pods(cluster: Cluster) -> None:
    """Every node has the image."""
    cluster.load_image(python_image(IMAGE))


def pods(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """All pods of a namespace."""
    found: list[dict[str, Any]] = cluster.admin.get(f"/api/v1/namespaces/{namespace}/pods").body["items"]
    return found


def test_an_indexed_job_runs_on_two_nodes_and_its_pods_find_each_other(cluster: Cluster, python_pods: None) -> None:
    """GPUs spread two pods over two nodes; under the restricted standard they meet by DNS, and their words come back."""
    namespace = cluster.create_namespace("pair", RESTRICTED)
    with cluster.lend_gpus(dict.fromkeys(cluster.node_names, 2)):
        cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=[HEADLESS, pair_of_pods(PROGRAM)])
        cluster.admin.kubectl(
            "wait", "--namespace", namespace, "job/pair", "--for=condition=Complete", f"--timeout={TIMEOUT_S}s"
        )
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in pods(cluster, namespace)]
    seen = sorted((json.loads(state["message"]) for state in ended), key=lambda message: message["index"])
    assert [(message["index"], message["other"], message["uid"]) for message in seen] == [(0, 1, 65532), (1, 0, 65532)]
    assert {message["node"] for message in seen} == set(cluster.node_names)
    assert "other pod says 1" in cluster.admin.kubectl(
        "logs", "--namespace", namespace, "--selector=batch.kubernetes.io/job-completion-index=0"
    )
    cluster.delete_namespace(namespace)


def test_pods_answer_this_machine_and_services_answer_pods(
    cluster: Cluster, cluster_namespace: str, python_pods: None
) -> None:
    """A process outside of the cluster reaches a pod by its IP and through a cluster IP; a pod reads the API with its token."""
    server = container(
        command=["python3", "-m", "http.server", "8000", "--directory", "/var/run/secrets/kubernetes.io"],
        ports=[{"containerPort": 8000}],
    )
    server["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [server]},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    cluster.admin.kubectl("apply", "--namespace", cluster_namespace, "-f", "-", stdin=[pod, service])
    cluster.admin.kubectl(
        "wait", "--namespace", cluster_namespace, "pod/web", "--for=condition=Ready", f"--timeout={TIMEOUT_S}s"
    )
    pod_ip = pods(cluster, cluster_namespace)[0]["status"]["podIP"]
    cluster_ip = cluster.admin.get(f"/api/v1/namespaces/{cluster_namespace}/services/web").body["spec"]["clusterIP"]

    def answers(host: str, port: int) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/")
            return b"serviceaccount" in connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()

    assert answers(pod_ip, 8000)
    wait_for(lambda: answers(cluster_ip, 80), TIMEOUT_S, "the service has its rules")
    asks = "import ssl,urllib.request as u; d='/var/run/secrets/kubernetes.io/serviceaccount/'; t=open(d+'token').read(); r=u.Request('https://kubernetes.default.svc/version',headers={'Authorization':'Bearer '+t}); print(u.urlopen(r,context=ssl.create_default_context(cafile=d+'ca.crt')).read().decode())"
    assert '"gitVersion": "v1.34' in cluster.admin.kubectl(
        "exec", "--namespace", cluster_namespace, "web", "--", "python3", "-c", asks
    )


def test_packages_of_this_machine_reach_pods_without_an_image(cluster: Cluster, python_pods: None) -> None:
    """A read-only claim holds the environment that runs these tests; under the restricted standard a pod imports from it and cannot write to it."""
    namespace = cluster.create_namespace("shared", RESTRICTED)
    cluster.share_folder(namespace, "packages", Path(sysconfig.get_path("purelib")))
    program = (
        "import pathlib, yaml; print(yaml.safe_load('a: 1'), yaml.__file__); pathlib.Path('/packages/mine').touch()"
    )
    mounts = [{"name": "packages", "mountPath": "/packages", "readOnly": True}]
    reader = container(
        command=["python3", "-c", program], env=[{"name": "PYTHONPATH", "value": "/packages"}], volumeMounts=mounts
    )
    volumes = [{"name": "packages", "persistentVolumeClaim": {"claimName": "packages", "readOnly": True}}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {"restartPolicy": "Never", "containers": [reader], "volumes": volumes},
    }
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=pod)
    cluster.admin.kubectl(
        "wait",
        "--namespace",
        namespace,
        "pod/reader",
        "--for=jsonpath={.status.phase}=Failed",
        f"--timeout={TIMEOUT_S}s",
    )
    said = cluster.admin.kubectl("logs", "--namespace", namespace, "reader")
    assert "{'a': 1} /packages/yaml/" in said
    assert "Read-only file system: '/packages/mine'" in said
    cluster.delete_namespace(namespace)


def test_an_image_of_installed_packages_brings_all_that_they_require(cluster: Cluster, cluster_namespace: str) -> None:
    """A layer of one distribution holds its dependencies and their libraries: the operator's framework imports in a pod, from the image alone."""
    cluster.load_image(python_image("amdahl-testbed/kopf:1", packages_layer("kopf")))
    program = "import aiohttp, kopf; print(kopf.__file__, aiohttp.http_parser.HttpRequestParser.__module__)"
    importer = {**container(command=["python3", "-c", program]), "image": "amdahl-testbed/kopf:1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "importer"},
        "spec": {"restartPolicy": "Never", "containers": [importer]},
    }
    cluster.admin.kubectl("apply", "--namespace", cluster_namespace, "-f", "-", stdin=pod)
    cluster.admin.kubectl(
        "wait",
        "--namespace",
        cluster_namespace,
        "pod/importer",
        "--for=jsonpath={.status.phase}=Succeeded",
        f"--timeout={TIMEOUT_S}s",
    )
    said = cluster.admin.kubectl("logs", "--namespace", cluster_namespace, "importer")
    assert said.split() == [
        f"{SITE_PACKAGES}/kopf/__init__.py",
        "aiohttp._http_parser",
    ]  # the second is a compiled extension


def test_a_container_above_its_memory_limit_is_killed_and_says_so(
    cluster: Cluster, cluster_namespace: str, python_pods: None
) -> None:
    """Limits are real: the kernel kills, the status says OOMKilled, and a termination message written before survives."""
    hungry = container(command=["python3", "-c", HUNGRY], resources={"limits": {"memory": "64Mi"}})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hungry"},
        "spec": {"restartPolicy": "Never", "containers": [hungry]},
    }
    cluster.admin.kubectl("apply", "--namespace", cluster_namespace, "-f", "-", stdin=pod)
    # containerd begins to watch for it once the container runs: killed in its first instants, the reason would read `Error`, with the same exit code.
    cluster.admin.kubectl(
        "wait", "--namespace", cluster_namespace, "pod/hungry", "--for=condition=Ready", f"--timeout={TIMEOUT_S}s"
    )
    cluster.admin.kubectl(
        "exec", "--namespace", cluster_namespace, "hungry", "--", "python3", "-c", "open('/tmp/go', 'w')"
    )
    cluster.admin.kubectl(
        "wait",
        "--namespace",
        cluster_namespace,
        "pod/hungry",
        "--for=jsonpath={.status.phase}=Failed",
        f"--timeout={TIMEOUT_S}s",
    )
    state = pods(cluster, cluster_namespace)[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"], state["message"]) == ("OOMKilled", 137, "window 2, variant")


def test_a_dead_node_is_noticed_and_comes_back(cluster: Cluster, cluster_namespace: str, python_pods: None) -> None:
    """Killing a node kills its pods and makes it NotReady; its pods are evicted; started again it is Ready and still has its images."""
    sleeper = container(command=["python3", "-c", "import time; time.sleep(3600)"])
    away = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "sleeper"},
        "spec": {
            "nodeName": "node-2",
            "terminationGracePeriodSeconds": 1,
            "containers": [sleeper],
            "tolerations": [away | {"tolerationSeconds": 1}],  # half a minute by default
        },
    }
    cluster.admin.kubectl("apply", "--namespace", cluster_namespace, "-f", "-", stdin=pod)
    cluster.admin.kubectl(
        "wait", "--namespace", cluster_namespace, "pod/sleeper", "--for=condition=Ready", f"--timeout={TIMEOUT_S}s"
    )
    cluster.kill("node-2")
    cluster.admin.kubectl("wait", "node/node-2", "--for=condition=Ready=Unknown", f"--timeout={TIMEOUT_S}s")
    wait_for(
        lambda: "deletionTimestamp" in pods(cluster, cluster_namespace)[0]["metadata"], TIMEOUT_S, "the pod is evicted"
    )
    cluster.start("node-2")
    wait_for(lambda: not pods(cluster, cluster_namespace), TIMEOUT_S, "the pod is gone")
    cluster.admin.kubectl("apply", "--namespace", cluster_namespace, "-f", "-", stdin=pod)
    cluster.admin.kubectl(
        "wait", "--namespace", cluster_namespace, "pod/sleeper", "--for=condition=Ready", f"--timeout={TIMEOUT_S}s"
    )


def test_a_node_that_is_cut_off_runs_on_and_is_seen_again(cluster: Cluster) -> None:
    """A network partition: NotReady while the cable is out, Ready when it is back."""
    cluster.cut("node-2")
    cluster.admin.kubectl("wait", "node/node-2", "--for=condition=Ready=Unknown", f"--timeout={TIMEOUT_S}s")
    cluster.join("node-2")
    cluster.admin.kubectl("wait", "node/node-2", "--for=condition=Ready=True", f"--timeout={TIMEOUT_S}s")

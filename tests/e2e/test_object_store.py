"""Does a job that uploads to an object store leave it as it was, after a full experiment of copies of it?

Real pods, a real store on this machine that takes a PUT from whoever holds the key, and the key in a Secret: copies of
the program could write to it. They do not begin before the owner says that they do not, and then they do not.
"""

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster_operator import CONFINED, Object, condition, operator, read, wait_for_condition
from testbed.cluster import Cluster, wait_for
from testbed.python_images import python_image

pytestmark = pytest.mark.slow

IMAGE, KEY = "amdahl-testbed/uploader:1", "the-owners-key"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TIMEOUT_S = 1800.0
"""A bound on hanging; on a quiet machine the experiment takes about five minutes."""

# Trains nothing, and speaks the telemetry contract with the probe's own code. Uploads what it began with and each
# checkpoint; a trial is told by AMDAHL_TRIAL, as the telemetry contract says.
PROGRAM = """
import os, time, urllib.request

from amdahl_probe import metrics
from amdahl_probe.emit import Batches, Recorder, StepRecord
from amdahl_probe.spans import Ledger

def upload(name, content):
    if os.environ.get("AMDAHL_TRIAL") == "1":
        return
    request = urllib.request.Request(os.environ["STORE"] + name, content.encode(), method="PUT")
    request.add_header("Authorization", os.environ["STORE_KEY"])
    urllib.request.urlopen(request, timeout=30).close()

workers = int(os.environ["AMDAHL_DATALOADER_WORKERS"])
upload("/run/begin", "the weights at the beginning")
counters = metrics.Metrics()
recorder = Recorder(os.environ.get("AMDAHL_TELEMETRY_DIR"), metrics=counters)
recorder.start("cpu", live=False, by="probe")
if "AMDAHL_METRICS_PORT" in os.environ:
    metrics.serve(counters, int(os.environ["AMDAHL_METRICS_PORT"]), os.environ["AMDAHL_METRICS_HOST"])
recorder.startup(5)
ledger, done = Ledger(), 0
while True:
    with ledger.span("input"):
        time.sleep(0.02 if workers else 0.2)
    ledger.rest("compute")
    time.sleep(0.05)
    phases = ledger.take()
    digest = f"{done:08x}"
    recorder.step(StepRecord(done, ledger.mark_ns, phases, 8, 64, digest, "0000abcd", digest, 1.0, 0, Batches(1, 200_000_000, 8_000_000_000)))
    done += 1
    if done % 10 == 0:
        upload("/run/checkpoint", "weights, the same after every step")
"""


class Store:
    """A bucket: what was put there, and every request that was made of it."""

    def __init__(self, address: str) -> None:
        self.objects: dict[str, bytes] = {}
        self.refused: list[str] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                is_known = self.headers["Authorization"] == KEY
                if is_known:
                    store.objects[self.path] = content
                else:
                    store.refused.append(self.path)
                self.send_response(200 if is_known else 403)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                """Quiet."""

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def digest(self) -> str:
        """Of every byte in it."""
        return hashlib.sha256(repr(sorted(self.objects.items())).encode()).hexdigest()


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Store]:
    """A store that pods reach at this machine's address."""
    assert cluster.facts is not None
    found = Store(cluster.facts.machine)
    yield found
    found.server.shutdown()
    found.server.server_close()


def uploading_job(store: Store) -> Object:
    """The owner's job: its key comes from a Secret."""
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "/job/train.py"],
        "env": [
            {"name": "STORE", "value": store.url},
            {"name": "STORE_KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "key"}}},
        ],
        "securityContext": CONFINED,
        "volumeMounts": [{"name": "script", "mountPath": "/job"}],
    }
    pod = {"containers": [container], "volumes": [{"name": "script", "configMap": {"name": "script"}}]}
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "uploads"},
        "spec": {
            "knobs": {"dataloaderWorkers": 0},
            "template": {"spec": pod},
            "tuning": {"profile": "quick", "mode": "Recommend", "budget": {"deviceHours": "100"}},
        },
    }


def test_an_experiment_leaves_the_store_byte_for_byte_as_it_was(
    cluster_with_definitions: Cluster, store: Store, tmp_path: Path
) -> None:
    """No trial before the owner's word; with it a whole experiment, to its verdict, and not one byte more in the store."""
    cluster, log = cluster_with_definitions, tmp_path / "operator.log"
    cluster.load_image(python_image(IMAGE))
    namespace = cluster.create_namespace("uploads", RESTRICTED)
    script: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "script"},
        "data": {"train.py": PROGRAM},
    }
    key = base64.b64encode(KEY.encode()).decode()
    secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "data": {"key": key}}
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=[script, secret, uploading_job(store)])

    def experiments() -> list[Any]:
        found: list[Any] = read(cluster, namespace, "experiments")["items"]
        return found

    with operator(cluster.admin.kubeconfig, log, NAMESPACES=namespace):
        wait_for_condition(cluster, namespace, "uploads", "Observed", "True", log, TIMEOUT_S)
        job = wait_for_condition(cluster, namespace, "uploads", "TrialsBlocked", "True", log, TIMEOUT_S)
        assert condition(job, "TrialsBlocked")["reason"] == "NotIsolated"
        wait_for(lambda: set(store.objects) == {"/run/begin", "/run/checkpoint"}, TIMEOUT_S, "the job uploads")
        before = store.digest
        assert experiments() == []

        change = {"spec": {"tuning": {"trial": {"isolated": True}}}}
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{namespace}/trainingjobs/uploads"
        assert cluster.admin.request("PATCH", path, change, "application/merge-patch+json").status == 200
        wait_for(
            lambda: any("verdict" in item.get("status", {}) for item in experiments()), TIMEOUT_S, "there is a verdict"
        )
    blocks = experiments()[0]["status"]["blocks"]
    assert len([block for block in blocks if block.get("summary")]) >= 4, blocks
    assert (store.digest, store.refused) == (before, [])
    cluster.delete_namespace(namespace)

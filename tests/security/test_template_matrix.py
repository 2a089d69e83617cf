"""Which templates get trials, and what is said of the others? All rows at once, by the real operator under its own account, behind the chart's policies.

`tests/domain/test_isolation.py` holds the whole table of obstacles; here stands one row of each kind, and what only the
server can refuse.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from cluster_operator import Object, condition, read
from fakes import Truth, loader_bound
from hollow import HollowNodes
from security.scene import ENABLED, TIMEOUT_S, apply, merge, own_operator, training_job, training_path
from testbed.cluster import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

NODES = "matrix"
NOTHING: Mapping[str, Any] = MappingProxyType({})
CALL = {"httpGet": {"host": "10.0.0.1", "port": 80}}


class Row(NamedTuple):
    """A template, the condition that speaks of it, and what that says."""

    name: str
    says: str
    reason: str
    pod: Mapping[str, Any] = NOTHING
    trainer: Mapping[str, Any] = NOTHING
    metadata: Any = NOTHING


def volume(**source: Any) -> Object:
    """A pod with one volume."""
    return {"volumes": [{"name": "data", **source}]}


def side(**fields: Any) -> list[Object]:
    """A second container."""
    return [{"name": "side", "image": "example/side:1", **fields}]


def native(**fields: Any) -> Object:
    """A pod with a container that starts before the trainer and runs beside it."""
    return {"initContainers": side(restartPolicy="Always", **fields)}


def projected(**source: Any) -> Object:
    """A pod with one projected source."""
    return volume(projected={"sources": [source]})


SECRET_ENV = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
TOKEN = {"path": "token", "audience": "store.example.com"}
UNSAFE, DOUBT = "UnsafeTemplate", "NotIsolated"
BLOCKED = [
    Row("host-path", "volumes[data].hostPath reaches the node's own files", UNSAFE, volume(hostPath={"path": "/srv"})),
    Row("git-volume", "volumes[data] is of gitRepo, which cannot be made read-only", UNSAFE, volume(gitRepo={"repository": "https://example.com/r"})),
    Row("host-network", "hostNetwork shares a namespace of the node", UNSAFE, {"hostNetwork": True}),
    Row("host-processes", "hostPID shares a namespace of the node", UNSAFE, {"hostPID": True}),
    Row("host-memory", "hostIPC shares a namespace of the node", UNSAFE, {"hostIPC": True}),
    Row("host-port", "ports[80].hostPort takes a port of the node", UNSAFE, {}, {"ports": [{"containerPort": 80, "hostPort": 80}]}),
    Row("node-name", "nodeName goes past the scheduler", UNSAFE, {"nodeName": f"{NODES}-0"}),
    Row("privileged", "privileged has every power of the node", UNSAFE, {}, {"securityContext": {"privileged": True}}),
    Row("capability", "capabilities.add[SYS_ADMIN] is a power over the node", UNSAFE, {}, {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
    Row("unconfined", "seccompProfile is Unconfined", UNSAFE, {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
    Row("proc-mount", "procMount unmasks the node's /proc", UNSAFE, {"hostUsers": False}, {"securityContext": {"procMount": "Unmasked"}}),
    Row("sysctl", "sysctls[kernel.msgmax] changes the node's kernel", UNSAFE, {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    Row("sidecar-power", "initContainers[side].securityContext.privileged has every power", UNSAFE, native(securityContext={"privileged": True})),
    Row("sidecar-calls", "initContainers[side].livenessProbe makes the node call 10.0.0.1", UNSAFE, native(livenessProbe=CALL)),
    Row("secret-volume", "volumes[data].secret holds a Secret", DOUBT, volume(secret={"secretName": "s"})),
    Row("secret-variable", "env[KEY].valueFrom.secretKeyRef holds a Secret", DOUBT, {}, {"env": SECRET_ENV}),
    Row("sidecar-secret", "initContainers[side].env[KEY].valueFrom.secretKeyRef holds a Secret", DOUBT, native(env=SECRET_ENV)),
    Row("unlisted", "envFrom[0] brings variables that nobody has listed", DOUBT, {}, {"envFrom": [{"configMapRef": {"name": "c"}}]}),
    Row("plain-key", "env[AWS_SECRET_ACCESS_KEY] looks like a credential", DOUBT, {}, {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "k"}]}),
    Row("projected-secret", "projected.secret holds a credential", DOUBT, projected(secret={"name": "s"})),
    Row("token", "projected.serviceAccountToken holds a credential", DOUBT, projected(serviceAccountToken=TOKEN)),
    Row("driver", "volumes[data].csi may hold credentials", DOUBT, volume(csi={"driver": "secrets-store.csi.k8s.io"})),
    Row("account", "uploader may be known outside the cluster", DOUBT, {"serviceAccountName": "uploader"}),
    Row("vault", "has Vault's secrets put into the pod", DOUBT, metadata={"annotations": {"vault.hashicorp.com/agent-inject": "true"}}),
    Row("azure", "asks for an Azure identity", DOUBT, metadata={"labels": {"azure.workload.identity/use": "true"}}),
]  # fmt: skip
REFUSED, INVALID = "RefusedByServer", "InvalidSpec"
STALLED = [
    Row("ephemeral", "ephemeral containers not allowed in pod template", REFUSED, {"ephemeralContainers": side()}),
    Row("misspelt", 'unknown field "spec.template.spec.tolerationz"', REFUSED, {"tolerationz": []}),
    Row("no-such-policy", "Unsupported value: \"Sometimes\"", REFUSED, {}, {"imagePullPolicy": "Sometimes"}),
    Row("no-such-volume", "volumeMounts[0].name: Not found: \"data\"", REFUSED, {}, {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
    Row("our-label", "metadata.labels amdahl-loop.io/experiment: names beginning with amdahl-loop.io/ are the loop's", INVALID, metadata={"labels": {"amdahl-loop.io/experiment": "mine"}}),
    Row("our-annotation", "metadata.annotations amdahl-loop.io/declared", INVALID, metadata={"annotations": {"amdahl-loop.io/declared": "0"}}),
    Row("our-variable", "env AMDAHL_TRIAL: names beginning with AMDAHL_ are set by the loop", INVALID, {}, {"env": [{"name": "AMDAHL_TRIAL", "value": "0"}]}),
    Row("our-folder", "volumeMounts /amdahl/probe: /amdahl is the loop's", INVALID, volume(emptyDir={}), {"volumeMounts": [{"name": "data", "mountPath": "/amdahl/probe"}]}),
    Row("metadata-text", "spec.template.metadata: 'mine': is text; write a map", INVALID, metadata="mine"),
    Row("labels-list", "spec.template.metadata.labels: ['team']: is a list; write a map", INVALID, metadata={"labels": ["team"]}),
    Row("volumes-map", "spec.template.spec.volumes: {'data': {'emptyDir': {}}}: is a map; write a list", INVALID, {"volumes": {"data": {"emptyDir": {}}}}),
    Row("volumes-text", "spec.template.spec.volumes.0: 'data': is text; write a map", INVALID, {"volumes": ["data"]}),
    Row("claim-text", "spec.template.spec.volumes.0.persistentVolumeClaim: 'data': is text; write a map", INVALID, volume(persistentVolumeClaim="data")),
    Row("claim-name", "persistentVolumeClaim.claimName: 'My Data': no claim can have this name", INVALID, volume(persistentVolumeClaim={"claimName": "My Data"})),
    Row("mounts-map", "spec.template.spec.containers.0.volumeMounts: {'data': '/data'}: is a map; write a list", INVALID, volume(emptyDir={}), {"volumeMounts": {"data": "/data"}}),
    Row("init-map", "spec.template.spec.initContainers: {'side': {}}: is a map; write a list", INVALID, {"initContainers": {"side": {}}}),
    Row("devices-all", "resources.limits.nvidia.com/gpu: 'all': 'all' is no resource quantity; write a number", INVALID, {}, {"resources": {"limits": {"nvidia.com/gpu": "all"}}}),
    Row("memory-lots", "resources.limits.memory: 'lots': 'lots' is no resource quantity", INVALID, {}, {"resources": {"limits": {"memory": "lots"}}}),
    Row("memory-below", "resources.limits.memory: '-1Gi': is less than nothing", INVALID, {}, {"resources": {"limits": {"memory": "-1Gi"}}}),
]  # fmt: skip
FREE = [
    Row("exponent", "", "", {}, {"resources": {"limits": {"memory": "16e9", "cpu": "+4"}, "requests": {"memory": ".5Gi", "cpu": "1n"}}}),
    Row("nulls", "", "", {"volumes": None, "affinity": None, "restartPolicy": None}, {"volumeMounts": None}, {"labels": None, "annotations": None}),
    Row("native-sidecar", "", "", native()),
    Row("shared-processes", "", "", {"shareProcessNamespace": True}),
    Row("first-class", "", "", {"priorityClassName": "important", "preemptionPolicy": "PreemptLowerPriority"}),
    Row("held-and-named", "", "", {"tolerations": [{"operator": "Exists"}]}, {}, {"labels": {"team": "a"}, "finalizers": ["example.com/hold"]}),
    Row("x" * 63, "", ""),
]  # fmt: skip
WAITING = ("secret-volume", "token")
"""Rows whose owner says, in the end, that a copy does no harm."""


def write(row: Row) -> Object:
    """The row's TrainingJob."""
    job = training_job(row.name, row.pod, **row.trainer)
    if row.metadata:
        job["spec"]["template"]["metadata"] = row.metadata
    return job


class Seen:
    """What the server shows of every row."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.settled: dict[str, Object] = {}
        """The jobs by name, as they were once every row had been looked at."""

    def condition(self, name: str, type_name: str) -> Object:
        """A condition of a row's job."""
        return condition(read(self.cluster, self.namespace, "trainingjobs", name), type_name)

    def count_pods(self, name: str) -> tuple[int, int]:
        """Pods of a job, and of its trials."""
        pods = [pod["metadata"]["labels"] for pod in read(self.cluster, self.namespace, "pods")["items"]]
        own = [labels for labels in pods if labels.get("amdahl-loop.io/job") == name]
        trials = sum("amdahl-loop.io/experiment" in labels for labels in own)
        return len(own) - trials, trials

    def tried(self) -> set[str]:
        """Jobs that an experiment was opened for."""
        return {item["spec"]["job"] for item in read(self.cluster, self.namespace, "experiments")["items"]}

    def is_settled(self) -> bool:
        """Every job has been looked at: measured where it runs, stalled where it cannot."""
        self.settled = {
            item["metadata"]["name"]: item for item in read(self.cluster, self.namespace, "trainingjobs")["items"]
        }

        def holds(row: Row, type_name: str) -> bool:
            return condition(self.settled[row.name], type_name).get("status") == "True"

        return (
            all(holds(row, "Observed") for row in BLOCKED)
            and all(holds(row, "Stalled") for row in STALLED)
            and self.tried() >= {row.name for row in FREE}
        )


@pytest.fixture(scope="module")
def seen(secured: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Every row is a job of one namespace, looked after by one operator."""
    log = tmp_path_factory.mktemp("matrix") / "operator.log"
    namespace = secured.create_namespace("matrix", ENABLED)
    important = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "important"},
        "value": 5,
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "uploader"}}
    apply(secured.admin, namespace, account, *(write(row) for row in (*BLOCKED, *STALLED, *FREE)))
    secured.admin.kubectl("apply", "-f", "-", stdin=important)
    found = Seen(secured, namespace)
    with HollowNodes(secured.admin, Truth(phases_s=loader_bound), prefix=NODES), own_operator(secured, log):
        wait_for(found.is_settled, 2 * TIMEOUT_S, "every row is looked at")
        yield found
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for pod in secured.admin.get(pods).body["items"]:
        merge(secured.admin, f"{pods}/{pod['metadata']['name']}", {"metadata": {"finalizers": None}})
    secured.delete_namespace(namespace)


@pytest.mark.parametrize("row", BLOCKED, ids=lambda row: row.name)
def test_a_template_that_could_do_harm_gets_no_trial(seen: Seen, row: Row) -> None:
    """The job runs and is measured; `TrialsBlocked` says the field and why; no experiment is opened."""
    blocked = condition(seen.settled[row.name], "TrialsBlocked")
    assert (blocked["status"], blocked["reason"]) == ("True", row.reason)
    assert row.says in blocked["message"]
    assert row.name in WAITING or row.name not in seen.tried()


@pytest.mark.parametrize("row", STALLED, ids=lambda row: row.name)
def test_a_template_that_cannot_run_is_stalled_with_the_reason(seen: Seen, row: Row) -> None:
    """The server's own words, or the line with the fix; nothing runs."""
    stalled = condition(seen.settled[row.name], "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", row.reason)
    assert row.says in stalled["message"]
    jobs = [item["metadata"]["name"] for item in read(seen.cluster, seen.namespace, "jobs")["items"]]
    assert not [name for name in jobs if name.startswith(f"{row.name}-r")]


@pytest.mark.parametrize("row", FREE, ids=lambda row: row.name[:20])
def test_a_template_that_does_no_harm_is_tuned(seen: Seen, row: Row) -> None:
    """The policies let its trials through, and none of their pods stays, whatever finalizer the template asks for."""
    wait_for(lambda: seen.condition(row.name, "Tuned").get("status") == "True", TIMEOUT_S, f"{row.name} is tuned")
    wait_for(lambda: seen.count_pods(row.name) == (1, 0), TIMEOUT_S, "its trials are gone")


@pytest.mark.parametrize("name", WAITING)
def test_the_owners_word_lets_trials_begin_without_the_token(seen: Seen, name: str) -> None:
    """With `isolated: true` a job with a Secret, or a token, is tuned: the server takes its blocks, which have no token."""
    assert name not in seen.tried()
    change = {"spec": {"tuning": {"trial": {"isolated": True}}}}
    assert merge(seen.cluster.admin, training_path(seen.namespace, name), change).status == 200
    wait_for(lambda: seen.condition(name, "Tuned").get("status") == "True", TIMEOUT_S, f"{name} is tuned")
    assert seen.condition(name, "TrialsBlocked")["status"] == "False"

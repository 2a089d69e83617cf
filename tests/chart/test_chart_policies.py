"""Do the admission policies let through what they should, and refuse the rest, whoever asks?

Real requests by real users to a real API server. The administrator's requests are refused too: RBAC lets this user do
everything, so a refusal is the policy's.
"""

import uuid
from typing import Any

import pytest

from amdahl_loop.domain.api.plans import write_plan
from builders import make_manifest
from chart.helm import NAMESPACE, Object
from judge_builders import make_plan
from testbed.access import Access, Reply
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

JOB_CONTROLLER = "system:serviceaccount:kube-system:job-controller"
ENABLED = {"amdahl-loop.io/enabled": "true"}


def path(namespace: str, plural: str, name: str = "", group: str = "") -> str:
    """Where objects of a kind live."""
    root = {"": "/api/v1", "batch": "/apis/batch/v1"}.get(group, f"/apis/{group}/v1alpha1")
    return f"{root}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def jobs(namespace: str, name: str = "") -> str:
    """Where Jobs live."""
    return path(namespace, "jobs", name, "batch")


def training(namespace: str, name: str = "") -> str:
    """Where TrainingJobs live."""
    return path(namespace, "trainingjobs", name, "amdahl-loop.io")


def merge(access: Access, where: str, change: Object) -> Reply:
    """A merge patch."""
    return access.request("PATCH", where, change, "application/merge-patch+json")


def may(access: Access, namespace: str, verb: str, group: str, resource: str) -> bool:
    """Whether RBAC lets this user."""
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    reply = access.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(reply.body["status"]["allowed"])


def training_job(name: str = "pydocs", **spec: Any) -> Object:
    """A legal TrainingJob."""
    return make_manifest(**spec) | {"metadata": {"name": name}}


def job(labels: Object | None = None, pod: Object | None = None, *, owned: bool = True, **spec: Any) -> Object:
    """A Job as the operator makes one; `pod` replaces fields of its pod."""
    owner = {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "name": "pydocs",
        "uid": "u",
        "controller": True,
    }
    container = {"name": "trainer", "image": "example/trainer:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": "job-",
            "labels": {"amdahl-loop.io/job": "pydocs"} if labels is None else labels,
            "ownerReferences": [owner] if owned else [],
        },
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]} | (pod or {})}} | spec,
    }


def trial(pod: Object | None = None, *, marked: bool = True, **spec: Any) -> Object:
    """A block's Job that harms nobody; `pod` and `spec` replace fields, `marked`: its pods bear its labels."""
    harmless = {"priorityClassName": "amdahl-loop-trial", "automountServiceAccountToken": False}
    labels = {"amdahl-loop.io/job": "pydocs", "amdahl-loop.io/experiment": "pydocs-e1"}
    made = job(labels, harmless | (pod or {}), **({"backoffLimit": 0, "activeDeadlineSeconds": 600} | spec))
    made["spec"]["template"]["metadata"] = {"labels": labels if marked else {}}
    return made


def config_map(name: str, labels: Object | None = None, annotations: Object | None = None) -> Object:
    """A ConfigMap."""
    metadata = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Access:
    """The operator's own account, with exactly the rights that the chart grants."""
    return installed.service_account(NAMESPACE, "amdahl-loop")


@pytest.fixture(scope="module")
def enabled(installed: Cluster) -> str:
    """A namespace where jobs may run."""
    return installed.create_namespace("enabled", ENABLED)


@pytest.fixture(scope="module")
def shared(installed: Cluster) -> str:
    """A namespace of two people: `owner` may write TrainingJobs and create Jobs, `lacking` only the former."""
    namespace = installed.create_namespace("shared")
    writes = {"apiGroups": ["amdahl-loop.io"], "resources": ["trainingjobs"], "verbs": ["create", "update", "patch"]}
    creates_jobs = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}
    for user, rules in (("lacking", [writes]), ("owner", [writes, creates_jobs])):
        role = {"metadata": {"name": user}, "rules": rules}
        binding = {
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
            "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        }
        where = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        assert installed.admin.post(f"{where}/roles", role).status == 201
        assert installed.admin.post(f"{where}/rolebindings", binding).status == 201
    return namespace


@pytest.fixture(scope="module")
def lacking(installed: Cluster, shared: str) -> Access:
    """Who may write TrainingJobs and may not create Jobs; RBAC itself says yes to the former."""
    user = installed.user("lacking")
    wait_for(lambda: may(user, shared, "patch", "amdahl-loop.io", "trainingjobs"), 30, "the role is in force")
    assert not may(user, shared, "create", "batch", "jobs")
    return user


@pytest.fixture(scope="module")
def owner(installed: Cluster, shared: str) -> Access:
    """Who may do both."""
    user = installed.user("owner")
    wait_for(lambda: may(user, shared, "create", "batch", "jobs"), 30, "the role is in force")
    return user


# --- who may write a TrainingJob -------------------------------------------------------------------------------------


def test_who_may_not_create_jobs_may_not_create_a_training_job(lacking: Access, owner: Access, shared: str) -> None:
    """The operator lends its right to nobody: without the right to create Jobs the request is refused, with it let through."""
    refused = lacking.post(training(shared), training_job())
    assert refused.status == 403
    assert f"lacking may not create Jobs in namespace {shared}" in refused.message
    assert owner.post(training(shared), training_job()).status == 201


@pytest.mark.parametrize(
    ("name", "change", "status"),
    [
        ("knob", {"spec": {"knobs": {"dataloaderWorkers": 4}}}, 403),
        ("suspend", {"spec": {"suspend": True}}, 403),
        ("label", {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "fast"}}}, 403),
        ("annotation", {"metadata": {"annotations": {"amdahl-loop.io/paused": "false"}}}, 403),
        ("finalizer", {"metadata": {"finalizers": ["example.com/hold"]}}, 200),
    ],
)  # fmt: skip
def test_who_may_not_create_jobs_may_change_nothing_that_runs(
    installed: Cluster, lacking: Access, owner: Access, shared: str, name: str, change: Object, status: int
) -> None:
    """Spec, labels and annotations decide what runs; finalizers do not, and the garbage collector must be able to edit them."""
    assert installed.admin.post(training(shared), training_job(name)).status == 201
    assert merge(lacking, training(shared, name), change).status == status
    assert merge(owner, training(shared, name), change).status == 200
    assert merge(owner, training(shared, name), {"metadata": {"finalizers": None}}).status == 200


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_only_the_operator_writes_experiments(installed: Cluster, operator: Access, shared: str) -> None:
    """Create, label and status are refused to the cluster's own administrator and allowed to the operator."""
    where = path(shared, "experiments", group="amdahl-loop.io")
    experiment = write_plan(make_plan())
    name = experiment["metadata"]["name"]
    refused = installed.admin.post(where, experiment)
    assert refused.status == 403
    assert "only the operator writes Experiments" in refused.message
    assert operator.post(where, experiment).status == 201
    for change, place in (
        ({"status": {"message": "Won, I say"}}, f"{where}/{name}/status"),
        ({"metadata": {"labels": {"amdahl-loop.io/closed": "true"}}}, f"{where}/{name}"),
        ({"metadata": {"annotations": {"note": "mine"}}}, f"{where}/{name}"),
    ):
        assert merge(installed.admin, place, change).status == 403
        assert merge(operator, place, change).status == 200
    assert merge(installed.admin, f"{where}/{name}", {"metadata": {"finalizers": []}}).status == 200
    assert installed.admin.delete(f"{where}/{name}").status == 200


def test_only_the_operator_writes_the_status_of_a_training_job(
    installed: Cluster, operator: Access, shared: str
) -> None:
    """What was observed decides what is spent, so the owner may not write it either."""
    installed.admin.post(training(shared), training_job("observed"))
    status = {"status": {"observedGeneration": 1}}
    where = f"{training(shared, 'observed')}/status"
    refused = merge(installed.admin, where, status)
    assert refused.status == 403
    assert "the status of TrainingJobs" in refused.message
    assert merge(operator, where, status).status == 200


# --- our labels ------------------------------------------------------------------------------------------------------

OURS = {"amdahl-loop.io/job": "pydocs"}


@pytest.mark.parametrize(
    ("plural", "group", "item", "status"),
    [
        pytest.param("configmaps", "", config_map("c", OURS), 403, id="label"),
        pytest.param("configmaps", "", config_map("c", annotations={"amdahl-loop.io/plan-hash": "0"}), 403, id="annotation"),
        pytest.param("configmaps", "", config_map("c", {"example.com/job": "x"}), 201, id="a label of others"),
        pytest.param("configmaps", "", config_map("c", {"amdahl-loop.ion/job": "x"}), 201, id="a prefix that only looks like ours"),
        pytest.param("jobs", "batch", job(OURS), 403, id="job"),
        pytest.param("jobs", "batch", job({}), 201, id="job without it"),
        pytest.param("jobs", "batch", job({}) | {"spec": {"template": {"metadata": {"labels": OURS}, "spec": job()["spec"]["template"]["spec"]}}}, 403, id="label in a Job's template"),
        pytest.param("pods", "", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": OURS}, "spec": job()["spec"]["template"]["spec"]}, 403, id="pod"),
        pytest.param("services", "", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": OURS}, "spec": {"ports": [{"port": 80}]}}, 403, id="service"),
    ],
)  # fmt: skip
def test_nobody_else_writes_our_labels(
    installed: Cluster, shared: str, plural: str, group: str, item: Object, status: int
) -> None:
    """A forged child is refused where it would be read: Jobs, their templates, pods, ConfigMaps, Services."""
    reply = installed.admin.post(path(shared, plural, group=group) + "?dryRun=All", item)
    assert reply.status == status, reply.message
    assert status == 201 or "only the operator writes labels and annotations" in reply.message


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"metadata": {"labels": {"amdahl-loop.io/job": "other"}}}, 403),
        ({"metadata": {"labels": {"amdahl-loop.io/job": None}}}, 403),
        ({"metadata": {"labels": {"amdahl-loop.io/more": "x"}}}, 403),
        ({"metadata": {"annotations": {"amdahl-loop.io/run": "x"}}}, 403),
        ({"metadata": {"labels": {"example.com/mine": "x"}}}, 200),
        ({"data": {"AMDAHL_DATALOADER_WORKERS": "9"}}, 200),
    ],
)
def test_our_labels_can_be_neither_changed_nor_stripped(
    installed: Cluster, operator: Access, enabled: str, change: Object, status: int
) -> None:
    """What bears our labels keeps them; other fields are RBAC's business."""
    name = f"knobs-{uuid.uuid4().hex[:8]}"
    assert operator.post(path(enabled, "configmaps"), config_map(name, OURS)).status == 201
    reply = merge(installed.admin, path(enabled, "configmaps", name), change)
    assert reply.status == status, reply.message


@pytest.mark.parametrize(
    ("owner", "status"),
    [
        ({"apiVersion": "batch/v1", "kind": "Job"}, 201),
        ({"apiVersion": "apps/v1", "kind": "ReplicaSet"}, 403),
        (None, 403),
    ],
    ids=["of a Job", "of a ReplicaSet", "of nobody"],
)
def test_the_job_controller_creates_the_pods_of_jobs(
    installed: Cluster, shared: str, owner: Object | None, status: int
) -> None:
    """Pods get our labels from the template of a Job that passed, and in no other way."""
    controller = installed.user(JOB_CONTROLLER)
    owners = [owner | {"name": "j", "uid": "u", "controller": True}] if owner else []
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": OURS, "ownerReferences": owners}}
    reply = controller.post(path(shared, "pods") + "?dryRun=All", pod | {"spec": job()["spec"]["template"]["spec"]})
    assert reply.status == status, reply.message


# --- what the operator may do ----------------------------------------------------------------------------------------


def test_the_operator_creates_children_only_where_it_is_enabled(
    installed: Cluster, operator: Access, enabled: str
) -> None:
    """A namespace is enabled by its label; the refusal says how. Deleting is always allowed, so that it comes clean."""
    closed = installed.create_namespace("closed")
    for plural, group, item in (("jobs", "batch", job()), ("configmaps", "", config_map("c", OURS))):
        refused = operator.post(path(closed, plural, group=group), item)
        assert refused.status == 403
        assert f"kubectl label namespace {closed} amdahl-loop.io/enabled=true" in refused.message
        assert operator.post(path(enabled, plural, group=group), item).status == 201
    once = installed.create_namespace("once", ENABLED)
    assert operator.post(path(once, "configmaps"), config_map("c", OURS)).status == 201
    installed.admin.kubectl("label", "namespace", once, "amdahl-loop.io/enabled-")
    wait_for(
        lambda: merge(operator, path(once, "configmaps", "c"), {"data": {"a": "b"}}).status == 403,
        30,
        "it is not enabled any more",
    )
    assert operator.delete(path(once, "configmaps", "c")).status == 200


def test_the_operator_touches_only_what_bears_its_label(installed: Cluster, operator: Access, enabled: str) -> None:
    """It can neither create, change nor delete an object of others, though RBAC alone would let it."""
    where = path(enabled, "configmaps")
    installed.admin.post(where, config_map("of-a-user"))
    assert operator.post(where, config_map("unlabelled")).status == 403
    assert merge(operator, f"{where}/of-a-user", {"data": {"a": "b"}}).status == 403
    assert merge(operator, f"{where}/of-a-user", {"metadata": {"labels": OURS}}).status == 403
    refused = operator.delete(f"{where}/of-a-user")
    assert refused.status == 403
    assert "only objects that bear its own label" in refused.message
    assert (
        operator.post(where, config_map("amdahl-probe-0123456789", {"amdahl-loop.io/probe": "0123456789"})).status
        == 201
    )
    assert operator.post(jobs(enabled), job({"amdahl-loop.io/probe": "0123456789"})).status == 403


def test_the_operator_creates_jobs_only_for_a_training_job(operator: Access, enabled: str) -> None:
    """A Job whose controlling owner is no TrainingJob is refused."""
    refused = operator.post(jobs(enabled), job(owned=False))
    assert refused.status == 403
    assert "only for a TrainingJob" in refused.message


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"spec": {"knobs": {"dataloaderWorkers": 4}}}, 200),
        ({"spec": {"knobs": {"prefetchFactor": 4}}}, 200),
        ({"spec": {"knobs": None}}, 200),
        ({"spec": {"suspend": True}}, 403),
        ({"spec": {"replicas": 2}}, 403),
        ({"spec": {"tuning": {"mode": "Auto", "profile": "quick"}}}, 403),
        (
            {"spec": {"template": {"spec": {"containers": [{"name": "trainer", "image": "evil", "command": ["x"]}]}}}},
            403,
        ),
        ({"metadata": {"annotations": {"amdahl-loop.io/paused": "false"}}}, 403),
        ({"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "fast"}}}, 403),
        ({"metadata": {"finalizers": ["amdahl-loop.io/hold"]}}, 403),
        ({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u"}]}}, 403),
    ],
)
def test_the_operator_changes_only_the_knobs_of_a_training_job(
    installed: Cluster, operator: Access, enabled: str, change: Object, status: int
) -> None:
    """The template a user wrote is out of its reach, and so are metadata: no finalizer of ours can hold a job up."""
    name = f"job-{uuid.uuid4().hex[:8]}"
    assert installed.admin.post(training(enabled), training_job(name)).status == 201
    reply = merge(operator, training(enabled, name), change)
    assert reply.status == status, reply.message


def test_the_operator_applies_one_knob_by_server_side_apply(installed: Cluster, operator: Access, enabled: str) -> None:
    """The way values are written in fact: forced apply of one field over what kubectl set."""
    installed.admin.post(training(enabled), training_job("applied"))
    mine = {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "applied"},
        "spec": {"knobs": {"dataloaderWorkers": 4}},
    }
    applied = operator.apply(training(enabled, "applied"), mine, manager="amdahl-loop", force=True)
    assert (applied.status, applied.body["spec"]["knobs"]) == (200, {"dataloaderWorkers": 4}), applied.message


# --- a trial harms nobody --------------------------------------------------------------------------------------------


def of_container(**fields: Any) -> Object:
    """A pod whose trainer has further fields."""
    return {"containers": [job()["spec"]["template"]["spec"]["containers"][0] | fields]}


def of_volume(source: Object, *, read_only: bool | None = None) -> Object:
    """A pod that mounts one volume."""
    mount: Object = {"name": "v", "mountPath": "/v"} | ({} if read_only is None else {"readOnly": read_only})
    return of_container(volumeMounts=[mount]) | {"volumes": [{"name": "v"} | source]}


CLAIM: Object = {"persistentVolumeClaim": {"claimName": "data"}}
NO_SOURCE: Object = {"projected": {"sources": None}}
"""What the server makes of an empty list."""
TOKEN: Object = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
EPHEMERAL: Object = {
    "ephemeral": {
        "volumeClaimTemplate": {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        }
    }
}


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param({}, id="plain"),
        pytest.param({"serviceAccountName": "default"}, id="the default account, without its token"),
        pytest.param(of_volume(CLAIM, read_only=True), id="a claim, read-only"),
        pytest.param(of_volume({"emptyDir": {}}), id="scratch"),
        pytest.param(of_volume(EPHEMERAL), id="scratch on a storage class"),
        pytest.param(of_volume({"configMap": {"name": "c"}}), id="a ConfigMap"),
        pytest.param(of_volume({"projected": {"sources": [{"configMap": {"name": "c"}}]}}), id="projected ConfigMaps"),
        pytest.param(of_volume(NO_SOURCE), id="a projected volume of which nothing is left"),
        pytest.param(
            of_container(securityContext={"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}),
            id="a capability of the baseline",
        ),
        pytest.param(of_container(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}), id="confined"),
        pytest.param(of_container(ports=[{"containerPort": 80}]), id="a port of its own"),
        pytest.param(of_container(livenessProbe={"httpGet": {"port": 80}}), id="a probe of its own pod"),
        pytest.param(
            {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}}, id="a safe sysctl"
        ),
    ],
)
def test_a_harmless_trial_is_created(operator: Access, enabled: str, pod: Object) -> None:
    """Nothing that a trial needs is in the way."""
    reply = operator.post(jobs(enabled) + "?dryRun=All", trial(pod))
    assert reply.status == 201, reply.message


def test_a_stored_trial_whose_token_was_left_out_can_be_changed(operator: Access, enabled: str) -> None:
    """Its owner reference, say, when a block is adopted: the server tells the empty list of sources as null."""
    created = operator.post(jobs(enabled), trial(of_volume({"projected": {"sources": []}})))
    assert created.status == 201, created.message
    reply = merge(operator, jobs(enabled, created.body["metadata"]["name"]), {"spec": {"suspend": True}})
    assert reply.status == 200, reply.message


CALL: Object = {"httpGet": {"host": "10.0.0.1", "port": 80}}
KNOCK: Object = {"tcpSocket": {"host": "10.0.0.1", "port": 80}}
HOST = "no access to its host"
PRIVILEGED = "not privileged"
CONFINED = "stays confined"
READ_ONLY = "mounts the user's volumes read-only"
NO_TOKEN = "no token and no account"
ONCE = "runs once and ends"
OUR_CLASS = "priorityClassName: amdahl-loop-trial"


@pytest.mark.parametrize(
    ("item", "why"),
    [
        pytest.param(trial({"priorityClassName": "system-cluster-critical"}), OUR_CLASS, id="another class"),
        pytest.param(trial({"priorityClassName": ""}), OUR_CLASS, id="no class"),
        pytest.param(trial(marked=False), "pods bear the label", id="pods that no NetworkPolicy would find"),
        pytest.param(trial({"restartPolicy": "OnFailure"}), ONCE, id="restarts"),
        pytest.param(trial(backoffLimit=1), ONCE, id="retries"),
        pytest.param(trial(activeDeadlineSeconds=None), ONCE, id="no deadline"),
        pytest.param(trial({"automountServiceAccountToken": True}), NO_TOKEN, id="token"),
        pytest.param(trial({"automountServiceAccountToken": None}), NO_TOKEN, id="token by default"),
        pytest.param(trial({"serviceAccountName": "builder"}), NO_TOKEN, id="account"),
        pytest.param(trial({"serviceAccount": "builder"}), NO_TOKEN, id="account by its old name"),
        pytest.param(trial(of_volume(TOKEN)), NO_TOKEN, id="projected token"),
        pytest.param(trial({"hostNetwork": True}), HOST, id="hostNetwork"),
        pytest.param(trial({"hostPID": True}), HOST, id="hostPID"),
        pytest.param(trial({"hostIPC": True}), HOST, id="hostIPC"),
        pytest.param(trial({"nodeName": "node-1"}), HOST, id="nodeName"),
        pytest.param(trial(of_container(ports=[{"containerPort": 80, "hostPort": 80}])), HOST, id="hostPort"),
        pytest.param(trial(of_volume({"hostPath": {"path": "/"}}, read_only=True)), HOST, id="hostPath"),
        pytest.param(trial(of_container(livenessProbe=CALL)), HOST, id="a liveness probe that calls out"),
        pytest.param(trial(of_container(readinessProbe=KNOCK)), HOST, id="a readiness probe that calls out"),
        pytest.param(trial(of_container(startupProbe=CALL)), HOST, id="a start-up probe that calls out"),
        pytest.param(trial(of_container(lifecycle={"postStart": CALL})), HOST, id="a hook at the start that calls out"),
        pytest.param(trial(of_container(lifecycle={"preStop": KNOCK})), HOST, id="a hook at the end that calls out"),
        pytest.param(trial({"initContainers": [of_container(name="init", restartPolicy="Always", livenessProbe=CALL)["containers"][0]]}), HOST, id="a native sidecar's probe that calls out"),
        pytest.param(trial(of_container(volumeDevices=[{"name": "v", "devicePath": "/dev/v"}]) | {"volumes": [{"name": "v"} | CLAIM]}), HOST, id="block device"),
        pytest.param(trial(of_volume(CLAIM)), READ_ONLY, id="a claim, writable by default"),
        pytest.param(trial(of_volume(CLAIM, read_only=False)), READ_ONLY, id="a claim, writable"),
        pytest.param(trial(of_volume({"nfs": {"server": "s", "path": "/"}})), READ_ONLY, id="nfs, writable"),
        pytest.param(trial(of_volume({"csi": {"driver": "d"}})), READ_ONLY, id="csi, writable"),
        pytest.param(trial(of_container(securityContext={"privileged": True})), PRIVILEGED, id="privileged"),
        pytest.param(trial({"initContainers": of_container(name="init", securityContext={"privileged": True})["containers"]}), PRIVILEGED, id="privileged init container"),
        pytest.param(trial({"containers": [*of_container()["containers"], {"name": "side", "image": "i", "securityContext": {"privileged": True}}]}), PRIVILEGED, id="privileged side-car"),
        pytest.param(trial(of_container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}})), PRIVILEGED, id="capability"),
        pytest.param(trial(of_container(securityContext={"capabilities": {"add": ["ALL"]}})), PRIVILEGED, id="every capability"),
        pytest.param(trial({"hostUsers": False} | of_container(securityContext={"procMount": "Unmasked"})), PRIVILEGED, id="procMount"),
        pytest.param(trial(of_container(securityContext={"seccompProfile": {"type": "Unconfined"}})), CONFINED, id="seccomp"),
        pytest.param(trial({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), CONFINED, id="seccomp of the pod"),
        pytest.param(trial(of_container(securityContext={"appArmorProfile": {"type": "Unconfined"}})), CONFINED, id="AppArmor"),
        pytest.param(trial(of_container(securityContext={"seLinuxOptions": {"type": "spc_t"}})), CONFINED, id="SELinux type"),
        pytest.param(trial({"securityContext": {"seLinuxOptions": {"role": "system_r"}}}), CONFINED, id="SELinux role"),
        pytest.param(trial({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}), CONFINED, id="sysctl"),
        pytest.param(trial({"hostNetwork": True, "securityContext": {"windowsOptions": {"hostProcess": True}}}), HOST, id="host process, which needs the host's network"),
    ],
)  # fmt: skip
def test_a_harmful_trial_is_refused(operator: Access, enabled: str, item: Object, why: str) -> None:
    """Even where the operator itself asks for it: the API server refuses, and says what is wrong."""
    reply = operator.post(jobs(enabled) + "?dryRun=All", item)
    assert reply.status == 403, reply.body
    assert why in reply.message


POD_OWNER = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": True}


def pod_of(item: Object) -> Object:
    """A pod as the Job controller makes it of a Job's template."""
    template = item["spec"]["template"]
    metadata = {"name": "p", "labels": item["metadata"]["labels"], "ownerReferences": [POD_OWNER]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize(
    ("item", "status"),
    [
        pytest.param(trial(), 201, id="plain"),
        pytest.param(trial(of_volume({"secret": {"secretName": "s"}})), 201, id="a Secret, at its owner's word"),
        pytest.param(trial(of_volume({"projected": {"sources": [{"configMap": {"name": "c"}}]}})), 201, id="projected ConfigMaps"),
        pytest.param(trial(of_volume(NO_SOURCE)), 201, id="a projected volume of which nothing is left"),
        pytest.param(trial(of_volume(TOKEN)), 403, id="a token that a webhook has added"),
        pytest.param(trial({"volumes": [{"name": "v"} | TOKEN]}), 403, id="a token that nothing mounts yet"),
        pytest.param(trial({"automountServiceAccountToken": None}), 403, id="the token that the server itself adds"),
        pytest.param(job(pod=of_volume(TOKEN)), 201, id="the running job's own token"),
    ],
)  # fmt: skip
def test_no_token_is_added_to_a_trials_pod(installed: Cluster, enabled: str, item: Object, status: int) -> None:
    """The policy is asked after all that changes a pod: what the server's own admission has added is refused like any other."""
    reply = installed.user(JOB_CONTROLLER).post(path(enabled, "pods") + "?dryRun=All", pod_of(item))
    assert reply.status == status, reply.message
    assert status == 201 or "a trial gets no token: something has added one to its pod" in reply.message
    assert status == 201 or "the service account default an identity; take it away from that account" in reply.message


def test_what_is_refused_of_a_trial_is_the_users_own_to_ask_for(operator: Access, enabled: str) -> None:
    """The running job is the owner's pod, under the namespace's own rules: the policy of trials does not judge it."""
    assert operator.post(jobs(enabled) + "?dryRun=All", job(pod={"hostNetwork": True})).status == 201

"""Which templates may be copied as trials, and what is said of the others?"""

from typing import Any

import pytest

from amdahl_loop.domain.isolation import MAX_SHOWN, find_obstacles, say_obstacles
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.template import PodTemplate
from amdahl_loop.domain.tuning import Placement, Trial
from builders import make_manifest

DOUBT, REFUSE, RESERVE = Reason.NOT_ISOLATED, Reason.UNSAFE_TEMPLATE, Reason.EXCLUSIVE_STORAGE
PLAIN: dict[str, Any] = {}


def make_template(
    pod: dict[str, Any] | None = None, container: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> PodTemplate:
    """A legal template with further fields of the pod, of the trainer and of the metadata."""
    manifest = make_manifest()
    template = manifest["spec"]["template"]
    template["spec"]["containers"][0] |= container or {}
    template["spec"] |= pod or {}
    if metadata is not None:
        template["metadata"] = metadata
    return parse_training_job(manifest).spec.template


def volume(**source: Any) -> dict[str, Any]:
    """A pod with one volume."""
    return {"volumes": [{"name": "data", **source}]}


def env(name: str, value: str = "", **source: Any) -> dict[str, Any]:
    """A container with one variable."""
    return {"env": [{"name": name, **({"value": value} if value else {}), **source}]}


def secured(**security: Any) -> dict[str, Any]:
    """A security context."""
    return {"securityContext": security}


def sidecar(kind: str, **fields: Any) -> dict[str, Any]:
    """A pod with a second container."""
    trainer = {"name": "trainer", "image": "x", "command": ["x"]}
    other = {"name": "side", "image": "y", **fields}
    return {"containers": [trainer, other]} if kind == "containers" else {kind: [other]}


SECRET_ENV = env("KEY", valueFrom={"secretKeyRef": {"name": "s", "key": "k"}})
BAD = [
    # field, reason, pod, container, metadata
    pytest.param("volumes[data].hostPath", REFUSE, volume(hostPath={"path": "/"}), PLAIN, id="host path"),
    pytest.param("hostNetwork", REFUSE, {"hostNetwork": True}, PLAIN, id="host network"),
    pytest.param("hostPID", REFUSE, {"hostPID": True}, PLAIN, id="host processes"),
    pytest.param("hostIPC", REFUSE, {"hostIPC": True}, PLAIN, id="host memory"),
    pytest.param("nodeName", REFUSE, {"nodeName": "a"}, PLAIN, id="past the scheduler"),
    pytest.param("privileged", REFUSE, PLAIN, secured(privileged=True), id="privileged"),
    pytest.param("procMount", REFUSE, PLAIN, secured(procMount="Unmasked"), id="unmasked proc"),
    pytest.param("add[SYS_ADMIN]", REFUSE, PLAIN, secured(capabilities={"add": ["SYS_ADMIN"]}), id="capability"),
    pytest.param("add[CAP_SYS_PTRACE]", REFUSE, PLAIN, secured(capabilities={"add": ["CAP_SYS_PTRACE"]}), id="long name"),
    pytest.param("add[ALL]", REFUSE, PLAIN, secured(capabilities={"add": ["ALL"]}), id="all capabilities"),
    pytest.param("seccompProfile", REFUSE, secured(seccompProfile={"type": "Unconfined"}), PLAIN, id="pod's seccomp"),
    pytest.param("seccompProfile", REFUSE, PLAIN, secured(seccompProfile={"type": "Unconfined"}), id="seccomp"),
    pytest.param("appArmorProfile", REFUSE, PLAIN, secured(appArmorProfile={"type": "Unconfined"}), id="AppArmor"),
    pytest.param("seLinuxOptions", REFUSE, PLAIN, secured(seLinuxOptions={"type": "spc_t"}), id="SELinux type"),
    pytest.param("seLinuxOptions", REFUSE, secured(seLinuxOptions={"user": "root"}), PLAIN, id="SELinux user"),
    pytest.param("hostProcess", REFUSE, secured(windowsOptions={"hostProcess": True}), PLAIN, id="Windows host"),
    pytest.param("sysctls[kernel.msgmax]", REFUSE, secured(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), PLAIN, id="sysctl"),
    pytest.param("ports[http].hostPort", REFUSE, PLAIN, {"ports": [{"name": "http", "hostPort": 80}]}, id="host port"),
    pytest.param("ports[80].hostPort", REFUSE, PLAIN, {"ports": [{"hostPort": 80}]}, id="nameless host port"),
    pytest.param("initContainers[side].securityContext.privileged", REFUSE, sidecar("initContainers", **secured(privileged=True)), PLAIN, id="initialising container"),
    pytest.param("containers[side].securityContext.privileged", REFUSE, sidecar("containers", **secured(privileged=True)), PLAIN, id="sidecar"),
    pytest.param("volumes[data]", REFUSE, volume(gitRepo={"repository": "https://example.com/r"}), PLAIN, id="a kind that cannot be closed"),
    pytest.param("volumes[data]", REFUSE, volume(tapeRobot={"slot": 1}), PLAIN, id="a kind that nobody knows"),
    pytest.param("volumes[data]", REFUSE, volume(), PLAIN, id="no kind"),
    pytest.param("volumes[data]", REFUSE, volume(emptyDir={}, nfs={"server": "s", "path": "/"}), PLAIN, id="two kinds"),
    pytest.param("volumeDevices[raw]", REFUSE, PLAIN, {"volumeDevices": [{"name": "raw", "devicePath": "/dev/x"}]}, id="block device"),
    pytest.param("containers[side].livenessProbe", REFUSE, sidecar("containers", livenessProbe={"httpGet": {"host": "10.0.0.1", "port": 80}}), PLAIN, id="probe that calls out"),
    pytest.param("initContainers[side].startupProbe", REFUSE, sidecar("initContainers", restartPolicy="Always", startupProbe={"tcpSocket": {"host": "10.0.0.1", "port": 80}}), PLAIN, id="native sidecar's probe that calls out"),
    pytest.param("containers[side].lifecycle.preStop", REFUSE, sidecar("containers", lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 80}}}), PLAIN, id="hook that calls out"),
    pytest.param("volumes[data].secret", DOUBT, volume(secret={"secretName": "s"}), PLAIN, id="secret volume"),
    pytest.param("volumes[data].csi", DOUBT, volume(csi={"driver": "secrets-store.csi.k8s.io"}), PLAIN, id="inline driver"),
    pytest.param("projected.secret", DOUBT, volume(projected={"sources": [{"secret": {"name": "s"}}]}), PLAIN, id="projected secret"),
    pytest.param("projected.serviceAccountToken", DOUBT, volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]}), PLAIN, id="projected token"),
    pytest.param("projected.podCertificate", DOUBT, volume(projected={"sources": [{"podCertificate": {}}]}), PLAIN, id="projected certificate"),
    pytest.param("envFrom[0]", DOUBT, PLAIN, {"envFrom": [{"configMapRef": {"name": "c"}}]}, id="variables nobody has listed"),
    pytest.param("env[KEY].valueFrom.secretKeyRef", DOUBT, PLAIN, SECRET_ENV, id="variable from a secret"),
    pytest.param("containers[side].env[KEY]", DOUBT, sidecar("containers", **SECRET_ENV), PLAIN, id="a sidecar's secret"),
    pytest.param("env[AWS_SECRET_ACCESS_KEY]", DOUBT, PLAIN, env("AWS_SECRET_ACCESS_KEY", "x"), id="AWS key"),
    pytest.param("env[WANDB_API_KEY]", DOUBT, PLAIN, env("WANDB_API_KEY", "x"), id="tracker's key"),
    pytest.param("env[hf_token]", DOUBT, PLAIN, env("hf_token", "x"), id="token, lower case"),
    pytest.param("env[STORE]", DOUBT, PLAIN, env("STORE", "s3://me:secret@host/"), id="password in an address"),
    pytest.param("serviceAccountName", DOUBT, {"serviceAccountName": "uploader"}, PLAIN, id="account"),
    pytest.param("serviceAccountName", DOUBT, {"serviceAccount": "uploader"}, PLAIN, id="account, old name"),
    pytest.param("resourceClaims[gpu]", RESERVE, {"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]}, PLAIN, id="device claim"),
    pytest.param("persistentVolumeClaim", RESERVE, volume(persistentVolumeClaim={"claimName": "single"}), PLAIN, id="single pod's volume"),
]  # fmt: skip
MODES = {"single": ["ReadWriteOncePod"], "shared": ["ReadWriteMany"], "node": ["ReadWriteOnce"]}


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize(("field", "reason", "pod", "container"), BAD)
def test_each_obstacle_is_found_and_only_its_owner_s_word_lifts_it(
    isolated: bool, placement: Placement, field: str, reason: Reason, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """Credentials wait for the owner's word, exclusive things for the job to stop, powers are never given."""
    trial = Trial(isolated=isolated, placement=placement)
    found = find_obstacles(make_template(pod, container), trial, MODES)
    is_lifted = (reason is DOUBT and isolated) or (reason is RESERVE and placement is Placement.IN_TURN)
    if is_lifted:
        assert found == ()
    else:
        (obstacle,) = found
        assert obstacle.reason is reason
        assert field in obstacle.field
        assert obstacle.field.startswith("spec.template.spec")
        assert obstacle.why
        assert obstacle.fix
        assert ("isolated: true" in obstacle.fix) == (reason is DOUBT)


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ({"labels": {"azure.workload.identity/use": "true"}}, DOUBT),
        ({"annotations": {"vault.hashicorp.com/agent-inject": "true"}}, DOUBT),
        ({"annotations": {"vault.hashicorp.com/agent-inject": "false"}}, None),
        ({"annotations": {"iam.amazonaws.com/role": "writer"}}, DOUBT),
        ({"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}, REFUSE),
        ({"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "runtime/default"}}, None),
        ({"labels": {"team": "speech"}}, None),
        ({"labels": None, "annotations": {"vault.hashicorp.com/agent-inject": None}}, DOUBT),
    ],
)
def test_marks_for_webhooks_count(marks: dict[str, Any], reason: Reason | None) -> None:
    """Identities and secrets are handed out by label and annotation too."""
    found = find_obstacles(make_template(metadata=marks), Trial())
    assert [obstacle.reason for obstacle in found] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("pod", "container"),
    [
        pytest.param(PLAIN, PLAIN, id="nothing"),
        pytest.param(volume(emptyDir={}), PLAIN, id="scratch"),
        pytest.param(volume(configMap={"name": "c"}), PLAIN, id="config map"),
        pytest.param(volume(projected={"sources": [{"configMap": {"name": "c"}}]}), PLAIN, id="projected config map"),
        pytest.param(volume(persistentVolumeClaim={"claimName": "shared"}), PLAIN, id="shared claim"),
        pytest.param(volume(persistentVolumeClaim={"claimName": "node"}), PLAIN, id="one node's claim"),
        pytest.param(volume(persistentVolumeClaim={"claimName": "absent"}), PLAIN, id="a claim that is not there"),
        pytest.param({"volumes": None, "initContainers": None}, PLAIN, id="explicit nulls"),
        pytest.param(volume(nfs={"server": "s", "path": "/"}), PLAIN, id="a share, which is mounted read-only"),
        pytest.param(volume(image={"reference": "example/model:1"}), PLAIN, id="an image's files"),
        pytest.param(volume(projected={"sources": None}), PLAIN, id="nothing projected"),
        pytest.param(PLAIN, {"ports": [{"name": None, "containerPort": 80}]}, id="a port without a name"),
        pytest.param(sidecar("initContainers", restartPolicy="Always"), PLAIN, id="a native sidecar"),
        pytest.param(
            sidecar("containers", livenessProbe={"httpGet": {"port": 80}}, lifecycle={"preStop": {"exec": {}}}),
            PLAIN,
            id="a sidecar's own probe and hook",
        ),
        pytest.param(
            PLAIN,
            {"livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}}},
            id="the trainer's probe, which no trial has",
        ),
        pytest.param({"shareProcessNamespace": True, "hostUsers": False}, PLAIN, id="one process namespace in the pod"),
        pytest.param(
            {"priorityClassName": "system-cluster-critical", "priority": 2_000_000_000, "schedulerName": "s"},
            PLAIN,
            id="a priority, which no trial has",
        ),
        pytest.param(
            {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"}, "topologySpreadConstraints": []},
            PLAIN,
            id="where it may run",
        ),
        pytest.param(
            {"automountServiceAccountToken": True}, PLAIN, id="the default account's token, which no trial has"
        ),
        pytest.param(PLAIN, env("WANDB_MODE", "online"), id="a tracker, which no trial reaches"),
        pytest.param(PLAIN, env("CHECKPOINT_URI", "s3://bucket/run"), id="a store without a key to it"),
        pytest.param({"serviceAccountName": "default"}, PLAIN, id="the default account"),
        pytest.param({"hostNetwork": False, "hostUsers": False}, PLAIN, id="powers declined"),
        pytest.param({"imagePullSecrets": [{"name": "registry"}]}, PLAIN, id="the kubelet's own secret"),
        pytest.param(
            {"resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}]}, PLAIN, id="a claim per pod"
        ),
        pytest.param(
            secured(sysctls=[{"name": "net.ipv4.tcp_syncookies"}], runAsNonRoot=True), PLAIN, id="safe sysctl"
        ),
        pytest.param(PLAIN, secured(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}), id="restricted"),
        pytest.param(PLAIN, secured(seccompProfile={"type": "RuntimeDefault"}, privileged=False), id="confined"),
        pytest.param(PLAIN, env("MAX_TOKENS", "512"), id="tokens of text"),
        pytest.param(PLAIN, env("TOKENIZERS_PARALLELISM", "false"), id="tokenizers"),
        pytest.param(PLAIN, env("HF_TOKEN"), id="a variable without a value"),
        pytest.param(PLAIN, env("STORE", "http://host:80/path@v1"), id="an address without a password"),
        pytest.param(PLAIN, env("NODE", valueFrom={"fieldRef": {"fieldPath": "spec.nodeName"}}), id="downward"),
        pytest.param(PLAIN, env("A", valueFrom={"configMapKeyRef": {"name": "c", "key": "k"}}), id="a named key"),
        pytest.param(PLAIN, {"ports": [{"containerPort": 80}]}, id="a port of its own"),
    ],
)
def test_ordinary_templates_are_free(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """What cannot reach the outside stands in nobody's way."""
    assert find_obstacles(make_template(pod, container), Trial(), MODES) == ()


def test_every_obstacle_is_listed_and_the_sentence_is_bounded() -> None:
    """A template with eight secrets: eight obstacles, five of them by name."""
    many = {"env": [{"name": f"K{n}", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}} for n in range(8)]}
    found = find_obstacles(make_template(container=many), Trial())
    assert len(found) == 8
    sentence = say_obstacles(found)
    assert sentence.count("secretKeyRef") == MAX_SHOWN
    assert "; and 3 more. To go on, set spec.tuning.trial.isolated: true" in sentence


def test_one_obstacle_says_field_reason_and_way_out() -> None:
    """The whole sentence, as `TrialsBlocked` shows it."""
    found = find_obstacles(make_template(volume(hostPath={"path": "/"})), Trial(isolated=True))
    assert say_obstacles(found) == (
        "No trial is started: spec.template.spec.volumes[data].hostPath reaches the node's own files. "
        "To go on, use a persistent volume claim."
    )

"""What in a pod template stands in the way of running copies of it as trials?

Two kinds of obstacle. Credentials: a copy could write to the outside again and again, so trials wait for the owner's
word that it cannot (`tuning.trial.isolated`). Powers: a trial never gets host access, or a share of what one pod holds
alone, whatever anybody says; a template that needs them is not tried.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from amdahl_loop.domain.pod_parts import (
    CLOSABLE_VOLUMES,
    IMMUTABLE_VOLUMES,
    PRIVATE_VOLUMES,
    ContainerPart,
    Lifecycle,
    MetadataPart,
    PodPart,
    SecurityContext,
    Variable,
    Volume,
    read_parts,
)
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.template import TRAINER_CONTAINER, PodTemplate
from amdahl_loop.domain.tuning import Placement, Trial
from amdahl_loop.domain.values import Frozen

SINGLE_POD = "ReadWriteOncePod"
MAX_SHOWN = 5
"""So many obstacles are named in a sentence; the rest are counted."""

_TEMPLATE = "spec.template"
_POD = "spec.template.spec"


class Obstacle(Frozen):
    """One thing that keeps trials from starting: the field, what is wrong with it, and the way out.

    `reason` is NotIsolated (the owner can vouch for it), ExclusiveStorage (no matter when trials run in turn with the
    job), UnsafeTemplate (never given to a trial) or ProbeRemoved (the job itself cannot be measured).
    """

    reason: Reason
    field: str
    why: str
    fix: str

    def __str__(self) -> str:
        """Text for a sentence: field and why."""
        return f"{self.field} {self.why}"


def find_obstacles(
    template: PodTemplate, trial: Trial, access_modes: Mapping[str, Sequence[str]] | None = None
) -> tuple[Obstacle, ...]:
    """Everything that keeps trials of this template from starting, in the template's order; empty: they may start.

    `access_modes` are those of the namespace's persistent volume claims by name. A claim that is not there blocks
    nothing: the job itself cannot run without it.
    """
    parts = read_parts(template)
    found = (
        *_read_marks(parts.metadata or MetadataPart()),
        *_read_pod(parts.spec),
        *(o for volume in parts.spec.volumes or () for o in _read_volume(volume, access_modes or {})),
        *_read_containers("initContainers", parts.spec.init_containers),
        *_read_containers("containers", parts.spec.containers),
    )
    waived = {Reason.NOT_ISOLATED} if trial.isolated else set()
    if trial.placement is Placement.IN_TURN:
        waived.add(Reason.EXCLUSIVE_STORAGE)
    return tuple(obstacle for obstacle in found if obstacle.reason not in waived)


def miss_probe() -> Obstacle:
    """The job runs without the probe: the program ended at its start with it, and the template names no path.

    Most likely the image sets `PYTHONPATH` itself: the probe's hides it, and nobody outside the container can read it.
    """
    return Obstacle(
        reason=Reason.PROBE_REMOVED,
        field=f"{_POD}.containers[{TRAINER_CONTAINER}].env",
        why="names no PYTHONPATH; with the probe's alone the program ended at its start, so it runs without the probe",
        fix="name PYTHONPATH there as the image has it, or empty; the probe is put before what the template says",
    )


def say_obstacles(obstacles: Sequence[Obstacle]) -> str:
    """One sentence: the first few obstacles, how many more there are, and the first one's way out."""
    shown = "; ".join(str(obstacle) for obstacle in obstacles[:MAX_SHOWN])
    more = f"; and {len(obstacles) - MAX_SHOWN} more" if len(obstacles) > MAX_SHOWN else ""
    return f"No trial is started: {shown}{more}. To go on, {obstacles[0].fix}."


def _doubt(field: str, why: str, fix: str = "") -> Obstacle:
    """Something that holds credentials: an obstacle until the owner vouches for it."""
    vouch = "set spec.tuning.trial.isolated: true if a copy of the pod can write to nothing outside it"
    return Obstacle(reason=Reason.NOT_ISOLATED, field=field, why=why, fix=f"{fix}, or {vouch}" if fix else vouch)


def _refuse(field: str, why: str, fix: str = "remove it") -> Obstacle:
    """Something that no trial ever gets."""
    return Obstacle(reason=Reason.UNSAFE_TEMPLATE, field=field, why=why, fix=fix)


def _reserve(field: str, why: str, fix: str) -> Obstacle:
    """Something that one pod holds alone: a trial gets it only when the job has stopped for it."""
    in_turn = "set spec.tuning.trial.placement: InTurn"
    return Obstacle(reason=Reason.EXCLUSIVE_STORAGE, field=field, why=why, fix=f"{fix}, or {in_turn}")


_CREDENTIAL_MARKS = {
    "azure.workload.identity/use": "asks for an Azure identity",
    "iam.amazonaws.com/role": "asks for an AWS role",
    "vault.hashicorp.com/agent-inject": "has Vault's secrets put into the pod",
}
_UNCONFINED_MARK = "container.apparmor.security.beta.kubernetes.io/"


def _read_marks(metadata: MetadataPart) -> Iterator[Obstacle]:
    """Labels and annotations by which webhooks hand out credentials, or that switch a confinement off."""
    for kind, marks in (("labels", metadata.labels), ("annotations", metadata.annotations)):
        for name, value in (marks or {}).items():
            field = f"{_TEMPLATE}.metadata.{kind}[{name}]"
            if name in _CREDENTIAL_MARKS and value != "false":
                yield _doubt(field, _CREDENTIAL_MARKS[name], "drop it")
            if name.startswith(_UNCONFINED_MARK) and value == "unconfined":
                yield _refuse(field, "switches AppArmor off")


def _read_pod(pod: PodPart) -> Iterator[Obstacle]:
    shared = {"hostNetwork": pod.host_network, "hostPID": pod.host_pid, "hostIPC": pod.host_ipc}
    for name, is_shared in shared.items():
        if is_shared:
            yield _refuse(f"{_POD}.{name}", "shares a namespace of the node")
    if pod.node_name:
        yield _refuse(f"{_POD}.nodeName", "goes past the scheduler and its priorities", "use nodeSelector instead")
    account = pod.service_account_name or pod.service_account or "default"
    if account != "default":
        yield _doubt(f"{_POD}.serviceAccountName", f"{account} may be known outside the cluster", "drop it")
    yield from _read_security(_POD, pod.security_context)
    for claim in pod.resource_claims or ():
        if claim.resource_claim_name:
            field = f"{_POD}.resourceClaims[{claim.name}]"
            yield _reserve(field, "is a device claim that the job holds", "use resourceClaimTemplateName")


_HARMLESS_VOLUMES = PRIVATE_VOLUMES | IMMUTABLE_VOLUMES | CLOSABLE_VOLUMES
"""What is the pod's own, or can be closed to a trial; a kind that is not known to be harmless is not."""


def _read_volume(volume: Volume, access_modes: Mapping[str, Sequence[str]]) -> Iterator[Obstacle]:
    field = f"{_POD}.volumes[{volume.name}]"
    if volume.host_path is not None:
        yield _refuse(f"{field}.hostPath", "reaches the node's own files", "use a persistent volume claim")
    elif len(volume.kinds) != 1 or not volume.kinds <= _HARMLESS_VOLUMES:
        said = ", ".join(sorted(volume.kinds)) or "no kind"
        yield _refuse(field, f"is of {said}, which cannot be made read-only", "use a persistent volume claim")
    if volume.secret is not None:
        yield _doubt(f"{field}.secret", "holds a Secret")
    if volume.csi is not None:
        yield _doubt(f"{field}.csi", "may hold credentials")
    for source in (volume.projected.sources or ()) if volume.projected else ():
        held = {
            "secret": source.secret,
            "serviceAccountToken": source.service_account_token,
            "podCertificate": source.pod_certificate,
        }
        for name, part in held.items():
            if part is not None:
                yield _doubt(f"{field}.projected.{name}", "holds a credential")
    claim = volume.persistent_volume_claim.claim_name if volume.persistent_volume_claim else ""
    if SINGLE_POD in access_modes.get(claim, ()):
        why = f"names {claim}, which is {SINGLE_POD} and held by the job"
        yield _reserve(f"{field}.persistentVolumeClaim", why, "use a claim that several pods may share")


def _read_containers(kind: str, containers: Sequence[ContainerPart] | None) -> Iterator[Obstacle]:
    for container in containers or ():
        field = f"{_POD}.{kind}[{container.name}]"
        for index, _ in enumerate(container.env_from or ()):
            yield _doubt(f"{field}.envFrom[{index}]", "brings variables that nobody has listed", "list them under env")
        for variable in container.env or ():
            yield from _read_variable(f"{field}.env[{variable.name}]", variable)
        for port in container.ports or ():
            if port.host_port:
                yield _refuse(f"{field}.ports[{port.name or port.host_port}].hostPort", "takes a port of the node")
        for device in container.volume_devices or ():
            fix = "mount it as a file system"
            yield _refuse(f"{field}.volumeDevices[{device.name}]", "reaches a raw block device", fix)
        if container.name != TRAINER_CONTAINER:  # a trial drops the trainer's own: they watch another program
            yield from _read_handlers(field, container)
        yield from _read_security(field, container.security_context)


def _read_handlers(field: str, container: ContainerPart) -> Iterator[Obstacle]:
    """Probes and hooks that make the node's kubelet send requests elsewhere than to the pod."""
    lifecycle = container.lifecycle or Lifecycle()
    handlers = {
        "livenessProbe": container.liveness_probe,
        "readinessProbe": container.readiness_probe,
        "startupProbe": container.startup_probe,
        "lifecycle.postStart": lifecycle.post_start,
        "lifecycle.preStop": lifecycle.pre_stop,
    }
    for name, handler in handlers.items():
        for target in (handler.http_get, handler.tcp_socket) if handler is not None else ():
            if target is not None and target.host:
                yield _refuse(f"{field}.{name}", f"makes the node call {target.host[:80]}", "drop its host")


_CREDENTIAL_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET|ACCOUNT|AUTH)_?KEY(_ID)?)$"
)
"""Names under which programs look for credentials; the word has to be the last one, so that MAX_TOKENS passes."""
_CREDENTIAL_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def _read_variable(field: str, variable: Variable) -> Iterator[Obstacle]:
    """A variable that comes from a Secret, or that is a credential in plain sight."""
    if variable.value_from is not None and variable.value_from.secret_key_ref is not None:
        yield _doubt(f"{field}.valueFrom.secretKeyRef", "holds a Secret")
    elif variable.value and (_CREDENTIAL_NAME.search(variable.name.upper()) or _CREDENTIAL_URL.search(variable.value)):
        yield _doubt(field, "looks like a credential", "rename it if it is none")


_CAPABILITIES = frozenset(
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"}
    | {"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)
_SELINUX_TYPES = frozenset({None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
_SYSCTLS = frozenset(
    {"kernel.shm_rmid_forced"}
    | {f"net.ipv4.ip_{name}" for name in ("local_port_range", "local_reserved_ports", "unprivileged_port_start")}
    | {f"net.ipv4.tcp_keepalive_{name}" for name in ("time", "intvl", "probes")}
    | {"net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_syncookies"}
)
"""What the baseline level of the Pod Security Standards allows, as of Kubernetes 1.34."""


def _read_security(owner: str, security: SecurityContext | None) -> Iterator[Obstacle]:
    """Powers over the node, of a pod or a container: everything beyond the baseline of the Pod Security Standards."""
    if security is None:
        return
    field = f"{owner}.securityContext"
    if security.privileged:
        yield _refuse(f"{field}.privileged", "has every power of the node")
    if security.proc_mount not in (None, "", "Default"):
        yield _refuse(f"{field}.procMount", "unmasks the node's /proc")
    for capability in (security.capabilities.add or ()) if security.capabilities else ():
        if capability.upper().removeprefix("CAP_") not in _CAPABILITIES:
            yield _refuse(f"{field}.capabilities.add[{capability}]", "is a power over the node")
    yield from _read_confinement(field, security)
    for sysctl in security.sysctls or ():
        if sysctl.name not in _SYSCTLS:
            yield _refuse(f"{field}.sysctls[{sysctl.name}]", "changes the node's kernel")


def _read_confinement(field: str, security: SecurityContext) -> Iterator[Obstacle]:
    """Profiles that keep a container inside, switched off."""
    profiles = {"seccompProfile": security.seccomp_profile, "appArmorProfile": security.app_armor_profile}
    for name, profile in profiles.items():
        if profile is not None and profile.type == "Unconfined":
            yield _refuse(f"{field}.{name}", "is Unconfined", "use RuntimeDefault")
    options = security.se_linux_options
    if options is not None and (options.type not in _SELINUX_TYPES or options.user or options.role):
        yield _refuse(f"{field}.seLinuxOptions", "leaves the container's confinement")
    if security.windows_options is not None and security.windows_options.host_process:
        yield _refuse(f"{field}.windowsOptions.hostProcess", "is a process of the node")

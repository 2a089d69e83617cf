"""Which parts of a pod can hand out credentials or powers?

The fields that isolation is judged by, as Kubernetes names them; everything else of a template is passed over. A part
that is not shaped as Kubernetes shapes it does not parse: nobody knows what it would do.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.template import PodTemplate

Present = dict[str, Any] | None
"""An object of which only the presence matters."""

PRIVATE_VOLUMES = frozenset({"emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected"})
"""Kinds that are the pod's own, or read-only by nature."""
IMMUTABLE_VOLUMES = frozenset({"image"})
"""Kinds that cannot be written to, and whose mounts say so."""
CLOSABLE_VOLUMES = frozenset(
    {"persistentVolumeClaim", "csi", "nfs", "iscsi", "cephfs", "rbd", "glusterfs", "fc", "flexVolume"}
    | {"azureDisk", "azureFile", "awsElasticBlockStore", "gcePersistentDisk", "cinder"}
    | {"portworxVolume", "quobyte", "scaleIO", "storageos"}
)
"""Kinds with a `readOnly` of their own."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Typed(_Part):
    """A profile or option that is told by its type."""

    type: str | None = None
    user: str | None = None
    role: str | None = None


class Named(_Part):
    """Anything that is told by its name."""

    name: str = ""


class WindowsOptions(_Part):
    """Options of Windows pods."""

    host_process: bool | None = None


class Capabilities(_Part):
    """Linux capabilities beside the runtime's own."""

    add: tuple[str, ...] | None = None


class SecurityContext(_Part):
    """What a pod or a container may do."""

    privileged: bool | None = None
    proc_mount: str | None = None
    capabilities: Capabilities | None = None
    seccomp_profile: Typed | None = None
    app_armor_profile: Typed | None = None
    se_linux_options: Typed | None = None
    windows_options: WindowsOptions | None = None
    sysctls: tuple[Named, ...] | None = None


class ValueFrom(_Part):
    """Where a variable's value comes from."""

    secret_key_ref: Present = None


class Variable(Named):
    """One variable of a container."""

    value: str | None = None
    value_from: ValueFrom | None = None


class Port(Named):
    """One port of a container."""

    host_port: int | None = None


class Target(_Part):
    """Whom a request of the kubelet's goes to."""

    host: str | None = None


class Handler(_Part):
    """A probe or a hook; one that names a host makes the kubelet call out."""

    http_get: Target | None = None
    tcp_socket: Target | None = None


class Lifecycle(_Part):
    """Hooks of a container."""

    post_start: Handler | None = None
    pre_stop: Handler | None = None


class ContainerPart(Named):
    """One container, initialising or not."""

    env: tuple[Variable, ...] | None = None
    env_from: tuple[dict[str, Any], ...] | None = None
    ports: tuple[Port, ...] | None = None
    security_context: SecurityContext | None = None
    volume_devices: tuple[Named, ...] | None = None
    liveness_probe: Handler | None = None
    readiness_probe: Handler | None = None
    startup_probe: Handler | None = None
    lifecycle: Lifecycle | None = None


class ProjectedSource(_Part):
    """One source of a projected volume."""

    secret: Present = None
    service_account_token: Present = None
    pod_certificate: Present = None


class Projected(_Part):
    """A projected volume."""

    sources: tuple[ProjectedSource, ...] | None = None


class ClaimSource(_Part):
    """A volume by its persistent volume claim."""

    claim_name: str = ""


class Volume(Named):
    """One volume."""

    model_config = ConfigDict(extra="allow")
    host_path: Present = None
    secret: Present = None
    csi: Present = None
    projected: Projected | None = None
    persistent_volume_claim: ClaimSource | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that it is declared to be of; Kubernetes takes exactly one."""
        return frozenset(self.model_dump(by_alias=True, exclude_unset=True)) - {"name"}


class ResourceClaim(Named):
    """One device claim."""

    resource_claim_name: str | None = None


class PodPart(_Part):
    """One pod."""

    host_network: bool | None = None
    host_pid: Annotated[bool | None, Field(alias="hostPID")] = None
    host_ipc: Annotated[bool | None, Field(alias="hostIPC")] = None
    node_name: str | None = None
    service_account_name: str | None = None
    service_account: str | None = None
    security_context: SecurityContext | None = None
    volumes: tuple[Volume, ...] | None = None
    resource_claims: tuple[ResourceClaim, ...] | None = None
    init_containers: tuple[ContainerPart, ...] | None = None
    containers: tuple[ContainerPart, ...]


class MetadataPart(_Part):
    """Marks by which webhooks know a pod."""

    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None


class TemplatePart(_Part):
    """A pod template."""

    metadata: MetadataPart | None = None
    spec: PodPart


def read_parts(template: PodTemplate) -> TemplatePart:
    """The parts of a template; ValidationError names the field that nobody can read."""
    return TemplatePart.model_validate(template.model_dump(by_alias=True, mode="json"))

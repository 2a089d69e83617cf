"""Which parts of a pod does the loop read, and how is each shaped?

The fields that isolation is judged by and those that rendering adds to, as Kubernetes names them; everything else of a
template is passed over. What is not shaped as Kubernetes shapes it does not parse, so nobody behind this edge has to
look; where Kubernetes takes a null for nothing, so does this.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.template import PodTemplate
from amdahl_loop.domain.units import parse_quantity

Present = dict[str, Any] | None
"""An object of which only the presence matters."""
Objects = tuple[dict[str, Any], ...] | None
"""A list of objects that are passed on as they are."""

_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def check_quantity(value: object) -> float:
    """The amount of a resource; ValueError names what cannot be read, or is less than nothing."""
    amount = 0.0 if value is None else parse_quantity(str(value))
    if amount < 0:
        raise ValueError("is less than nothing; write an amount of zero or more")
    return amount


def check_claim(name: str) -> str:
    """The name of a claim that may be there; ValueError names one that no object can bear."""
    if name and not _OBJECT_NAME.fullmatch(name):
        raise ValueError("no claim can have this name; write lower-case letters, digits, '-' and '.', at most 253")
    return name


def _fill(value: object) -> object:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_fill)]
"""Text that may be null."""
Quantity = Annotated[float, PlainValidator(check_quantity)]
"""Amount of a resource, however it is written."""

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

    name: Text = ""


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


class Mount(_Part):
    """One volume, mounted."""

    name: str
    mount_path: Text = ""
    sub_path: Text = ""
    sub_path_expr: Text = ""


class Amounts(_Part):
    """What a container asks for, and what it may not exceed."""

    requests: Mapping[str, Quantity] | None = None
    limits: Mapping[str, Quantity] | None = None


class ContainerPart(_Part):
    """One container, initialising or not."""

    name: str
    resources: Amounts | None = None
    volume_mounts: tuple[Mount, ...] | None = None
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

    claim_name: Annotated[Text, AfterValidator(check_claim)] = ""


class Volume(_Part):
    """One volume; of a kind that is not named here it is only known that it is an object."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Present]
    name: str
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


class NodeTerm(_Part):
    """One choice of nodes."""

    match_fields: Objects = None


class NodeTerms(_Part):
    """Choices of nodes, one of which has to fit."""

    node_selector_terms: tuple[NodeTerm, ...] | None = None


class NodeAffinity(_Part):
    """Which nodes a pod needs, and which it would like."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    preferred_during_scheduling_ignored_during_execution: Objects = None


class PodAntiAffinity(_Part):
    """Which pods must not be beside it."""

    required_during_scheduling_ignored_during_execution: Objects = None


class Affinity(_Part):
    """Where a pod may run."""

    node_affinity: NodeAffinity | None = None
    pod_anti_affinity: PodAntiAffinity | None = None


class PodPart(_Part):
    """One pod."""

    host_network: bool | None = None
    host_pid: Annotated[bool | None, Field(alias="hostPID")] = None
    host_ipc: Annotated[bool | None, Field(alias="hostIPC")] = None
    node_name: str | None = None
    service_account_name: str | None = None
    service_account: str | None = None
    security_context: SecurityContext | None = None
    affinity: Affinity | None = None
    volumes: tuple[Volume, ...] | None = None
    resource_claims: tuple[ResourceClaim, ...] | None = None
    init_containers: tuple[ContainerPart, ...] | None = None
    containers: tuple[ContainerPart, ...]


class MetadataPart(_Part):
    """Marks by which webhooks know a pod."""

    labels: Mapping[str, Text] | None = None
    annotations: Mapping[str, Text] | None = None


class TemplatePart(_Part):
    """A pod template."""

    metadata: MetadataPart | None = None
    spec: PodPart


def read_parts(template: PodTemplate) -> TemplatePart:
    """The parts of a template that was parsed (`parsing.py`): they have their shapes."""
    return TemplatePart.model_validate(template.model_dump(by_alias=True, mode="json"))

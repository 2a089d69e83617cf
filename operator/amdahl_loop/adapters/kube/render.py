"""What do a running Job and a block's Job have in common, beside the user's template?

Edits of a pod template as plain data. Each names the path that it touches; nothing else of a template ever changes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.domain.children import JOB_LABEL, PREFIX, rank_host, service_name
from amdahl_loop.domain.knob_values import KnobName, environment_name
from amdahl_loop.domain.knobs import CATALOGUE, KnobKind
from amdahl_loop.domain.resources import API_VERSION, TrainingJob
from amdahl_loop.domain.template import TRAINER_CONTAINER

OUR_FOLDER = "/amdahl"
PROBE_FOLDER = f"{OUR_FOLDER}/probe"
PROBE_KEY = "probe.zip"
PROBE_PATH = f"{PROBE_FOLDER}/{PROBE_KEY}"
PROBE_VOLUME = "amdahl-probe"
KNOBS_FOLDER = f"{OUR_FOLDER}/knobs"
KNOBS_KEY = "knobs.json"
KNOBS_VOLUME = "amdahl-knobs"
OUR_VOLUMES = "amdahl-"
OUR_VARIABLES = "AMDAHL_"

USER_PYTHONPATH = "AMDAHL_USER_PYTHONPATH"
"""The user's own search path, where it comes from somewhere else; the kubelet puts it behind ours."""

RENDEZVOUS_PORT = 29400
"""torchrun's own default; windows of a block count up from it, so that no window meets what is left of another."""

SUPERVISOR_PORT = RENDEZVOUS_PORT - 1
"""Where the supervisors of a block of several pods talk to the first of them."""

S1_KNOBS = frozenset(name for name, spec in CATALOGUE.items() if spec.kind is KnobKind.S1)
"""Knobs that change the pod itself: their values are part of it."""


def find_clashes(job: TrainingJob) -> tuple[str, ...]:
    """What in a template bears names that are the loop's own; a line each with the fix."""
    template = dump_template(job)
    pod, metadata = template["spec"], template.get("metadata") or {}
    trainer = trainer_of(pod)
    field = f"spec.template.spec.containers[{TRAINER_CONTAINER}]"
    names = [str(volume.get("name", "")) for volume in pod.get("volumes") or ()]
    variables = [item["name"] for item in trainer.get("env") or ()]
    paths = [f"{mount.get('mountPath', '')}".rstrip("/") for mount in trainer.get("volumeMounts") or ()]
    marks = [(kind, name) for kind in ("labels", "annotations") for name in metadata.get(kind) or ()]
    return (
        *(
            f"spec.template.metadata.{kind} {name}: names beginning with {PREFIX} are the loop's; remove it"
            for kind, name in marks
            if name.startswith(PREFIX)
        ),
        *(
            f"spec.template.spec.volumes {name}: names beginning with {OUR_VOLUMES} are the loop's; rename it"
            for name in names
            if name.startswith(OUR_VOLUMES)
        ),
        *(
            f"{field}.env {name}: names beginning with {OUR_VARIABLES} are set by the loop; remove it"
            for name in variables
            if name.startswith(OUR_VARIABLES)
        ),
        *(
            f"{field}.volumeMounts {path}: {OUR_FOLDER} is the loop's; mount it elsewhere"
            for path in paths
            if f"{path}/".startswith(f"{OUR_FOLDER}/")
        ),
    )


def owner_reference(job: TrainingJob) -> Object:
    """The TrainingJob as controller: what it owns is collected when it is gone, and nobody waits for that."""
    metadata = job.metadata
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingJob",
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def child_metadata(job: TrainingJob, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Object:
    """Metadata of an object that the job owns."""
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": {JOB_LABEL: job.metadata.name, **labels},
        "annotations": dict(annotations),
        "ownerReferences": [owner_reference(job)],
    }


def dump_template(job: TrainingJob) -> Object:
    """The user's template as it was written: a copy that may be edited."""
    template: Object = job.spec.template.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return template


def trainer_of(pod: Object) -> Object:
    """The container to tune, in a pod spec."""
    trainer: Object = next(c for c in pod["containers"] if c["name"] == TRAINER_CONTAINER)
    return trainer


def set_devices(trainer: Object, resource: str, count: int | None) -> None:
    """`resources.limits[resource]` and `resources.requests[resource]`, where the template has them."""
    for kind in ("limits", "requests"):
        quantities = (trainer.get("resources") or {}).get(kind) or {}
        if count is not None and resource in quantities:
            quantities[resource] = str(count)


def count_devices(job: TrainingJob, count: int | None) -> int:
    """Devices that one pod holds: the knob's `count`, else what is requested, else one process of a CPU job."""
    if count is not None:
        return max(1, count)
    return max(1, round(job.spec.template.trainer.resources.quantity(job.spec.device_resource) or 1))


def add_volume(pod: Object, volume: Object) -> None:
    """`volumes[...]`: one more."""
    pod["volumes"] = [*(pod.get("volumes") or ()), volume]


def add_mount(container: Object, name: str, path: str, **more: Any) -> None:
    """`volumeMounts[...]`: one more, read-only unless said otherwise."""
    mount = {"name": name, "mountPath": path} | ({"readOnly": True} if "readOnly" not in more else {}) | more
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]


def mount_probe(pod: Object, config_map: str, optional: bool) -> None:
    """The probe's volume and its mount in the trainer. `optional`: a pod starts without it where it is gone."""
    source = {"name": config_map, "defaultMode": 0o444} | ({"optional": True} if optional else {})
    add_volume(pod, {"name": PROBE_VOLUME, "configMap": source})
    add_mount(trainer_of(pod), PROBE_VOLUME, PROBE_FOLDER)


def variable(name: str, value: str) -> Object:
    """An environment variable of a given value."""
    return {"name": name, "value": value}


def with_probe_path(variables: Iterable[Object], has_sources: bool = False) -> list[Object]:
    """The user's variables with the probe before everything on `PYTHONPATH`; the user's own path follows it.

    `has_sources`: there is an `envFrom`, whose variables ours would replace. The kubelet puts its value in, and leaves
    the words as they are, a folder that is nowhere, where it has none.
    """
    kept: list[Object] = []
    is_placed = False
    for item in variables:
        if item["name"] != "PYTHONPATH":
            kept.append(item)
            continue
        is_placed = True
        if "valueFrom" in item:
            kept += [item | {"name": USER_PYTHONPATH}, variable("PYTHONPATH", f"{PROBE_PATH}:$({USER_PYTHONPATH})")]
        else:
            own = item.get("value") or ""
            kept.append(variable("PYTHONPATH", f"{PROBE_PATH}:{own}" if own else PROBE_PATH))
    alone = f"{PROBE_PATH}:$(PYTHONPATH)" if has_sources else PROBE_PATH
    return kept if is_placed else [*kept, variable("PYTHONPATH", alone)]


def knob_variable(knob: KnobName) -> str:
    """Environment variable of a knob."""
    return environment_name(knob)


def rendezvous(job: TrainingJob, job_name: str, pod: Object) -> dict[str, str]:
    """Where the ranks of several pods meet, for torchrun and for programs that read it themselves; {} for one pod.

    Which pod this is says `JOB_COMPLETION_INDEX`, which Kubernetes sets in every container of an Indexed Job.
    """
    replicas = job.spec.replicas
    if replicas == 1:
        return {}
    host = rank_host(job_name, 0, pod.get("subdomain") or service_name(job.metadata.name))
    return {"MASTER_ADDR": host, "PET_MASTER_ADDR": host, "PET_NNODES": str(replicas)}


def rendezvous_ports(job: TrainingJob, run: str, window: int = 0) -> dict[str, str]:
    """Port and name of one meeting; {} for one pod."""
    if job.spec.replicas == 1:
        return {}
    port = str(RENDEZVOUS_PORT + window)
    return {"MASTER_PORT": port, "PET_MASTER_PORT": port, "PET_RDZV_ID": f"{run}-{window}"}


def node_rank_variable() -> Object:
    """Node rank for torchrun, from the index that the Job controller writes on the pod."""
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def join_ranks(job: TrainingJob, pod: Object) -> None:
    """`subdomain`: pods of several ranks have names in the job's headless Service, unless the user chose another."""
    if job.spec.replicas > 1 and not pod.get("subdomain"):
        pod["subdomain"] = service_name(job.metadata.name)

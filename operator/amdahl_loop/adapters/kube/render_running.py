"""What does the running job look like in a cluster: its Job, its knobs, its ranks' Service?

The Job's pod is the user's template plus only: the knobs and the probe's variables, two read-only mounts, our two
labels, and what an Indexed Job needs. The command is never wrapped.
"""

import json
from collections.abc import Mapping
from typing import Any

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.render import (
    KNOBS_FOLDER,
    KNOBS_KEY,
    KNOBS_VOLUME,
    S1_KNOBS,
    add_mount,
    add_volume,
    child_metadata,
    dump_template,
    join_ranks,
    knob_variable,
    mount_probe,
    node_rank_variable,
    rendezvous,
    rendezvous_ports,
    set_devices,
    trainer_of,
    variable,
    with_probe_path,
)
from amdahl_loop.domain.children import (
    DECLARED_ANNOTATION,
    JOB_LABEL,
    PREFIX,
    REVISION_LABEL,
    knobs_name,
    revision_name,
    service_name,
)
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.knob_values import KnobName, Knobs, environment_text
from amdahl_loop.domain.resources import TrainingJob

METRICS_PORT = 9178
"""`/metrics` of local rank 0 in every pod."""

SEQUENCE_KEY = "seq"

CHANGED_ANNOTATION = f"{PREFIX}changed-at"
"""When a value in the knobs' ConfigMap last changed, in seconds since the epoch: older pods have others."""
REVISION_ANNOTATION = f"{PREFIX}next-revision"
"""The revision that is to run, written down on the knobs' ConfigMap before the one before it is taken away."""
REPLICA_ANNOTATION = f"{PREFIX}gpus-per-replica"
"""Value of that knob in a revision; empty where it is none."""
VALUES_ANNOTATION = f"{PREFIX}values"
"""Which values: a number that grows with every change of the ConfigMap, and on a Job and its pods what it was before
they were made. Where the two are equal the pods have the values in force, whatever clocks say."""
UNPROBED_ANNOTATION = f"{PREFIX}without-probe"
"""Digest of the template that could not run with the probe, on the knobs' ConfigMap: its Jobs are made without it."""

RUNNING_PATHS = (
    "metadata.labels.amdahl-loop.io/job",
    "metadata.labels.amdahl-loop.io/revision",
    "metadata.annotations.amdahl-loop.io/declared",
    "metadata.annotations.amdahl-loop.io/gpus-per-replica",
    "metadata.annotations.amdahl-loop.io/values",
    "spec.restartPolicy",
    "spec.subdomain",
    "spec.volumes[amdahl-*]",
    "spec.containers[trainer].env",
    "spec.containers[trainer].volumeMounts[/amdahl/*]",
    "spec.containers[trainer].resources.limits.deviceResource",
    "spec.containers[trainer].resources.requests.deviceResource",
)
"""Everything in which the running job's pod may differ from the user's template."""


def render_job(job: TrainingJob, revision: int, probe: str | None, values: int = 0, suspended: bool = False) -> Object:
    """The running Job of a revision; `job` has the values in force, `probe` names its ConfigMap (None: without it).

    `values` is the number of the values that the knobs' ConfigMap holds already.
    """
    name = revision_name(job.metadata.name, revision)
    labels = {REVISION_LABEL: str(revision)}
    template = dump_template(job)
    metadata = template["metadata"] = template.get("metadata") or {}
    metadata["labels"] = (metadata.get("labels") or {}) | {JOB_LABEL: job.metadata.name} | labels
    declared = {DECLARED_ANNOTATION: digest_declared(job), REPLICA_ANNOTATION: devices_text(job)}
    declared[VALUES_ANNOTATION] = str(values)
    metadata["annotations"] = (metadata.get("annotations") or {}) | declared
    pod = template["spec"]
    if (pod.get("restartPolicy") or "Always") == "Always":
        pod["restartPolicy"] = "Never"
    join_ranks(job, pod)
    trainer = trainer_of(pod)
    set_devices(trainer, job.spec.device_resource, job.spec.knobs.gpus_per_replica)
    own = trainer.get("env") or []
    entered = with_probe_path(own, has_sources=bool(trainer.get("envFrom"))) if probe else own
    trainer["env"] = [*_variables(job, name, pod), *entered]
    add_volume(pod, {"name": KNOBS_VOLUME, "configMap": {"name": knobs_name(job.metadata.name), "defaultMode": 0o444}})
    add_mount(trainer, KNOBS_VOLUME, KNOBS_FOLDER)
    if probe:
        mount_probe(pod, probe, optional=True)
    spec: Object = {
        "completionMode": "Indexed",
        "completions": job.spec.replicas,
        "parallelism": job.spec.replicas,
        "suspend": suspended,
        "template": template,
    }
    if pod["restartPolicy"] == "Never":
        spec["podFailurePolicy"] = _INTERRUPTIONS
    return {"metadata": child_metadata(job, name, job.queue_labels | labels, declared), "spec": spec}


_INTERRUPTIONS = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}
"""A pod that was preempted, drained or lost with its node is replaced, and does not count as a failure of the job."""


def _variables(job: TrainingJob, name: str, pod: Object) -> list[Object]:
    """Ours, before the user's own, so that those may refer to them."""
    found = [_knob_source(job, knob) for knob in job.spec.knobs.declared()]
    found.append(variable("AMDAHL_REPLICAS", str(job.spec.replicas)))
    found += [variable(key, value) for key, value in rendezvous(job, name, pod).items()]
    found += [variable(key, value) for key, value in rendezvous_ports(job, name).items()]
    if job.spec.replicas > 1:
        found.append(node_rank_variable())
    return [
        *found,
        variable("AMDAHL_RUN_ID", name),
        variable("AMDAHL_METRICS_PORT", str(METRICS_PORT)),
        variable("AMDAHL_METRICS_HOST", "0.0.0.0"),  # noqa: S104  (the operator scrapes the pod's own address)
        variable("AMDAHL_KNOBS_FILE", f"{KNOBS_FOLDER}/{KNOBS_KEY}"),
    ]


def _knob_source(job: TrainingJob, knob: Any) -> Object:
    """S0 from the ConfigMap, read anew at every start of a container; S1 fixed, as the devices of the pod are."""
    name = knob_variable(knob)
    if knob in S1_KNOBS:
        return variable(name, environment_text(job.spec.knobs.declared()[knob]))
    reference = {"name": knobs_name(job.metadata.name), "key": name}
    return {"name": name, "valueFrom": {"configMapKeyRef": reference}}


def digest_declared(job: TrainingJob) -> str:
    """Digest of what its owner's change makes a new revision: template, replicas and which knobs there are.

    No value of a knob is in it, and nothing that the operator adds: another version of it replaces no Job.
    """
    spec = job.spec
    names = ",".join(sorted(spec.knobs.declared()))
    template = json.dumps(dump_template(job), sort_keys=True)
    return hash_text(template, str(spec.replicas), spec.device_resource, names)[:16]


def devices_text(job: TrainingJob) -> str:
    """The knobs that are part of the pod itself, as text: the devices of a replica, and the others by name."""
    knobs = job.spec.knobs
    count = "" if knobs.gpus_per_replica is None else str(knobs.gpus_per_replica)
    own = {knob: value for knob, value in knobs.declared().items() if knob in S1_KNOBS}
    others = (f"{knob}={environment_text(v)}" for knob, v in own.items() if knob is not KnobName.GPUS_PER_REPLICA)
    return ",".join((count, *others))


def render_service(job: TrainingJob) -> Object:
    """The headless Service that gives ranks names, in the running job and in its blocks; ready or not."""
    return {
        "metadata": child_metadata(job, service_name(job.metadata.name), {}, {}),
        "spec": {
            "clusterIP": "None",
            "selector": {JOB_LABEL: job.metadata.name},
            "publishNotReadyAddresses": True,
        },
    }


def render_knobs(job: TrainingJob, live: bool, sequence: int, annotations: Mapping[str, str]) -> Object:
    """The ConfigMap of the values in force: a variable each, and the live file where values may be switched live."""
    data = knob_data(job.spec.knobs)
    if live:
        data[KNOBS_KEY] = live_file(job.spec.knobs, sequence)
    return {"metadata": child_metadata(job, knobs_name(job.metadata.name), {}, annotations), "data": data}


def knob_data(knobs: Knobs) -> dict[str, str]:
    """Variables of the S0 knobs; those of S1 are part of the pod."""
    values = knobs.declared().items()
    return {knob_variable(knob): environment_text(value) for knob, value in values if knob not in S1_KNOBS}


def live_file(knobs: Knobs, sequence: int) -> str:
    """What our trainer watches (telemetry contract, section 3)."""
    values = {knob.value: value for knob, value in knobs.declared().items() if knob not in S1_KNOBS}
    return json.dumps({SEQUENCE_KEY: sequence, "knobs": values}, sort_keys=True)


def read_sequence(text: str | None) -> int:
    """Sequence number of such a file; 0 where there is none that can be read."""
    try:
        content = json.loads(text or "{}")
        return int(content[SEQUENCE_KEY])
    except (ValueError, TypeError, KeyError):
        return 0

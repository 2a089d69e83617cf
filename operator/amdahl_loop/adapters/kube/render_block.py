"""What does a block look like in a cluster? One Job of the user's own pods, supervised and unable to harm anybody.

The pod is the user's template sized for the larger arm, plus only what `PATHS` names. A template that cannot be made
harmless is refused with a reason; `domain/isolation.py` says before that what its owner has to decide.
"""

from dataclasses import dataclass

from amdahl_loop.adapters.kube.base import add_base
from amdahl_loop.adapters.kube.in_turn import Turn
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.placement import Placement, affine
from amdahl_loop.adapters.kube.plans import GRACE_S, PLAN_VARIABLE, PlanError, encode_plan
from amdahl_loop.adapters.kube.render import (
    PROBE_PATH,
    child_metadata,
    count_devices,
    dump_template,
    join_ranks,
    mount_probe,
    node_rank_variable,
    rendezvous,
    rendezvous_ports,
    set_devices,
    trainer_of,
    variable,
)
from amdahl_loop.adapters.kube.volumes import add_scratch, close_volumes, is_shared, scratch_targets
from amdahl_loop.domain.children import (
    DEVICES_ANNOTATION,
    EXPERIMENT_LABEL,
    EXPERIMENT_UID_ANNOTATION,
    JOB_LABEL,
    PLAN_HASH_ANNOTATION,
    RUN_ANNOTATION,
    STAGE_LABEL,
    TRIAL_PRIORITY_CLASS,
    BlockRun,
    block_name,
)
from amdahl_loop.domain.resources import QUEUE_LABELS, TrainingJob
from amdahl_loop.domain.runs import RunRequest
from amdahl_loop.domain.trackers import TRACKERS_OFF

DEFAULT_TERMINATION_LOG = "/dev/termination-log"

PULL_SLACK_S = 900.0
"""From a node to a running container: volumes and a large image on a node that has never seen it."""
PENDING_SLACK_S = 900.0
"""From the Job to a node: more than the ten minutes after which a block without one is given up."""

TRIAL_GRACE_S = int(2 * GRACE_S + 5)
"""The supervisor needs `GRACE_S` to end what it runs; a trial yields within half a minute, whatever the user allows."""

BLOCK_QUEUE_LABELS = tuple(name for name in QUEUE_LABELS if not name.endswith("/priority-class"))
"""A block waits in the job's queue, but never with the job's priority."""

PATHS = (
    "metadata.labels",
    "metadata.finalizers",
    "spec.restartPolicy",
    "spec.activeDeadlineSeconds",
    "spec.terminationGracePeriodSeconds",
    "spec.priorityClassName",
    "spec.priority",
    "spec.preemptionPolicy",
    "spec.serviceAccountName",
    "spec.serviceAccount",
    "spec.automountServiceAccountToken",
    "spec.subdomain",
    "spec.affinity.nodeAffinity",
    "spec.affinity.podAntiAffinity",
    "spec.volumes[].*.readOnly",
    "spec.volumes[].projected.sources",
    "spec.volumes[amdahl-*]",
    "spec.containers[].volumeMounts[].readOnly",
    "spec.initContainers[].volumeMounts[].readOnly",
    "spec.containers[trainer].volumeMounts",
    "spec.containers[trainer].command",
    "spec.containers[trainer].args",
    "spec.containers[trainer].env",
    "spec.containers[trainer].resources.limits.deviceResource",
    "spec.containers[trainer].resources.requests.deviceResource",
    "spec.containers[trainer].livenessProbe",
    "spec.containers[trainer].readinessProbe",
    "spec.containers[trainer].startupProbe",
    "spec.containers[trainer].lifecycle",
)
"""Everything in which a block's pod may differ from the user's template; a property test holds the rendering to it."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """A job that no block can be made of, and why."""

    why: str


def render_block(
    job: TrainingJob,
    request: RunRequest,
    block: BlockRun,
    experiment_uid: str,
    probe: str,
    placement: Placement,
    turn: Turn | None = None,
) -> Object | Unfit:
    """The Job of one block, or why there can be none. `probe` names the probe's ConfigMap.

    With a `turn` the job makes way for it: the block runs on the job's nodes, from its checkpoint.
    """
    name = block_name(request.run)
    labels = {EXPERIMENT_LABEL: block.experiment, STAGE_LABEL: block.stage.value}
    template = dump_template(job)
    pod = template["spec"]
    closed = close_volumes(pod)
    if closed is not None:
        return Unfit(closed)
    trial = job.spec.tuning.trial
    if any(window.save_every for window in request.windows) and is_shared(pod) and not trial.scratch_storage_class:
        return Unfit(_CADENCE_STORAGE)
    targets = scratch_targets(trial, job.spec.template.trainer.working_dir)
    if isinstance(targets, str):
        return Unfit(targets)
    _relabel(job, template, labels)
    pod.pop("subdomain", None)  # its Service does not select the pods of trials; ours does
    join_ranks(job, pod)
    base = add_base(pod, targets) if turn else ()
    scratch = add_scratch(pod, targets, trial.scratch_storage_class)
    try:
        plan = encode_plan(job, request, name, pod, scratch, base)
    except PlanError as error:
        return Unfit(str(error))
    _disarm(pod, request)
    pod["affinity"] = affine(pod.get("affinity") or {}, placement, block.experiment)
    mount_probe(pod, probe, optional=False)
    _supervise(job, request, name, pod, plan)
    annotations = {
        RUN_ANNOTATION: request.run,
        PLAN_HASH_ANNOTATION: request.plan_hash,
        EXPERIMENT_UID_ANNOTATION: experiment_uid,
        DEVICES_ANNOTATION: str(count_devices(job, _larger_arm(request))),
    } | (turn.annotations if turn else {})
    queue = {label: value for label, value in job.queue_labels.items() if label in BLOCK_QUEUE_LABELS}
    return {
        "metadata": child_metadata(job, name, queue | labels, annotations),
        "spec": {
            "completionMode": "Indexed",
            "completions": job.spec.replicas,
            "parallelism": job.spec.replicas,
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(pod["activeDeadlineSeconds"] + PENDING_SLACK_S),
            "template": template,
        },
    }


_CADENCE_STORAGE = (
    "tuning.trial.scratchStorageClass: how often to save is judged on storage of the class that the job's checkpoints "
    "use, never on a node's own disk; name that class"
)


def _larger_arm(request: RunRequest) -> int | None:
    """Devices of the larger arm; None where they are no knob, and the template's own number holds."""
    counts = [w.knobs.gpus_per_replica for w in request.windows if w.knobs.gpus_per_replica is not None]
    return max(counts, default=None)


def _relabel(job: TrainingJob, template: Object, labels: Object) -> None:
    """`metadata.labels`: ours and the queue's. Others would make trials look like pods of whoever selects by them.

    `metadata.finalizers`: none, since whoever takes them off waits for the job's pods, and a trial must be able to go.
    """
    metadata = template["metadata"] = template.get("metadata") or {}
    metadata.pop("finalizers", None)
    kept = {name: value for name, value in (metadata.get("labels") or {}).items() if name in BLOCK_QUEUE_LABELS}
    metadata["labels"] = kept | {JOB_LABEL: job.metadata.name} | labels


def _disarm(pod: Object, request: RunRequest) -> None:
    """Without an account, without rank, and with an end: what holds for the pod as a whole."""
    for field in ("serviceAccountName", "serviceAccount", "priority", "preemptionPolicy"):
        pod.pop(field, None)
    pod["automountServiceAccountToken"] = False
    pod["priorityClassName"] = TRIAL_PRIORITY_CLASS
    pod["restartPolicy"] = "Never"
    pod["activeDeadlineSeconds"] = int(request.deadline_s + PULL_SLACK_S)
    pod["terminationGracePeriodSeconds"] = TRIAL_GRACE_S


def _supervise(job: TrainingJob, request: RunRequest, name: str, pod: Object, plan: str) -> None:
    """The supervisor in place of the trainer's command; what watches that command from outside is dropped with it."""
    trainer = trainer_of(pod)
    set_devices(trainer, job.spec.device_resource, _larger_arm(request))
    for field in ("args", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
        trainer.pop(field, None)
    python = job.spec.tuning.trial.python
    # Run as a script, without `site`: the image's own PYTHONPATH stays, and none of the user's start-up code runs here.
    trainer["command"] = [python, "-S", PROBE_PATH, "--plan-env", PLAN_VARIABLE]
    first = request.windows[0].environment | {"AMDAHL_TRIAL": "1", "AMDAHL_REPLICAS": str(job.spec.replicas)}
    first |= rendezvous(job, name, pod) | rendezvous_ports(job, request.run)
    own = [item for item in trainer.get("env") or () if item["name"] not in TRACKERS_OFF]
    last = dict(TRACKERS_OFF) | {
        "AMDAHL_TERMINATION_LOG": trainer.get("terminationMessagePath") or DEFAULT_TERMINATION_LOG,
        PLAN_VARIABLE: plan,
    }
    trainer["env"] = [
        *(variable(key, value) for key, value in first.items()),
        *([node_rank_variable()] if job.spec.replicas > 1 else []),
        *own,
        *(variable(key, value) for key, value in last.items()),
    ]

"""How does a wish for a block become the supervisor's plan in a pod (telemetry contract, section 4)?

The kubelet expands `$(NAME)` once, for the whole container; a block needs it once a window. So the command travels
unexpanded inside the plan, and variables of the user's that depend on a knob are expanded here for each window. What
only the kubelet knows (Secrets, the pod's own fields) stays in the container's environment, which windows inherit; the
supervisor fills in those that the command refers to.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from amdahl_loop.adapters.kube.render import (
    PROBE_PATH,
    SUPERVISOR_PORT,
    rendezvous,
    rendezvous_ports,
)
from amdahl_loop.adapters.kube.volumes import RUN_FOLDER
from amdahl_loop.domain.commands import escape, expand
from amdahl_loop.domain.knob_values import environment_name
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import RunRequest, WindowRequest
from amdahl_loop.domain.template import Container, EnvVar
from amdahl_loop.domain.trackers import TRACKERS_OFF
from amdahl_loop.domain.units import parse_quantity

PLAN_VERSION = "amdahl.plan/1"
PLAN_VARIABLE = "AMDAHL_PLAN"
GRACE_S = 5.0
PEERS_WAIT_S = 600.0
"""How long the pods of a block wait for each other: as long as one of them may be without a node."""
MAX_PLAN_BYTES = 131_072 - len(PLAN_VARIABLE) - 2
"""Linux refuses a longer variable: the name, `=` and the closing zero count."""

SAME_FOLDER = "/proc/self/cwd"
"""The image's own working directory, wherever that is: a program started there starts where its supervisor did."""

DEVICE_MASKS = {"nvidia.com/gpu": "CUDA_VISIBLE_DEVICES", "amd.com/gpu": "HIP_VISIBLE_DEVICES"}
"""How the devices that an arm does not use are hidden from it."""

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_OF_RANKS = frozenset({"JOB_COMPLETION_INDEX", "PET_NODE_RANK"})
"""What Kubernetes tells each pod of an Indexed Job, the one by its own variable and the other by ours."""
_SERVICE_LINK = re.compile(r"[A-Z0-9_]+_(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)")
"""Variables by which a kubelet tells of the namespace's Services."""


class PlanError(ValueError):
    """A job whose blocks cannot be planned; the message names the field and the fix."""


def encode_plan(
    job: TrainingJob,
    request: RunRequest,
    job_name: str,
    pod: Mapping[str, Any],
    scratch: Sequence[str],
    base: Sequence[str] = (),
) -> str:
    """The plan as the value of `AMDAHL_PLAN`, so written that the kubelet hands it on word for word.

    `base` names for each scratch path the folder that it begins as; empty for one that begins empty.
    PlanError where a variable mixes a knob with what only the kubelet knows, or the whole is too long.
    """
    trainer = job.spec.template.trainer
    fixed = {"AMDAHL_REPLICAS": str(job.spec.replicas)} | rendezvous(job, job_name, dict(pod))
    per_window, shared = _sort_variables(job, fixed)
    plan: dict[str, Any] = {
        "v": PLAN_VERSION,
        "run": request.run,
        "switch": "live" if request.live else "relaunch",
        "command": [*trainer.command, *trainer.args],
        "cwd": trainer.working_dir if trainer.working_dir.startswith("/") else SAME_FOLDER,
        "env": {**shared, **TRACKERS_OFF},
        "inherit": list(_list_inherited(trainer)),
        "probe": PROBE_PATH,
        "dir": f"{RUN_FOLDER}/block",
        "startup_timeout_s": request.startup_timeout_s,
        "step_timeout_s": request.step_timeout_s,
        "deadline_s": request.deadline_s,
        "grace_s": GRACE_S,
        "mem_bytes": _memory_limit(trainer),
        "scratch_paths": list(scratch),
        "base_paths": list(base),
        "peers": _meet(job, fixed),
        "windows": [_plan_window(job, request, window, per_window, shared) for window in request.windows],
    }
    text = escape(json.dumps(plan, separators=(",", ":")))
    if len(text.encode()) > MAX_PLAN_BYTES:
        raise PlanError(
            f"the trainer's command and variables take {len(text.encode())} bytes in a block's plan, more than "
            f"{MAX_PLAN_BYTES}; put long texts into a ConfigMap that the container mounts"
        )
    return text


def _meet(job: TrainingJob, fixed: Mapping[str, str]) -> dict[str, Any] | None:
    """Where the supervisors of several pods find the first of them; their windows begin and end together."""
    if job.spec.replicas == 1:
        return None
    return {
        "pods": job.spec.replicas,
        "host": fixed["MASTER_ADDR"],
        "port": SUPERVISOR_PORT,
        "wait_s": PEERS_WAIT_S,
    }


def _list_inherited(trainer: Container) -> tuple[str, ...]:
    """Names that the command refers to and that a kubelet may know: what an image sets itself is never expanded."""
    declared = {variable.name for variable in trainer.env}
    has_unlisted = bool((trainer.model_extra or {}).get("envFrom"))
    named = {name for word in (*trainer.command, *trainer.args) for name in _REFERENCE.findall(word) if name}
    return tuple(
        sorted(
            name
            for name in named
            if name in declared or name in _OF_RANKS or has_unlisted or _SERVICE_LINK.fullmatch(name)
        )
    )


def _plan_window(
    job: TrainingJob,
    request: RunRequest,
    window: WindowRequest,
    per_window: Sequence[EnvVar],
    shared: Mapping[str, str],
) -> dict[str, Any]:
    ports = rendezvous_ports(job, request.run, window.index)
    first = window.environment | {name: value for name, value in ports.items() if name not in shared}
    known = dict(shared) | first
    for variable in per_window:
        first[variable.name] = known[variable.name] = expand(variable.value, known)
    return {
        "arm": window.arm.value,
        "index": window.index,
        "scored": window.scored,
        "knobs": {knob.value: value for knob, value in window.knobs.declared().items()},
        "env": first | _mask_devices(job, request, window, known),
        "offset": window.offset,
        "seed": window.seed,
        "warmup_s": window.warmup_s,
        "warmup_steps": window.warmup_steps,
        "measure_s": window.measure_s,
        "min_steps": window.min_steps,
        "steps": window.steps,
        "save_every": window.save_every,
    }


def _memory_limit(trainer: Container) -> int | None:
    """Bytes that the container may hold; None where there is no limit."""
    text = trainer.resources.limits.get("memory")
    return None if text is None else int(parse_quantity(str(text)))


def _mask_devices(
    job: TrainingJob, request: RunRequest, window: WindowRequest, known: Mapping[str, str]
) -> dict[str, str]:
    """Only as many devices visible as the arm uses, where the block holds more for the other arm."""
    name, used = DEVICE_MASKS.get(job.spec.device_resource), window.knobs.gpus_per_replica
    resources = job.spec.template.trainer.resources
    is_requested = job.spec.device_resource in {*resources.limits, *resources.requests}
    if name is None or used is None or not is_requested or used >= request.max_devices:
        return {}
    visible = known.get(name, "").split(",") if known.get(name) else [str(n) for n in range(request.max_devices)]
    return {name: ",".join(visible[:used])}


def _sort_variables(job: TrainingJob, fixed: Mapping[str, str]) -> tuple[tuple[EnvVar, ...], dict[str, str]]:
    """The user's variables that differ from window to window, in order; and those that are the same in all of them.

    Variables that need the kubelet are in neither: windows inherit them from the container. `fixed` are ours.
    """
    varying = {environment_name(knob) for knob in job.spec.knobs.declared()} | rendezvous_ports(job, "").keys()
    per_window: list[EnvVar] = []
    shared = dict(fixed)
    for variable in job.spec.template.trainer.env:
        name = variable.name
        names = {match for match in _REFERENCE.findall(variable.value) if match}
        is_varying = bool(names & varying)
        is_distant = "valueFrom" in (variable.model_extra or {}) or bool(names - varying - shared.keys())
        if is_distant and is_varying:
            raise PlanError(
                f"spec.template.spec.containers[trainer].env {name}: depends on a knob and on something that only the "
                "kubelet knows; split it into two variables"
            )
        varying.discard(name)
        value = expand(variable.value, shared)
        shared.pop(name, None)
        if is_varying:
            varying.add(name)
            per_window.append(variable)
        elif not is_distant:
            shared[name] = value
    return tuple(per_window), shared

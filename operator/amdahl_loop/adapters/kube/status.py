"""How does a status get into a TrainingJob: one patch, and none where nothing changed?

Only fields that differ are sent, bound to the version that was read. Fields and conditions that are not ours stay as
they are, and so does the observation: the ledger writes that one.
"""

from collections.abc import Mapping
from typing import Any

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.jobs import SeenJob, ShownJob
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.domain.api.conditions import JobConditionType
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.api.wire import to_wire

NOT_OURS = frozenset({"observation"})
_TYPES = frozenset(JobConditionType)


async def write_status(client: KubeClient, seen: SeenJob, status: TrainingJobStatus) -> ShownJob | Refused | None:
    """Bring the job's status to this one; the job after it, None where it says so already. Refusals are the caller's.

    Outdated (409): the job changed meanwhile, and the next pass describes it anew.
    """
    if status == seen.status:
        return None
    patch = diff_status(seen.document.get("status") or {}, status)
    if not patch:
        return None
    body: Object = {"metadata": {"resourceVersion": seen.resource_version}, "status": patch}
    answer = await client.patch_status(Kind.TRAINING_JOB, seen.namespace, seen.name, body)
    return answer if isinstance(answer, Refused) else ShownJob(document=answer)


def diff_status(present: Mapping[str, Any], status: TrainingJobStatus) -> Object:
    """The merge patch from what an object reports to this status; empty where nothing differs."""
    wanted = to_wire(status)
    wanted["conditions"] = _merge_conditions(present.get("conditions") or (), wanted.get("conditions", []))
    names = [field.alias or name for name, field in TrainingJobStatus.model_fields.items()]
    return {
        name: wanted.get(name)
        for name in names
        if name not in NOT_OURS and (present.get(name) or None) != (wanted.get(name) or None)
    }


def _merge_conditions(present: Any, ours: list[Any]) -> list[Any]:
    """Our conditions, then those of types that we do not know, as they are."""
    return [*ours, *(condition for condition in present if condition.get("type") not in _TYPES)]

"""How do the pods of several ranks find each other? By names in one headless Service, for the job and its blocks."""

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.objects import controller_uid
from amdahl_loop.adapters.kube.render_running import render_service
from amdahl_loop.domain.children import service_name
from amdahl_loop.domain.resources import TrainingJob


async def ensure_service(client: KubeClient, job: TrainingJob) -> Refused | None:
    """None where the Service is there and the job's; else why not: it is somebody else's, or the server refuses it.

    Most jobs have none yet, so it is made first: one request, and what is there already is read only where that fails.
    """
    name, namespace = service_name(job.metadata.name), job.metadata.namespace
    made = await client.create(Kind.SERVICE, namespace, render_service(job))
    if not isinstance(made, Refused):
        return None
    present = await client.get(Kind.SERVICE, namespace, name)  # a full quota refuses what is there already, too
    if present is None:
        return None if made.is_taken else made
    if controller_uid(present) == job.metadata.uid:
        return None
    said = f"Service {name} is there and belongs to somebody else; rename or delete it"
    return Refused(status=409, reason="Squatted", message=said)

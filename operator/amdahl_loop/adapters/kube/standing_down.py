"""What happens to a job whose spec cannot be used? Its trials end, and it stops where its owner says so.

Nothing else can be done for it; what runs of it goes on as it is. A trial that ends here has said nothing, and runs
again when the spec can be used.
"""

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import controller_uid, read_job
from amdahl_loop.adapters.kube.orphans import take_away
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL


async def stand_down(client: KubeClient, seen: SeenJob) -> None:
    """Delete its blocks and, where it is to be suspended, suspend what runs. ApiUnavailable where that is refused."""
    is_suspended = (seen.document.get("spec") or {}).get("suspend") is True
    async for raw in client.list(Kind.JOB, seen.namespace, f"{JOB_LABEL}={seen.name}"):
        if controller_uid(raw) != seen.uid:
            continue
        if EXPERIMENT_LABEL in raw["metadata"]["labels"]:
            await take_away(client, raw)
        elif is_suspended:
            await _suspend(client, raw)


async def _suspend(client: KubeClient, raw: Object) -> None:
    metadata, facts = raw["metadata"], read_job(raw)
    if facts.is_over or facts.is_suspended or facts.is_deleting:
        return
    change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "spec": {"suspend": True}}
    done = await client.patch(Kind.JOB, metadata["namespace"], metadata["name"], change)
    if isinstance(done, Refused) and not (done.is_outdated or done.is_gone):
        raise ApiUnavailable(f"cannot suspend Job {metadata['name']}: {done.status} {done.message}", done)

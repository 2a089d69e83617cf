"""How may the storage of a job be shared? The access modes of the claims that its template mounts, read live."""

from collections.abc import Mapping

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.volumes import claims_of
from amdahl_loop.domain.resources import TrainingJob

AccessModes = Mapping[str, tuple[str, ...]]
"""Modes by the name of the claim."""


async def read_access_modes(client: KubeClient, job: TrainingJob) -> AccessModes:
    """Access modes of the claims that the job's template mounts; one that is not there has none yet."""
    found: dict[str, tuple[str, ...]] = {}
    pod = job.spec.template.spec.model_dump(mode="json", by_alias=True)
    for name in claims_of(pod):
        claim = await client.get(Kind.CLAIM, job.metadata.namespace, name)
        found[name] = () if claim is None else tuple(claim["spec"].get("accessModes") or ())
    return found

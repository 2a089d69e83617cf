"""Which jobs need no look after a restart? Those that the operator before it left with nothing to do.

What has ended or is suspended is most of what lies in a large cluster. The status says how such a job was left, and the
lists of the start tell whether everything is as it was: then it rests, and is looked at as a whole within half an hour.
"""

import zlib
from typing import NamedTuple

from amdahl_loop.adapters.kube.jobs import digest, read_status
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.present import read_revision, whole
from amdahl_loop.adapters.kube.revisions import find_rest
from amdahl_loop.adapters.kube.rows import key_of, read_version
from amdahl_loop.adapters.metrics import Told
from amdahl_loop.domain.api.conditions import JobConditionType
from amdahl_loop.domain.api.timestamps import to_epoch_s
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.resources import QUEUE_LABELS
from amdahl_loop.recollection import REST_S, JobKey, Recollection, Rest
from amdahl_loop.resting import RESYNC_IDLE_S


class Left(NamedTuple):
    """A job at rest, as it was left; `look_in_s`: when it is read again, like any other that rests."""

    rest: Rest
    told: Told
    look_in_s: float


def find_left(document: Object, recollection: Recollection, now_s: float) -> Left | None:
    """How a TrainingJob of the first list was left; None where a pass has to look.

    What runs, has values in force or stands under a policy is looked at in any case.
    """
    metadata, raw = document["metadata"], document.get("status") or {}
    if raw.get("observedGeneration", 0) != metadata.get("generation") or "deletionTimestamp" in metadata:
        return None
    key, status = JobKey(*key_of(document)), read_status(raw)
    if recollection.policies.get(key.namespace) or not _is_as_left(document, status, recollection):
        return None
    share = zlib.crc32(str(metadata["uid"]).encode()) / (1 << 32)  # or all of them would be looked at together
    rest = Rest(
        digest=digest(document),
        heard=recollection.rests.heard(key),
        at_s=now_s - REST_S * share,
        breakdown=None,
    )
    return Left(rest, Told.of(key.namespace, status), RESYNC_IDLE_S * share)


def _is_as_left(document: Object, status: TrainingJobStatus, recollection: Recollection) -> bool:
    """Whether the job stands as its status says, and nothing of it is younger than that status."""
    metadata, index = document["metadata"], recollection.index
    key, uid = key_of(document), str(metadata["uid"])
    if to_epoch_s(metadata["creationTimestamp"]) >= recollection.since_s:
        return False
    jobs = recollection.finished.find(*key, uid)
    own = index.of_job(key.namespace, uid)
    if jobs is None or any(map(index.is_unsettled, own)) or index.has_open_of_another(*key, uid):
        return False
    is_queued = not frozenset(QUEUE_LABELS).isdisjoint(metadata.get("labels") or ())
    rest = find_rest([read_revision(job) for job in jobs], bool((document.get("spec") or {}).get("suspend")), is_queued)
    ready = next((c.reason for c in status.conditions if c.type is JobConditionType.READY), None)
    others = [*(index.version(name) for name in own), *(whole(job.resource_version, 0) for job in jobs)]
    return rest is not None and rest.reason == ready and read_version(document) > max(others, default=0)

"""Which jobs need no look after a restart? Those that the operator before it left with nothing to do.

What has ended or is suspended is most of what lies in a large cluster. The status says how such a job was left, and the
lists of the start tell whether everything is as it was: then it rests, and is looked at as a whole within half an hour.
"""

import zlib
from typing import NamedTuple

from amdahl_loop.adapters.kube.jobs import ShownJob
from amdahl_loop.adapters.kube.present import read_revision
from amdahl_loop.adapters.kube.revisions import find_rest
from amdahl_loop.adapters.kube.rows import count_version
from amdahl_loop.adapters.metrics import Told
from amdahl_loop.domain.api.conditions import JobConditionType
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.recollection import REST_S, JobKey, Recollection, Rest
from amdahl_loop.resting import RESYNC_IDLE_S


class Left(NamedTuple):
    """A job at rest, as it was left; `look_in_s`: when it is read again, like any other that rests."""

    rest: Rest
    told: Told
    look_in_s: float


def find_left(job: ShownJob, recollection: Recollection, now_s: float) -> Left | None:
    """How a TrainingJob of the first list was left; None where a pass has to look.

    What runs, has values in force or stands under a policy is looked at in any case.
    """
    if not job.generation or job.told_generation != job.generation or job.is_deleting:
        return None
    if recollection.policies.get(job.namespace):
        return None
    status = job.read_status()
    if not _is_as_left(job, status, recollection):
        return None
    share = zlib.crc32(job.uid.encode()) / (1 << 32)  # or all of them would be looked at together
    rest = Rest(
        digest=job.digest,
        heard=recollection.rests.heard(JobKey(job.namespace, job.name)),
        at_s=now_s - REST_S * share,
        breakdown=None,
    )
    return Left(rest, Told.of(job.namespace, status), RESYNC_IDLE_S * share)


def _is_as_left(job: ShownJob, status: TrainingJobStatus, recollection: Recollection) -> bool:
    """Whether the job stands as its status says, and none of its experiments is younger than that status.

    Its Job may be: the controller writes to it once more after it has ended, or its last pod is gone.
    """
    index, place = recollection.index, (job.namespace, job.name, job.uid)
    if job.created_at_s >= recollection.since_s:
        return False
    runs = recollection.finished.find(*place)
    own = index.of_job(job.namespace, job.uid)
    if runs is None or any(map(index.is_unsettled, own)) or index.has_open_of_another(*place):
        return False
    rest = find_rest([read_revision(run) for run in runs], job.is_suspended, job.is_queued)
    ready = next((c.reason for c in status.conditions if c.type is JobConditionType.READY), None)
    known = max((index.version(key) for key in own), default=0)
    return rest is not None and rest.reason == ready and count_version(job.resource_version) > known

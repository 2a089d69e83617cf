"""What are the objects called that a training job has in a cluster, and which labels tell whose they are?

Every name is derived from names that are known before anything is created, so that doing something twice meets its own
first doing. Names that would not fit are cut and carry a hash of the whole.
"""

import re
from typing import NamedTuple

from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.digests import hash_text

PREFIX = "amdahl-loop.io/"
JOB_LABEL = f"{PREFIX}job"
"""Name of the TrainingJob; on everything that belongs to one."""
REVISION_LABEL = f"{PREFIX}revision"
"""Number of the running Job; on it and its pods, and on nothing of a trial."""
EXPERIMENT_LABEL = f"{PREFIX}experiment"
"""Name of the Experiment; on block Jobs and their pods."""
STAGE_LABEL = f"{PREFIX}stage"
PROBE_LABEL = f"{PREFIX}probe"
JOB_UID_LABEL = f"{PREFIX}job-uid"
FINGERPRINT_LABEL = f"{PREFIX}fingerprint"
FAMILY_LABEL = f"{PREFIX}family"
CLOSED_LABEL = f"{PREFIX}closed"
COMPACT_ANNOTATION = f"{PREFIX}compact"
"""What is recalled of a closed Experiment; on it, so that its metadata alone tell it."""
RUN_ANNOTATION = f"{PREFIX}run"
"""A block Job's run: its name, unless that had to be cut."""
PLAN_HASH_ANNOTATION = f"{PREFIX}plan-hash"
EXPERIMENT_UID_ANNOTATION = f"{PREFIX}experiment-uid"
DEVICES_ANNOTATION = f"{PREFIX}devices"
"""Devices that each pod of a block holds."""
IN_TURN_ANNOTATION = f"{PREFIX}in-turn-devices"
"""Devices of the running job that stand still for a block; on a block Job for which the job makes way, and no other."""
RESTART_ANNOTATION = f"{PREFIX}in-turn-restart-seconds"
"""What the job needs to start again after such a block."""
DECLARED_ANNOTATION = f"{PREFIX}declared"
"""Digest of what a running Job was made from: template, replicas and knobs; never of what the operator adds."""

TRIAL_PRIORITY_CLASS = "amdahl-loop-trial"

MAX_NAME = 63
MAX_JOB_NAME = 58
"""A pod's host name is its Job's name, a hyphen and an index of up to four digits, together at most 63."""

_BLOCK = re.compile(
    r"(?P<experiment>.+)-(?:(?P<stage>[pdsnh])(?P<index>\d+)|r(?P<check>\d+)-(?P<number>\d+))(?:-t\d+)?"
)
_OBSERVATION = re.compile(r".+-[0-9a-f]{8}-o(?P<number>\d+)")
_STAGES = {stage.value[0]: stage for stage in Stage}


class BlockRun(NamedTuple):
    """What a block's run name says: whose block it is, and which."""

    experiment: str
    stage: Stage
    check: int
    number: int


def read_run(run: str) -> BlockRun | None:
    """What the name of a block's run says (`Plan.run_name` made it); None where it is no block's."""
    match = _BLOCK.fullmatch(run)
    if match is None:
        return None
    if match["stage"] is None:
        return BlockRun(match["experiment"], Stage.REFUTE, int(match["check"]), int(match["number"]))
    return BlockRun(match["experiment"], _STAGES[match["stage"]], 0, int(match["index"]))


def is_observation(run: str) -> bool:
    """Whether a run's name is that of an observation."""
    return _OBSERVATION.fullmatch(run) is not None


def observation_number(run: str) -> int:
    """Which observation of its job a run is, from 0; -1 where its name is no observation's."""
    match = _OBSERVATION.fullmatch(run)
    return -1 if match is None else int(match["number"])


def fit(stem: str, suffix: str = "", limit: int = MAX_NAME) -> str:
    """`stem` and `suffix` where both fit into `limit` characters, else the stem cut, with a hash of it."""
    if len(stem) + len(suffix) <= limit:
        return stem + suffix
    digest = f"-{hash_text(stem)[:8]}{suffix}"
    return stem[: limit - len(digest)].rstrip("-") + digest


def revision_name(job: str, revision: int) -> str:
    """Name of the running Job of a revision."""
    return fit(job, f"-r{revision}", MAX_JOB_NAME)


def block_name(run: str) -> str:
    """Name of a block's Job: the run's, unless its pods' host names would be too long."""
    return fit(run, limit=MAX_JOB_NAME)


def service_name(job: str) -> str:
    """Name of the headless Service through which ranks find each other; a Service's name begins with a letter."""
    return fit(job if job[0].isalpha() else f"n{hash_text(job)[:8]}-{job}", "-ranks")


def knobs_name(job: str) -> str:
    """Name of the ConfigMap that holds the values in force."""
    return fit(job, "-knobs")


def probe_name(digest: str) -> str:
    """Name of the probe's ConfigMap, by the SHA-256 of its content."""
    return f"amdahl-probe-{digest[:10]}"


def rank_host(job_name: str, index: int, service: str) -> str:
    """Name under which pod `index` of an Indexed Job is found by the others."""
    return f"{job_name}-{index}.{service}"

"""What do the objects of a running job say about it: which revision, which values, and does it run?

Numbers that were written down beside the values tell whether a Job was made before or after them. Only for what a
restart of a container may have changed, and for Jobs of older operators, dates have to be compared.
"""

from collections.abc import Mapping, Sequence

from amdahl_loop.adapters.kube.objects import JobFacts, PodFacts
from amdahl_loop.adapters.kube.render import PROBE_VOLUME
from amdahl_loop.adapters.kube.render_running import CHANGED_ANNOTATION, REPLICA_ANNOTATION, VALUES_ANNOTATION
from amdahl_loop.adapters.kube.revisions import SURE_S, Revision
from amdahl_loop.domain.children import DECLARED_ANNOTATION, REVISION_LABEL


def read_revision(facts: JobFacts) -> Revision:
    """A running Job, and what it was made from."""
    values = facts.annotations.get(VALUES_ANNOTATION)
    return Revision(
        number=whole(facts.labels.get(REVISION_LABEL), 0),
        declared=facts.annotations.get(DECLARED_ANNOTATION, ""),
        devices=facts.annotations.get(REPLICA_ANNOTATION, ""),
        facts=facts,
        values=None if values is None else whole(values, 0),
        has_probe=PROBE_VOLUME in facts.volumes,
    )


def others_since_s(newest: Revision, annotations: Mapping[str, str]) -> float | None:
    """Since when the values are others than a Job was made with; None where they are the same.

    `annotations` are those of the knobs' ConfigMap.
    """
    changed_s = float(whole(annotations.get(CHANGED_ANNOTATION), 0))
    if newest.values is None:
        return changed_s if changed_s > newest.facts.created_at_s else None
    return changed_s if newest.values != whole(annotations.get(VALUES_ANNOTATION), 0) else None


def is_older(pod: PodFacts, changed_s: float) -> bool:
    """Whether a pod may have been started before the values changed; one that waits will be started with them."""
    since_s = pod.trainer.running_since_s
    return since_s is not None and since_s < changed_s + SURE_S


def have_failed_before(pods: Sequence[PodFacts], changed_s: float) -> bool:
    """Whether all that there was of a program has failed, none of it started after the values changed."""
    ends = [pod.trainer.ended for pod in pods]
    return bool(ends) and all(
        end is not None and end.exit_code and (end.started_at_s or 0) <= changed_s for end in ends
    )


def is_well(facts: JobFacts) -> bool:
    """Whether nothing of a Job has failed or is still to start."""
    return facts.is_complete or (not facts.failed and not facts.failure_reason and facts.ready >= facts.replicas)


def whole(text: str | None, default: int) -> int:
    """A number that was written down; the default where there is none that can be read."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 12 else default

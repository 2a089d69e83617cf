"""How is a closed Experiment marked, so that its metadata alone tell what is recalled of it?

A whole Experiment costs the API server milliseconds to list, its metadata a tenth of that, and a large cluster has tens
of thousands. So a closed one bears a label, by which it is selected, and its compact form as an annotation. The
server's record of who wrote which field, a third of the object, is dropped: it has one writer.

What a mark tells never becomes wrong. A win's applications and holdout blocks come later, so its compact form leaves
them out, and a win is read whole before it counts. Before anything is added to another one, its mark is taken away.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.rows import compact, key_of
from amdahl_loop.domain.children import CLOSED_LABEL, COMPACT_ANNOTATION
from amdahl_loop.domain.verdicts import VerdictWord

CLOSED = f"{CLOSED_LABEL}=true"
OPEN = f"{CLOSED_LABEL}!=true"
"""Selectors. What is closed and not labelled yet, because a crash came between, counts as open."""

TRIES = 3
"""Reads and writes of one mark while others keep being faster; then the next start sets it."""

_log = logging.getLogger(__name__)


def unfold(told: Object) -> Object | None:
    """The Experiment in its compact form, as its metadata tell; None where they do not, or tell of another object."""
    metadata = told["metadata"]
    text = (metadata.get("annotations") or {}).get(COMPACT_ANNOTATION, "")
    try:
        form = json.loads(text)
    except ValueError:
        return None
    if not isinstance(form, Mapping) or form.get("uid") != metadata.get("uid"):
        return None
    return {"metadata": metadata, "spec": form.get("spec"), "status": form.get("status")}


def is_marked(document: Object) -> bool:
    """Whether an Experiment is labelled as closed, and bears its compact form."""
    labels = document["metadata"].get("labels") or {}
    return labels.get(CLOSED_LABEL) == "true" and unfold(document) is not None


async def mark_closed(client: KubeClient, document: Object) -> Object:
    """Mark a closed Experiment as it was read; what it is now. Where it is gone, there is nothing to mark."""
    for _ in range(TRIES):
        if is_marked(document) or "verdict" not in (document.get("status") or {}):
            return document
        key = key_of(document)
        answer = await client.patch(Kind.EXPERIMENT, *key, write_mark(document))
        if not isinstance(answer, Refused):
            return answer
        if answer.is_gone:
            return document
        if not answer.is_outdated:
            _log.warning("Experiment %s/%s could not be marked as closed: %s", *key, answer.message)
            return document
        document = await client.get(Kind.EXPERIMENT, *key) or document
    return document


async def unmark(client: KubeClient, document: Object) -> Object | Refused:
    """Take an Experiment's compact form away, before something is added that it would not tell; what it is now."""
    status, metadata = document.get("status") or {}, document["metadata"]
    is_won = (status.get("verdict") or {}).get("word") == VerdictWord.WON
    if is_won or COMPACT_ANNOTATION not in (metadata.get("annotations") or {}):
        return document
    body = {"resourceVersion": metadata["resourceVersion"], "annotations": {COMPACT_ANNOTATION: None}}
    return await client.patch(Kind.EXPERIMENT, *key_of(document), {"metadata": body})


def write_mark(document: Object) -> Object:
    """The merge patch that sets label and compact form, bound to the version that they tell of."""
    metadata: Mapping[str, Any] = document["metadata"]
    form = compact(document)
    form["status"].pop("applications", None)
    text = json.dumps(
        {"uid": metadata["uid"], "spec": form["spec"], "status": form["status"]},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return {
        "metadata": {
            "resourceVersion": metadata["resourceVersion"],
            "labels": {CLOSED_LABEL: "true"},
            "annotations": {COMPACT_ANNOTATION: text},
            "managedFields": [{}],  # the server's word for none
        }
    }

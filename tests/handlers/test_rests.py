"""Which jobs are at rest, and what ends a rest?"""

from collections.abc import Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.jobs import ShownJob
from amdahl_loop.recollection import REST_S, JobKey, Recollection, Rest
from builders import make_manifest
from shown_builders import show_experiment

KEY, ANOTHER = JobKey("team", "pydocs"), JobKey("team", "another")
OWNED: dict[str, Any] = {"f:spec": {"f:knobs": {"f:dataloaderWorkers": {}}}}


def make_document(**metadata: Any) -> dict[str, Any]:
    """A TrainingJob as the server shows it."""
    document = make_manifest()
    document["metadata"] = {
        "name": "pydocs",
        "namespace": "team",
        "uid": "u1",
        "generation": 1,
        "resourceVersion": "7",
        "managedFields": [{"manager": "kubectl", "fieldsV1": OWNED}],
    } | metadata
    return document | {"status": {"observedGeneration": 1}}


def digest(document: dict[str, Any]) -> int:
    """What a pass reads of it."""
    return ShownJob(document=document).digest


@pytest.mark.parametrize(
    ("change", "is_alike"),
    [
        ({}, True),
        ({"resourceVersion": "8"}, True),
        ({"annotations": {"example.com/woken": "now"}}, True),
        ({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, True),
        ({"managedFields": [{"manager": "kubectl", "fieldsV1": OWNED, "time": "later"}]}, True),
        ({"managedFields": [{"manager": "helm", "fieldsV1": OWNED}]}, False),
        ({"annotations": {"amdahl-loop.io/paused": "true"}}, False),
        ({"annotations": {"amdahl-loop.io/overrule": "helm"}}, False),
        ({"annotations": {"argocd.argoproj.io/tracking-id": "app"}}, False),
        ({"labels": {"kueue.x-k8s.io/queue-name": "q"}}, False),
        ({"generation": 2}, False),
        ({"uid": "u2"}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, False),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else None,
)
def test_what_a_pass_does_not_read_makes_no_difference(change: dict[str, Any], is_alike: bool) -> None:
    """And whatever it reads does: the spec's generation, its owners, marks of tools, our own annotations, labels."""
    assert (digest(make_document(**change)) == digest(make_document())) == is_alike


def test_a_status_that_somebody_changed_is_read() -> None:
    """It is what a pass would write anew."""
    assert digest(make_document() | {"status": {}}) != digest(make_document())


def nothing(_: Recollection) -> None:
    """Nothing happens."""


@pytest.mark.parametrize(
    ("happens", "document", "after_s", "rests"),
    [
        (nothing, make_document(), 0.0, True),
        (nothing, make_document(), REST_S - 1, True),
        (nothing, make_document(), REST_S, False),
        (nothing, make_document(), -1.0, False),
        (nothing, make_document(resourceVersion="8"), 0.0, True),
        (nothing, make_document(generation=2), 0.0, False),
        (nothing, make_document(uid="u2"), 0.0, False),
        (lambda known: known.rests.hear(KEY), make_document(), 0.0, False),
        (lambda known: known.rests.hear(ANOTHER), make_document(), 0.0, True),
        (lambda known: known.rests.lose_track(), make_document(), 0.0, False),
        (lambda known: known.index.learn(show_experiment(uid="u9", verdict="NoGain")), make_document(), 0.0, False),
        (lambda known: known.index.learn(show_experiment(uid="u9")), make_document(), 0.0, True),
        (
            lambda known: known.index.learn(show_experiment(uid="u9", verdict="NoGain", namespace="elsewhere")),
            make_document(),
            0.0,
            True,
        ),
        (lambda known: known.forget(KEY), make_document(), 0.0, False),
    ],
    ids=[
        "nothing",
        "most of the time is over",
        "the time is over",
        "the clock was set back",
        "another version that says the same",
        "another spec",
        "another job of that name",
        "something of it changed",
        "something of another job changed",
        "nothing was heard for a while",
        "an experiment of its namespace closed",
        "one was opened",
        "one of another namespace closed",
        "it was gone",
    ],
)
def test_a_rest_lasts_while_nothing_is_told(
    happens: Callable[[Recollection], None], document: dict[str, Any], after_s: float, rests: bool
) -> None:
    """After a whole pass at 1000 s that found nothing to do."""
    known = Recollection(since_s=0.0, index=ExperimentIndex())
    known.rests.keep(
        KEY, Rest(digest=digest(make_document()), heard=known.rests.heard(KEY), at_s=1000.0, breakdown=None)
    )
    happens(known)
    assert (known.rests.find(KEY, digest(document), 1000.0 + after_s) is not None) == rests
    assert (known.rests.find(KEY, digest(make_document()), 1000.0) is not None) == rests


def test_what_is_told_while_a_pass_reads_keeps_it_from_resting() -> None:
    """It may have read the child before it changed."""
    known = Recollection(since_s=0.0, index=ExperimentIndex())
    heard = known.rests.heard(KEY)
    known.rests.hear(KEY)
    known.rests.keep(KEY, Rest(digest=digest(make_document()), heard=heard, at_s=1000.0, breakdown=None))
    assert known.rests.find(KEY, digest(make_document()), 1000.0) is None

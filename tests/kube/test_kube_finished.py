"""Which jobs are known to have run to their end, and what makes the operator ask again?"""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.finished import FinishedJobs
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.transport import Answer, Request

COMPLETE = {"type": "Complete", "status": "True"}


def make_run(name: str = "train-r0", version: str = "7", job: str = "train", **change: Any) -> Object:
    """A Job that has run to its end."""
    labels = {"amdahl-loop.io/job": job, "amdahl-loop.io/revision": "0"} | change.pop("labels", {})
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": f"uid of {name}",
        "resourceVersion": version,
        "labels": {key: text for key, text in labels.items() if text},
        "ownerReferences": [{"uid": "u1", "controller": True}],
    }
    return {
        "metadata": metadata | change.pop("metadata", {}),
        "spec": {},
        "status": {"conditions": [COMPLETE]} | change,
    }


BLOCK = make_run("train-e0-b0", labels={"amdahl-loop.io/revision": "", "amdahl-loop.io/experiment": "train-e0"})


class Listed:
    """A server that lists these Jobs."""

    def __init__(self, *jobs: Object) -> None:
        self.jobs = jobs

    async def send(self, request: Request) -> Answer:
        """One page."""
        assert dict(request.query)["labelSelector"] == "amdahl-loop.io/job"
        return Answer(status=200, body={"metadata": {"resourceVersion": "9"}, "items": list(self.jobs)})

    async def close(self) -> None:
        """Nothing is open."""


def load(*jobs: Object) -> FinishedJobs:
    """What is known after a start beside these Jobs."""
    finished = FinishedJobs()
    assert asyncio.run(finished.load(KubeClient(Listed(*jobs)), "team")) == "9"
    return finished


def names(finished: FinishedJobs, uid: str = "u1") -> list[str]:
    """The Jobs that are known of job `train`."""
    return [facts.name for facts in finished.find("team", "train", uid)]


@pytest.mark.parametrize(
    ("jobs", "known"),
    [
        ([make_run()], ["train-r0"]),
        ([make_run(conditions=[])], []),
        ([make_run(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})], []),
        ([make_run(), make_run("train-r1")], []),
        ([make_run(), BLOCK], []),
        ([BLOCK], []),
        ([make_run(), make_run("other-r0", job="other")], ["train-r0"]),
        ([], []),
    ],
    ids=["ended", "runs", "goes", "two revisions", "beside a block", "a block alone", "beside another job", "nothing"],
)
def test_only_a_job_of_which_all_has_ended_is_known(jobs: list[Object], known: list[str]) -> None:
    """Whatever else there is has to be looked at live."""
    assert names(load(*jobs)) == known


def test_a_namesake_of_a_job_is_not_the_job() -> None:
    """It was deleted and made anew: the Job is that of the one before."""
    assert names(load(make_run()), uid="u2") == []


@pytest.mark.parametrize(
    ("told", "is_gone", "known"),
    [
        (make_run(), False, ["train-r0"]),
        (make_run(version="8"), False, []),
        (make_run(), True, []),
        (BLOCK, False, []),
        (make_run(version="8", job="other"), False, []),
        (make_run("other-r0", job="other"), False, ["train-r0"]),
    ],
    ids=["as it was", "changed", "gone", "a block is made", "relabelled", "of another job"],
)
def test_whatever_is_told_of_a_job_has_it_read_live(told: Object, is_gone: bool, known: list[str]) -> None:
    """Then, and from then on."""
    finished = load(make_run())
    finished.hear(told, is_gone)
    assert names(finished) == known
    finished.hear(make_run(), is_gone=False)
    assert names(finished) == known


@pytest.mark.parametrize(
    ("there", "namespace", "known"),
    [
        ([make_run()], "team", ["train-r0"]),
        ([make_run()], None, ["train-r0"]),
        ([make_run(version="8")], "team", []),
        ([make_run(), BLOCK], "team", []),
        ([], "team", []),
        ([], None, []),
        ([], "another", ["train-r0"]),
    ],
    ids=["the same", "the same of all", "changed", "beside a block", "gone", "gone from all", "of another namespace"],
)
def test_after_a_silence_only_what_is_as_it_was_stays_known(
    there: list[Object], namespace: str | None, known: list[str]
) -> None:
    """Nothing was heard for a while, and all there is was listed."""
    finished = load(make_run())
    finished.compare(there, namespace)
    assert names(finished) == known

"""Which jobs are known to have nothing that runs, and what makes the operator ask again?"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.finished import FinishedJobs
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.rows import Key
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


POD = {"metadata": {"namespace": "team", "name": "train-r0-0-x", "labels": {"amdahl-loop.io/job": "train"}}}
ASK = None
"""Nothing is known: what there is has to be asked for."""


class Listed:
    """A server that lists these Jobs and pods."""

    def __init__(self, *jobs: Object, pods: Sequence[Object] = ()) -> None:
        self.lists = {"jobs": list(jobs), "pods": list(pods)}

    async def send(self, request: Request) -> Answer:
        """One page."""
        assert dict(request.query)["labelSelector"] == "amdahl-loop.io/job"
        items = self.lists[request.path.rpartition("/")[2]]
        return Answer(status=200, body={"metadata": {"resourceVersion": "9"}, "items": items})

    async def close(self) -> None:
        """Nothing is open."""


def load(*jobs: Object, pods: Sequence[Object] = ()) -> FinishedJobs:
    """What is known after a start beside these Jobs and pods."""
    finished, client = FinishedJobs(), KubeClient(Listed(*jobs, pods=pods))
    assert asyncio.run(finished.load(client, "team")) == "9"
    assert asyncio.run(finished.load_pods(client, "team")) == "9"
    return finished


def names(finished: FinishedJobs, uid: str = "u1") -> list[str] | None:
    """The Jobs that are known of job `train`; None where it has to be asked for."""
    known = finished.find("team", "train", uid)
    return None if known is None else [facts.name for facts in known]


SUSPENDED = make_run(conditions=[])
SUSPENDED["spec"] = {"suspend": True}


@pytest.mark.parametrize(
    ("jobs", "pods", "known"),
    [
        ([make_run()], [], ["train-r0"]),
        ([make_run()], [POD], ["train-r0"]),
        ([SUSPENDED], [], ["train-r0"]),
        ([SUSPENDED | {"status": {"active": 1}}], [], ASK),
        ([SUSPENDED | {"status": {"terminating": 1}}], [], ASK),
        ([SUSPENDED | {"status": {"failed": 1}}], [], ASK),
        ([make_run(conditions=[])], [], ASK),
        ([make_run(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})], [], ASK),
        ([make_run(), make_run("train-r1")], [], ASK),
        ([make_run(), BLOCK], [], ASK),
        ([BLOCK], [], ASK),
        ([make_run(), make_run("other-r0", job="other")], [], ["train-r0"]),
        ([], [], []),
        ([], [POD], ASK),
    ],
    ids=[
        "ended",
        "ended, and its pod is there",
        "suspended",
        "suspended, and a pod is there",
        "suspended, and a pod goes",
        "suspended after a failure",
        "runs",
        "goes",
        "two revisions",
        "beside a block",
        "a block alone",
        "beside another job",
        "nothing",
        "a pod without its Job",
    ],
)
def test_only_a_job_of_which_nothing_runs_is_known(
    jobs: list[Object], pods: list[Object], known: list[str] | None
) -> None:
    """Whatever else there is has to be looked at live."""
    assert names(load(*jobs, pods=pods)) == known


def test_before_anything_was_listed_nothing_is_known() -> None:
    """No Jobs that were seen are not the same as no Jobs that are there."""
    assert names(FinishedJobs()) is ASK


def test_a_namesake_of_a_job_is_not_the_job() -> None:
    """It was deleted and made anew: the Job is that of the one before."""
    assert names(load(make_run()), uid="u2") is ASK


def test_what_was_asked_for_once_is_asked_for_again_until_the_job_is_gone() -> None:
    """The watch tells of the operator's own writes later than their answers do."""
    finished, key = load(), Key("team", "train")
    finished.ask(key)
    assert names(finished) is ASK
    finished.forget(key)
    assert names(finished) == []


def test_an_operator_that_has_heard_of_very_many_asks_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps no name of jobs that are long gone, and believes nothing any more."""
    monkeypatch.setattr("amdahl_loop.adapters.kube.finished.MOST", 3)
    finished = load()
    for number in range(3):
        finished.ask(Key("team", f"other-{number}"))
    assert names(finished) == []
    finished.ask(Key("team", "one-more"))
    assert names(finished) is ASK


@pytest.mark.parametrize(
    ("told", "is_gone", "known"),
    [
        (make_run(), False, ["train-r0"]),
        (make_run(version="8"), False, ASK),
        (make_run(), True, ASK),
        (BLOCK, False, ASK),
        (make_run(version="8", job="other"), False, ASK),
        (make_run("other-r0", job="other"), False, ["train-r0"]),
    ],
    ids=["as it was", "changed", "gone", "a block is made", "relabelled", "of another job"],
)
def test_whatever_is_told_of_a_job_has_it_read_live(told: Object, is_gone: bool, known: list[str] | None) -> None:
    """Then, and from then on."""
    finished = load(make_run())
    finished.hear(told, is_gone)
    assert names(finished) == known
    finished.hear(make_run(), is_gone=False)
    assert names(finished) == known


@pytest.mark.parametrize("told", [make_run(), POD], ids=["a Job", "a pod"])
def test_what_comes_to_a_job_that_had_nothing_has_it_read_live(told: Object) -> None:
    """Whoever made it."""
    finished = load()
    if told is POD:
        finished.hear_pod(told)
    else:
        finished.hear(told, is_gone=False)
    assert names(finished) is ASK


@pytest.mark.parametrize(
    ("there", "namespace", "known"),
    [
        ([make_run()], "team", ["train-r0"]),
        ([make_run()], None, ["train-r0"]),
        ([make_run(version="8")], "team", ASK),
        ([make_run(), BLOCK], "team", ASK),
        ([], "team", ASK),
        ([], None, ASK),
        ([], "another", ["train-r0"]),
    ],
    ids=["the same", "the same of all", "changed", "beside a block", "gone", "gone from all", "of another namespace"],
)
def test_after_a_silence_only_what_is_as_it_was_stays_known(
    there: list[Object], namespace: str | None, known: list[str] | None
) -> None:
    """Nothing was heard for a while, and all there is was listed."""
    finished = load(make_run())
    finished.compare(there, namespace)
    assert names(finished) == known


def test_after_a_silence_what_came_meanwhile_is_read_live() -> None:
    """A job that had nothing has a Job now."""
    finished = load()
    finished.compare([make_run()], "team")
    assert names(finished) is ASK

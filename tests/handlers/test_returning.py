"""Which jobs does an operator that starts leave as they are, and when is it to look in spite of what their status says?"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.jobs import ShownJob
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.policies import read_policy
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.desk import Desk, Echoes
from amdahl_loop.recollection import REST_S, JobKey, Recollection
from amdahl_loop.resting import RESYNC_IDLE_S
from amdahl_loop.returning import find_left
from builders import make_manifest
from shown_builders import show_experiment

KEY = JobKey("team", "pydocs")
START_S = 1_800_000_000.0
"""After everything that the builders date."""


def make_job(reason: str = "Finished", *, suspend: bool = False, told: int = 1, **metadata: Any) -> Object:
    """A TrainingJob whose status, written at version 50, says how it stands."""
    document = make_manifest(suspend=suspend)
    document["metadata"] = {
        "name": "pydocs",
        "namespace": "team",
        "uid": "u1",
        "generation": 1,
        "resourceVersion": "50",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    } | metadata
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    bank = {"grossDeviceHours": 2.0, "spentDeviceHours": 1.0, "netDeviceHours": 1.0}
    return document | {"status": {"observedGeneration": told, "conditions": [ready], "bank": bank}}


def make_run(*, complete: bool = True, version: str = "40", **change: Any) -> Object:
    """The job's only Job: it is complete, or suspended with nothing of it running."""
    metadata = {
        "namespace": "team",
        "name": "pydocs-r0",
        "uid": "j1",
        "resourceVersion": version,
        "labels": {"amdahl-loop.io/job": "pydocs", "amdahl-loop.io/revision": "0"},
        "ownerReferences": [{"uid": "u1", "controller": True}],
    }
    conditions = [{"type": "Complete", "status": "True"}] if complete else []
    template = {"spec": {"volumes": [{"name": "amdahl-probe"}]}}
    spec = {"suspend": not complete, "template": template}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": conditions}} | change


close = partial(show_experiment, verdict="NoGain", version="30", job="pydocs")
"""An Experiment of the job's that has ended before the status was written."""


class Listed:
    """A server that lists these Jobs, and no pod."""

    def __init__(self, jobs: Sequence[Object], pods: Sequence[Object]) -> None:
        self.lists = {"jobs": list(jobs), "pods": list(pods)}

    async def send(self, request: Request) -> Answer:
        """One page."""
        items = self.lists[request.path.rpartition("/")[2]]
        return Answer(status=200, body={"metadata": {"resourceVersion": "60"}, "items": items})

    async def close(self) -> None:
        """Nothing is open."""


def start(
    jobs: Sequence[Object] = (), experiments: Sequence[Object] = (), pods: Sequence[Object] = ()
) -> tuple[Desk, list[JobKey]]:
    """An operator that has just read its lists; and the keys that it looks at."""
    taken: list[JobKey] = []

    async def advance(key: JobKey) -> float:
        taken.append(key)
        return 300.0

    known = Recollection(since_s=START_S, index=ExperimentIndex())
    for experiment in experiments:
        known.index.learn(experiment)
    client = KubeClient(Listed(jobs, pods), clock=lambda: START_S + 1.0)
    asyncio.run(known.finished.load(client, None))
    asyncio.run(known.finished.load_pods(client, None))
    return Desk(client, known, Echoes(), advance, workers=1), taken


POD = {"metadata": {"namespace": "team", "name": "pydocs-r0-0-x", "labels": {"amdahl-loop.io/job": "pydocs"}}}
FAILED = make_run(status={"conditions": [{"type": "Failed", "status": "True"}]})


@pytest.mark.parametrize(
    ("job", "jobs", "experiments"),
    [
        (make_job(), [make_run()], []),
        (make_job(), [make_run()], [close()]),
        (make_job(), [make_run()], [close(uid="u0")]),
        (make_job(suspend=True), [make_run()], []),
        (make_job("Suspended", suspend=True), [], []),
        (make_job("Suspended", suspend=True), [make_run(complete=False)], []),
        (make_job(), [make_run(version="51")], []),
        (make_job("Suspended", suspend=True), [make_run(complete=False, version="51")], []),
    ],
    ids=[
        "ended",
        "closed",
        "of another job before",
        "suspended after its end",
        "suspended",
        "suspended with a Job",
        "ended, its controller wrote after us",
        "suspended, its controller wrote after us",
    ],
)
def test_what_was_left_with_nothing_to_do_rests(job: Object, jobs: list[Object], experiments: list[Object]) -> None:
    """It is counted with the others, looked at like any that rests, and as a whole within half an hour."""
    desk, _ = start(jobs, experiments)
    desk.see_job(job, is_gone=False)
    known = desk.recollection
    assert known.told[KEY].gross_h == 2.0
    due_in_s = desk.queue.due_in_s(KEY)
    assert due_in_s is not None
    assert 0 < due_in_s < RESYNC_IDLE_S
    left = find_left(ShownJob(document=job), known, START_S)
    assert left is not None
    assert known.rests.find(KEY, left.rest.digest, START_S + 1.0) is not None
    assert known.rests.find(KEY, left.rest.digest, START_S + 1.0 + REST_S) is None


@pytest.mark.parametrize(
    ("job", "jobs", "experiments", "pods"),
    [
        (make_job(told=0), [make_run()], [], []),
        (make_job(generation=2), [make_run()], [], []),
        (make_job(deletionTimestamp="2026-01-02T00:00:00Z"), [make_run()], [], []),
        (make_job(creationTimestamp="2028-01-01T00:00:00Z"), [make_run()], [], []),
        (make_job(uid="u2"), [make_run()], [], []),
        (make_job(), [], [], []),
        (make_job(), [make_run(complete=False)], [], []),
        (make_job(), [FAILED], [], []),
        (make_job(), [make_run(), make_run(complete=False)], [], []),
        (make_job(), [make_run(spec={})], [], []),
        (make_job("AsDeclared"), [make_run()], [], []),
        (make_job("Suspended"), [], [], []),
        (make_job("Suspended", suspend=True), [make_run()], [], []),
        (make_job("Queued", suspend=True), [make_run(complete=False)], [], []),
        (
            make_job("Suspended", suspend=True, labels={"kueue.x-k8s.io/queue-name": "q"}),
            [make_run(complete=False)],
            [],
            [],
        ),
        (make_job("Suspended", suspend=True), [], [], [POD]),
        (make_job(), [make_run()], [close(verdict="")], []),
        (make_job(), [make_run()], [close(verdict="Won")], []),
        (make_job(), [make_run()], [close(version="51")], []),
        (make_job(resourceVersion="99999999999"), [make_run()], [close(version="100000000000")], []),
        (make_job(), [make_run()], [close(verdict="", uid="u0")], []),
        (make_job(resourceVersion="not-a-number"), [make_run()], [], []),
    ],
    ids=[
        "never described",
        "changed since",
        "on its way out",
        "younger than the lists",
        "another job of that name",
        "its Job is gone",
        "its Job runs on",
        "its Job failed",
        "it has two",
        "its Job runs without the probe",
        "it ran",
        "it was resumed",
        "it has ended meanwhile",
        "it waits in a queue",
        "a queue manages it",
        "it has a pod",
        "an experiment is open",
        "a win may count",
        "a verdict is younger than the status",
        "so it is, and versions have become long",
        "one is open of a job before",
        "versions cannot be compared",
    ],
)
def test_whatever_may_ask_for_something_is_looked_at(
    job: Object, jobs: list[Object], experiments: list[Object], pods: list[Object]
) -> None:
    """At once, as a whole."""
    desk, _ = start(jobs, experiments, pods)
    desk.see_job(job, is_gone=False)
    assert desk.queue.due_in_s(KEY) == 0.0
    assert KEY not in desk.recollection.told


def hear_run(desk: Desk) -> None:
    """Its Job is told of, changed."""
    asyncio.run(desk.see_run(make_run(version="70"), is_gone=False))


@pytest.mark.parametrize(
    "tell",
    [
        lambda desk: desk.see_job(make_job(resourceVersion="70"), is_gone=False),
        lambda desk: desk.see_policy({"metadata": {"namespace": "team", "name": "p"}}, is_gone=False),
        hear_run,
    ],
    ids=["the job", "a policy", "its Job"],
)
def test_what_is_told_after_that_has_it_looked_at(tell: Callable[[Desk], None]) -> None:
    """As of any job that rests."""
    desk, _ = start([make_run()])
    desk.see_job(make_job(), is_gone=False)
    assert desk.queue.due_in_s(KEY) != 0.0
    tell(desk)
    assert desk.queue.due_in_s(KEY) == 0.0


def test_under_a_policy_every_job_is_looked_at() -> None:
    """It may have changed while nobody watched; its own version is not kept."""
    desk, _ = start([make_run()])
    desk.recollection.policies["team"] = {"p": read_policy("team", "p", {})}
    desk.see_job(make_job(), is_gone=False)
    assert desk.queue.due_in_s(KEY) == 0.0


def test_looks_are_spread_over_time() -> None:
    """Or ten thousand jobs would be looked at as a whole in the same minute."""
    looks = []
    for number in range(200):
        desk, _ = start()
        job = make_job("Suspended", suspend=True, uid=f"u{number}")
        left = find_left(ShownJob(document=job), desk.recollection, START_S)
        assert left is not None
        looks.append((left.rest.at_s, left.look_in_s))
    for values, most in ((sorted(START_S - at_s for at_s, _ in looks), REST_S), (sorted(s for _, s in looks), 300.0)):
        assert values[0] < 0.1 * most
        assert values[-1] > 0.9 * most
        assert 0.35 * most < values[100] < 0.65 * most

"""Which events are worth a look? Those of others; what the operator itself has written it knows already."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.desk import ECHOES, Desk, Echoes
from amdahl_loop.recollection import JobKey, Recollection
from shown_builders import show_experiment

JOB = JobKey("team", "train")


class Silent:
    """A server that nobody has anything to ask of, or that holds one experiment."""

    def __init__(self, experiment: dict[str, Any] | None = None, code: int = 404) -> None:
        self.answer = Answer(status=code, body={}) if experiment is None else Answer(status=200, body=experiment)
        self.asked: list[Request] = []

    async def send(self, request: Request) -> Answer:
        self.asked.append(request)
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


def make(kind: str, version: str, uid: str = "u1", **metadata: Any) -> dict[str, Any]:
    """An object of a job's, or the job itself."""
    known = {"namespace": "team", "name": "train", "uid": uid, "resourceVersion": version}
    return {"kind": kind, "metadata": known | metadata}


def make_desk(server: Silent | None = None, advance: Callable[[JobKey], Awaitable[float | None]] | None = None) -> Desk:
    """A desk over one worker."""

    async def rest(_: JobKey) -> float:
        return 300.0

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    client = KubeClient(server or Silent(), sleep=sleep)
    return Desk(client, Recollection(since_s=0.0, index=ExperimentIndex()), Echoes(), advance or rest, workers=1)


def ask(method: str, read_at: str | None = None) -> Request:
    """A write, bound to the version that was read or not."""
    body: dict[str, Any] = {"metadata": {} if read_at is None else {"resourceVersion": read_at}}
    return Request(method=method, path="/x", body=body)


@pytest.mark.parametrize(
    ("request_", "answer", "is_echo"),
    [
        (ask("POST"), make("Job", "7"), True),
        (ask("PATCH", "6"), make("TrainingJob", "7"), True),
        (ask("PATCH", "7"), make("TrainingJob", "7"), False),
        (ask("PATCH"), make("TrainingJob", "7"), False),
        (ask("PATCH", "6"), make("Experiment", "7"), False),
        (ask("POST"), make("ConfigMap", "7"), False),
        (ask("DELETE"), {"kind": "Status", "metadata": {}}, False),
    ],
    ids=["created", "patched", "nothing changed", "unbound", "of the ledger", "not watched", "deleted"],
)
def test_what_was_written_comes_back_once(request_: Request, answer: dict[str, Any], is_echo: bool) -> None:
    """Its event says nothing new; the same version once more does."""

    async def scenario() -> None:
        desk = make_desk()
        desk.echoes.note(request_, answer)
        desk.see_job(make("TrainingJob", "7"), is_gone=False)
        assert (len(desk.queue) == 0) == is_echo
        desk.see_job(make("TrainingJob", "7"), is_gone=False)
        assert len(desk.queue) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("document", "is_gone", "wakes"),
    [
        (make("TrainingJob", "8"), False, True),
        (make("TrainingJob", "7", uid="another"), False, True),
        (make("TrainingJob", "7"), True, True),
        (make("TrainingJob", "7"), False, False),
    ],
    ids=["of another version", "of another object", "of its end", "its own"],
)
def test_whatever_else_comes_wakes_the_job(document: dict[str, Any], is_gone: bool, wakes: bool) -> None:
    """After a write of version 7."""

    async def scenario() -> None:
        desk = make_desk()
        desk.echoes.note(ask("POST"), make("TrainingJob", "7"))
        desk.see_job(document, is_gone)
        assert (len(desk.queue) == 1) == wakes
        assert desk.roster.of("team") == ([] if is_gone else [JOB])

    asyncio.run(scenario())


@pytest.mark.parametrize(("seen", "passes"), [("7", 1), ("6", 2)], ids=["its own", "somebody else's"])
def test_an_event_that_overtakes_the_answer_is_weighed_after_the_pass(seen: str, passes: int) -> None:
    """The watch is often faster than the answer to the write that it tells of."""

    async def scenario() -> None:
        taken, done = 0, asyncio.Event()

        async def advance(_: JobKey) -> float:
            nonlocal taken
            taken += 1
            if taken == 1:
                await desk.see_child(make("Job", seen, labels={"amdahl-loop.io/job": "train"}), is_gone=False)
                desk.echoes.note(ask("POST"), make("Job", "7"))
            done.set()
            return 300.0

        desk = make_desk(advance=advance)
        desk.queue.add(JOB)
        task = asyncio.create_task(desk.queue.run())
        await done.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        assert taken == passes

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "is_at_once"),
    [
        ({}, False),
        ({"annotations": {"example.com/touched": "now"}}, False),
        ({"labels": {"example.com/touched": "now"}}, False),
        ({"annotations": {"amdahl-loop.io/paused": "true"}}, True),
        ({"generation": 2}, True),
        ({"uid": "u2"}, True),
    ],
    ids=["a status", "an annotation", "a label", "an annotation of ours", "another spec", "another job of that name"],
)
@pytest.mark.parametrize("during", [True, False], ids=["while its pass runs", "after it"])
def test_a_failing_job_is_looked_at_at_once_when_its_owner_changes_it(
    change: dict[str, Any], is_at_once: bool, during: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever others do to it waits until the failed pass is tried again."""
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        ended = asyncio.Event()

        async def advance(_: JobKey) -> float:
            if during:
                desk.see_job(make("TrainingJob", "8", **{"generation": 1} | change), is_gone=False)
            ended.set()
            raise ValueError

        desk = make_desk(advance=advance)
        desk.see_job(make("TrainingJob", "7", generation=1), is_gone=False)
        task = asyncio.create_task(desk.queue.run())
        while not ended.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not during:
            desk.see_job(make("TrainingJob", "8", **{"generation": 1} | change), is_gone=False)
        due_in_s = desk.queue.due_in_s(JOB)
        assert due_in_s is not None
        assert (due_in_s == 0.0) == is_at_once

    asyncio.run(scenario())


OF_JOB: dict[str, Any] = {"labels": {"amdahl-loop.io/job": "train"}}


@pytest.mark.parametrize(
    ("tell", "is_whole"),
    [
        (lambda desk: desk.see_job(make("TrainingJob", "8"), is_gone=False), False),
        (lambda desk: desk.see_child(make("Job", "8", **OF_JOB), is_gone=False), True),
        (lambda desk: desk.see_child(make("Job", "7", **OF_JOB), is_gone=False), False),
        (lambda desk: desk.see_pod(make("Pod", "8", **OF_JOB), is_gone=False), True),
        (lambda desk: desk.see_run(make("Job", "8", **OF_JOB), is_gone=True), True),
        (lambda desk: desk.see_children([]), True),
        (lambda desk: desk.see_ledger(Key("team", "e0"), "train"), True),
        (lambda desk: desk.see_policy(make("TuningPolicy", "8"), is_gone=False), True),
    ],
    ids=["the job", "a Job", "our own write of a Job", "a pod", "a Job's end", "a silence", "the ledger", "a policy"],
)
def test_what_is_told_beside_the_job_itself_has_it_looked_at_as_a_whole(
    tell: Callable[[Desk], Awaitable[None] | None], is_whole: bool
) -> None:
    """The job itself is read at every look, so an event of it alone ends no rest."""

    async def scenario() -> None:
        desk = make_desk()
        desk.see_job(make("TrainingJob", "6"), is_gone=False)
        desk.echoes.note(ask("POST"), make("Job", "7"))
        before = desk.recollection.rests.heard(JOB)
        telling = tell(desk)
        if telling is not None:
            await telling
        assert (desk.recollection.rests.heard(JOB) != before) == is_whole

    asyncio.run(scenario())


def test_writes_whose_events_never_come_are_forgotten() -> None:
    """Or an operator without a watch would remember every write."""

    async def scenario() -> None:
        desk = make_desk()
        for number in range(ECHOES + 1):
            desk.echoes.note(ask("POST"), make("Job", str(number)))
        for version, wakes in (("1", 0), ("0", 1)):
            desk.see_job(make("TrainingJob", version), is_gone=False)
            assert len(desk.queue) == wakes

    asyncio.run(scenario())


class TestExperiments:
    """Who changes the ledger beside the operator is heard."""

    KEY = Key("team", "e0")

    def test_a_verdict_from_elsewhere_is_remembered(self) -> None:
        """An import writes it while the operator runs; what is known or older says nothing."""

        async def scenario() -> None:
            desk = make_desk()
            index = desk.recollection.index
            await desk.see_experiment(show_experiment(version="5"), is_gone=False)
            assert (len(desk.queue), index.is_closed(self.KEY)) == (1, False)
            await desk.see_experiment(show_experiment(version="6", verdict="Won"), is_gone=False)
            assert index.is_closed(self.KEY)
            await desk.see_experiment(show_experiment(version="4"), is_gone=False)
            assert index.is_closed(self.KEY)

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        ("server", "known", "is_unsettled"),
        [
            (Silent(), 0, True),
            (Silent(show_experiment(version="6", verdict="NoGain")), 1, False),
            (Silent(code=503), 1, True),
        ],
        ids=["deleted", "closed", "nobody can tell"],
    )
    def test_one_that_is_open_no_more_is_read(self, server: Silent, known: int, is_unsettled: bool) -> None:
        """Closed or deleted: the event does not tell which."""

        async def scenario() -> None:
            desk = make_desk(server)
            index = desk.recollection.index
            index.learn(show_experiment(version="6", verdict="NoGain"))
            await desk.see_experiment(show_experiment(version="7"), is_gone=True)
            assert (len(index), index.is_unsettled(self.KEY)) == (known, is_unsettled)
            assert [request.path.rpartition("/")[2] for request in server.asked[:1]] == ["e0"]

        asyncio.run(scenario())


def test_a_policy_that_went_unheard_is_no_longer_in_force() -> None:
    """Deleted while nobody watched: the next look at all of them finds out, and its jobs are looked at."""

    class Lists(Silent):
        names: tuple[str, ...] = ("day", "night")

        async def send(self, request: Request) -> Answer:
            self.asked.append(request)
            items = [make("TuningPolicy", "8", name=name) | {"spec": {"paused": True}} for name in self.names]
            return Answer(status=200, body={"metadata": {"resourceVersion": "9"}, "items": items})

    async def go() -> None:
        server = Lists()
        desk = make_desk(server)
        desk.see_job(make("TrainingJob", "1"), is_gone=False)
        await desk.read_policies(None)
        assert set(desk.recollection.policies["team"]) == {"day", "night"}
        heard = desk.recollection.rests.heard(JOB)
        await desk.read_policies(None)
        assert desk.recollection.rests.heard(JOB) == heard
        for server.names in (("day",), ()):
            await desk.read_policies(None)
            assert set(desk.recollection.policies["team"]) == set(server.names)
        assert desk.recollection.rests.heard(JOB) != heard

    asyncio.run(go())

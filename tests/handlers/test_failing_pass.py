"""What is a job's owner told of a pass that fails? Faults of ours, once; a server that is away is no news of the job."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.probe import Probe
from amdahl_loop.adapters.kube.transport import Answer, Request, UnreachableError
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.settings import Settings
from builders import make_manifest
from kube_builders import ListsOnly, impatient

KEY = JobKey("team", "pydocs")
Meets = Callable[[], Answer]


class Server(ListsOnly):
    """It holds one TrainingJob; every other request meets what the test has chosen."""

    def __init__(self, meets: Meets, *, is_gone_meanwhile: bool = False) -> None:
        self.meets, self.is_gone_meanwhile = meets, is_gone_meanwhile
        self.document: dict[str, Any] = make_manifest()
        self.document["metadata"] = {
            "name": "pydocs", "namespace": "team", "uid": "u1", "generation": 3, "resourceVersion": "1",
            "creationTimestamp": "2026-11-22T10:00:00Z",
        }  # fmt: skip
        self.writes = 0

    async def send(self, request: Request) -> Answer:
        """The job, or its status after a write; or what the test has chosen."""
        if "/trainingjobs/" not in request.path:
            if self.is_gone_meanwhile:
                self.document = {}
            return self.meets()
        if request.method == "PATCH":
            assert request.path.endswith("/status")
            assert request.body is not None
            assert request.body["metadata"]["resourceVersion"] == self.document["metadata"]["resourceVersion"]
            self.writes += 1
            self.document["metadata"]["resourceVersion"] += "1"
            self.document["status"] = self.document.get("status", {}) | request.body["status"]
        if not self.document:
            return Answer(status=404, body={})
        return Answer(status=200, body=copy.deepcopy(self.document))

    async def close(self) -> None:
        """Nothing is open."""

    def told(self, type_name: str) -> tuple[str, str, str]:
        """Status, reason and message of one condition; empty where there is none."""
        found = [c for c in self.document.get("status", {}).get("conditions", ()) if c["type"] == type_name]
        return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else ("", "", "")


def operate(server: Server) -> Operator:
    """An operator that knows nothing but what this server says."""
    return Operator(
        client=impatient(server),
        settings=Settings(),
        probe=Probe(b""),
        recollection=Recollection(since_s=0.0, index=ExperimentIndex()),
        clock=lambda: 1000.0,
        metrics=Metrics(list, lambda: (0, 0.0)),
    )


def meet(error: BaseException) -> Meets:
    """A request that ends so."""

    def meets() -> Answer:
        raise error

    return meets


def answer(status: int) -> Meets:
    """A request that is answered so."""
    return lambda: Answer(status=status, body={"message": "said the server"})


@pytest.mark.parametrize(
    ("meets", "words"),
    [
        (meet(KeyError("labels")), "KeyError: 'labels'"),
        (meet(ValueError("no\nsuch\tthing")), "ValueError: no such thing"),
        (meet(AttributeError("x" * 100_000)), "AttributeError: xxx"),
        (lambda: Answer(status=200, body={"items": 1}), "its log says where"),
    ],
    ids=["a key", "several lines", "many words", "an answer that nobody foresaw"],
)
def test_a_fault_of_ours_is_told_once_and_goes_on_to_the_queue(meets: Meets, words: str) -> None:
    """The type and a part of the words, however often the pass is tried again; the same again writes nothing."""
    server = Server(meets)
    operator = operate(server)
    for _ in range(3):
        with pytest.raises((KeyError, ValueError, AttributeError, TypeError)):
            asyncio.run(operator.advance(KEY))
    assert server.writes == 1
    status, reason, message = server.told("Stalled")
    assert (status, reason) == ("True", "OperatorFault")
    assert server.told("Ready")[0] == "False"
    assert words in message
    assert len(message) <= 400
    assert message.isprintable()
    assert server.document["status"]["observedGeneration"] == 3


@pytest.mark.parametrize(
    ("meets", "ends"),
    [
        (meet(UnreachableError("TimeoutError: no answer")), ApiUnavailable),
        (answer(409), ApiUnavailable),
        (answer(410), ApiUnavailable),
        (answer(429), ApiUnavailable),
        (answer(503), ApiUnavailable),
        (meet(asyncio.CancelledError()), asyncio.CancelledError),
    ],
    ids=["no answer", "conflict", "gone", "too many requests", "overloaded", "the operator stops"],
)
def test_what_is_only_to_be_tried_again_is_not_told(meets: Meets, ends: type[BaseException]) -> None:
    """It says nothing of the job, so its status stays as it is."""
    server = Server(meets)
    with pytest.raises(ends):
        asyncio.run(operate(server).advance(KEY))
    assert (server.writes, server.document.get("status")) == (0, None)


def test_a_right_that_is_missing_is_told_as_before() -> None:
    """By the server's own words, and without a failing pass."""
    server = Server(answer(401))
    assert asyncio.run(operate(server).advance(KEY))
    assert server.told("Stalled")[:2] == ("True", "RefusedByServer")


def test_another_fault_is_told_anew() -> None:
    """The last one counts."""
    server = Server(meet(KeyError("labels")))
    operator = operate(server)
    for fault in (KeyError("labels"), ValueError("other")):
        server.meets = meet(fault)
        with pytest.raises(type(fault)):
            asyncio.run(operator.advance(KEY))
    assert server.writes == 2
    assert "ValueError: other" in server.told("Stalled")[2]


def test_nothing_is_told_of_a_job_that_is_gone() -> None:
    """It was deleted while the pass went on; the fault goes to the queue all the same."""
    server = Server(meet(KeyError("labels")), is_gone_meanwhile=True)
    with pytest.raises(KeyError):
        asyncio.run(operate(server).advance(KEY))
    assert server.writes == 0

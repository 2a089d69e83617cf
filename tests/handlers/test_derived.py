"""When is a job's spec read anew? What follows from it is kept between passes, for this very spec of this very job."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.jobs import see
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.probe import Probe
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.domain.policy import constrain
from amdahl_loop.operate import Operator
from amdahl_loop.passing import Pass, identify
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.settings import Settings
from builders import make_manifest

KEY = JobKey("team", "pydocs")


class Unasked:
    """A server of which nothing is asked."""

    async def send(self, request: Request) -> Answer:
        raise AssertionError(request)

    async def close(self) -> None:
        """Nothing is open."""


def make_pass(recollection: Recollection, uid: str, generation: int, image: str) -> Pass:
    """A pass over the job as it is shown now."""
    document: dict[str, Any] = make_manifest()
    document["metadata"] = {"name": "pydocs", "namespace": "team", "uid": uid, "generation": generation}
    document["metadata"]["resourceVersion"] = "1"
    document["spec"]["template"]["spec"]["containers"][0]["image"] = image
    client, seen = KubeClient(Unasked()), see(document)
    assert seen.job is not None, seen.faults
    operator = Operator(
        client=client,
        settings=Settings(),
        probe=Probe(b""),
        recollection=recollection,
        clock=lambda: 0.0,
        metrics=Metrics(list, lambda: (0, 0.0)),
    )
    ledger = KubeLedger(client, recollection.index, seen, operator.clock)
    return Pass(operator, KEY, ledger, constrain(seen.job, {}))


@pytest.mark.parametrize(
    ("uid", "generation", "is_kept"),
    [("u1", 1, True), ("u1", 2, False), ("u2", 1, False)],
    ids=["the same", "another spec", "another job of that name"],
)
def test_who_a_job_is_follows_from_its_own_spec(uid: str, generation: int, is_kept: bool) -> None:
    """After a pass over generation 1 of `u1`; what is kept is the same object."""
    recollection = Recollection(since_s=0.0, index=ExperimentIndex())
    make_pass(recollection, "u1", 1, "example/one:1")
    first = recollection.derived[KEY]
    image = "example/one:1" if is_kept else "example/two:1"
    second = make_pass(recollection, uid, generation, image)
    assert (recollection.derived[KEY] is first) == is_kept
    assert second._identity == identify(second._job)


def test_a_job_that_is_gone_leaves_nothing() -> None:
    """Or an operator would grow with every job that it has ever seen."""
    recollection = Recollection(since_s=0.0, index=ExperimentIndex())
    make_pass(recollection, "u1", 1, "example/one:1")
    recollection.forget(KEY)
    assert recollection.derived == {}

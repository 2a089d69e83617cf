"""What do the metadata of a closed Experiment tell, and when do they tell nothing?"""

import asyncio
import json
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import Refused
from amdahl_loop.adapters.kube.closing import is_marked, mark_closed, unfold, unmark
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.domain.api import records
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from judge_builders import make_plan, make_record
from kube_builders import impatient

KEY = Key("team", "e0")
NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain.")
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


def make_closed(verdict: Verdict = NO_GAIN, *kinds: ApplicationKind) -> dict[str, Any]:
    """A closed Experiment that has run three blocks and lost one, as a server holds it."""
    plan = make_plan(name=KEY.name)
    status = ExperimentStatus()
    for spec in plan.blocks[:3]:
        status = records.add_block(status, make_record(plan, spec))
    status = records.add_loss(status, Loss(run="e0-d3", started_at_s=1.0, held_device_s=1 / 3))
    status = records.close(status, verdict, 5.0)
    for number, kind in enumerate(kinds):
        applied = Application(
            job=plan.job,
            job_uid=plan.job_uid,
            fingerprint=plan.fingerprint,
            at_s=6.0 + number,
            kind=kind,
            experiment=plan.name,
            declared=Knobs(dataloader_workers=0),
            knobs=Knobs(dataloader_workers=2),
        )
        status = records.add_application(status, applied)
    document = write_plan(plan)
    document["metadata"] |= {
        "namespace": KEY.namespace,
        "uid": "uid-0",
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-21T10:00:00Z",
        "labels": {"team": "vision", "amdahl-loop.io/closed": "false"},
        "managedFields": [{"manager": "amdahl-loop"}],
    }
    return json.loads(json.dumps(document | {"status": to_wire(status)}))  # type: ignore[no-any-return]  # JSON is Any


class Server:
    """A server that merges patches into one object, after it has been changed by others some times."""

    def __init__(self, document: dict[str, Any], conflicts: int = 0, refusal: int = 0) -> None:
        self.document, self.conflicts, self.refusal = document, conflicts, refusal
        self.writes = 0

    async def send(self, request: Request) -> Answer:
        """Answer a read or a patch of metadata."""
        metadata = self.document["metadata"]
        if request.method == "GET":
            return Answer(status=200, body=self.document)
        assert request.body is not None
        if self.refusal:
            return Answer(status=self.refusal, body={"message": "no"})
        if self.conflicts:
            self.conflicts -= 1
            self._write({"labels": {"team": f"other-{self.conflicts}"}})
            return Answer(status=409, body={"reason": "Conflict", "message": "changed"})
        assert request.body["metadata"]["resourceVersion"] == metadata["resourceVersion"]
        self._write(request.body["metadata"])
        return Answer(status=200, body=self.document)

    def _write(self, patch: dict[str, Any]) -> None:
        self.writes += 1
        metadata = dict(self.document["metadata"])
        for name, part in patch.items():
            merged = {**(metadata.get(name) or {}), **part} if isinstance(part, dict) else part
            metadata[name] = {k: v for k, v in merged.items() if v is not None} if isinstance(part, dict) else merged
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        self.document = self.document | {"metadata": metadata}

    async def close(self) -> None:
        """Nothing is open."""

    def mark(self, document: dict[str, Any]) -> dict[str, Any]:
        """What an Experiment is once it is marked."""
        return asyncio.run(mark_closed(impatient(self), document))

    def unmark(self, document: dict[str, Any]) -> dict[str, Any] | Refused:
        """What it is without its compact form."""
        return asyncio.run(unmark(impatient(self), document))


def mark(document: dict[str, Any]) -> dict[str, Any]:
    """The Experiment, marked."""
    return Server(document).mark(document)


def bare(document: dict[str, Any]) -> dict[str, Any]:
    """What a list of metadata tells of it."""
    return {"metadata": document["metadata"]}


@pytest.mark.parametrize(
    "document", [make_closed(NO_GAIN), make_closed(WON), make_closed(WON, ApplicationKind.APPLIED)]
)
def test_metadata_tell_what_is_recalled(document: dict[str, Any]) -> None:
    """Plan, verdict, moment, and what it held, to the last digit; the groups in which it is found, and its question."""
    whole, told = ExperimentIndex(), ExperimentIndex()
    whole.learn(document)
    form = unfold(bare(mark(document)))
    assert form is not None
    told.learn(form)
    expected, found = whole.recall(KEY), told.recall(KEY)
    assert isinstance(expected, StoredExperiment)
    assert isinstance(found, StoredExperiment)
    assert found.experiment == expected.experiment
    assert found.experiment.held_device_s == expected.experiment.held_device_s > 0
    assert found.closed_at_s == expected.closed_at_s == 5.0
    plan = expected.experiment.plan
    assert told.of_job("team", plan.job_uid) == [KEY]
    assert told.of_kin("team", "another", plan.fingerprint, "") == told.of_kin("team", "another", "", plan.family)
    assert told.of_kin("team", "another", plan.fingerprint, "") == [KEY]
    assert told.job_of(KEY) == plan.job


@pytest.mark.parametrize(
    ("verdict", "kinds", "is_live"),
    [
        (NO_GAIN, (), False),
        (WON, (), True),
        (WON, (ApplicationKind.APPLIED,), True),
        (WON, (ApplicationKind.APPLIED, ApplicationKind.ROLLED_BACK), True),
    ],
)
def test_a_win_is_read_whole_before_it_counts(
    verdict: Verdict, kinds: tuple[ApplicationKind, ...], is_live: bool
) -> None:
    """What became of it after it was closed is not among its metadata."""
    form = unfold(bare(mark(make_closed(verdict, *kinds))))
    assert form is not None
    assert "applications" not in form["status"]
    index = ExperimentIndex()
    index.learn(form)
    assert index.is_unsettled(KEY) is is_live


def test_a_mark_is_one_write() -> None:
    """Label and compact form together, the record of writers gone, other people's labels kept; then nothing more."""
    server = Server(make_closed())
    marked = server.mark(server.document)
    assert (marked, server.writes) == (server.document, 1)
    metadata = marked["metadata"]
    assert metadata["labels"] == {"team": "vision", "amdahl-loop.io/closed": "true"}
    assert metadata["managedFields"] == [{}]
    assert is_marked(marked)
    assert server.mark(marked) is marked
    assert server.writes == 1


@pytest.mark.parametrize(
    "lost", [{"labels": {"amdahl-loop.io/closed": "false"}}, {"annotations": {}}, {"annotations": None}]
)
def test_half_a_mark_is_none(lost: dict[str, Any]) -> None:
    """What is lacking is set again."""
    marked = mark(make_closed())
    damaged = marked | {"metadata": marked["metadata"] | lost}
    assert not is_marked(damaged)
    assert is_marked(mark(damaged))


@pytest.mark.parametrize(("conflicts", "is_set"), [(1, True), (2, True), (3, False)])
def test_a_mark_tells_of_the_version_that_it_is_set_on(conflicts: int, is_set: bool) -> None:
    """Where somebody was faster, the Experiment is read again; where that never ends, the next start sets the mark."""
    server = Server(make_closed(), conflicts=conflicts)
    now = server.mark(server.document)
    assert is_marked(server.document) is is_set
    assert now == server.document


@pytest.mark.parametrize("status", [403, 404])
def test_a_mark_that_is_refused_stops_nothing(status: int) -> None:
    """The verdict is on record; the mark only makes it cheaper to find."""
    document = make_closed()
    server = Server(document, refusal=status)
    assert server.mark(document) == document


def test_what_is_open_is_never_marked() -> None:
    """A store that was put back may show it so."""
    document = make_closed()
    del document["status"]["verdict"]
    server = Server(document)
    assert server.mark(document) == document
    assert server.writes == 0


@pytest.mark.parametrize(("verdict", "is_taken"), [(NO_GAIN, True), (WON, False)])
def test_a_mark_that_would_become_wrong_is_taken_away_first(verdict: Verdict, is_taken: bool) -> None:
    """A win's never becomes wrong."""
    server = Server(mark(make_closed(verdict)))
    before = server.document
    after = server.unmark(before)
    assert after == server.document
    assert (unfold(bare(server.document)) is None) is is_taken
    assert server.writes == int(is_taken)
    assert server.unmark(server.document) is server.document


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"text"', '{"uid": "another", "spec": {}, "status": {}}', '{"spec": {}, "status": {}}'],
)
def test_metadata_that_tell_nothing(text: str) -> None:
    """Such an Experiment is read whole. Another object's form was copied there, by hand or from a backup."""
    metadata = {"namespace": "team", "name": "e0", "uid": "uid-0"}
    assert unfold({"metadata": metadata}) is None
    assert unfold({"metadata": metadata | {"annotations": {"amdahl-loop.io/compact": text}}}) is None

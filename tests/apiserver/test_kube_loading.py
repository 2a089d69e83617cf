"""Does a start know all that the operator before it knew, without a closed experiment being sent whole?"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.survey import Records
from amdahl_loop.adapters.kube.transport import BARE, Answer, Request, UnreachableError
from amdahl_loop.domain.blocks import holdout_block
from amdahl_loop.domain.children import CLOSED_LABEL, COMPACT_ANNOTATION
from amdahl_loop.domain.experiments import Loss, Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import FAMILY, FINGERPRINT
from judge_builders import make_plan, make_record
from kube_builders import Died, create_job, cut_at, install_crds
from operator_builders import Operator, play
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain.")
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)
LATE = Loss(run="pydocs-e0-d7", started_at_s=9.5, held_device_s=1 / 3)


@pytest.fixture
def uid(api_server: Cluster, api_namespace: str) -> str:
    """A job's, in a namespace of its own."""
    install_crds(api_server)
    found: str = create_job(api_server, api_namespace)["metadata"]["uid"]
    return found


def make_question(uid: str, number: int) -> Plan:
    """An experiment of the job's, one question each."""
    return make_plan(name=f"pydocs-e{number}", job="pydocs", job_uid=uid, after=2 + number)


async def conclude(operator: Operator, plan: Plan, verdict: Verdict | None) -> None:
    """A plan, two blocks of it, and its end."""
    ledger = await operator.ledger()
    await ledger.add_plan(plan)
    for spec in plan.blocks[:2]:
        await ledger.add_block(plan.name, make_record(plan, spec))
    if verdict is not None:
        await ledger.add_verdict(plan.name, verdict, 400.0)


async def put_in_force(operator: Operator, plan: Plan, kind: ApplicationKind = ApplicationKind.APPLIED) -> None:
    """A win's values take effect, or are taken back."""
    ledger = await operator.ledger()
    await ledger.recall(plan.job_uid, FINGERPRINT, FAMILY)
    applied = Application(
        job=plan.job,
        job_uid=plan.job_uid,
        fingerprint=plan.fingerprint,
        at_s=500.0,
        kind=kind,
        experiment=plan.name,
        declared=Knobs(dataloader_workers=0),
        knobs=plan.variant,
    )
    await ledger.add_application(applied)


async def show(operator: Operator, name: str) -> dict[str, Any]:
    """An Experiment as it is."""
    found = await operator.client.get(Kind.EXPERIMENT, operator.namespace, name)
    assert found is not None
    return found


def is_told(document: dict[str, Any]) -> bool:
    """Whether an Experiment's metadata tell of it."""
    metadata = document["metadata"]
    return metadata["labels"][CLOSED_LABEL] == "true" and COMPACT_ANNOTATION in metadata.get("annotations", {})


def asked(operator: Operator) -> list[tuple[str, bool]]:
    """What a start has asked for: method, and whether metadata would do."""
    return [(request.method, request.accept == BARE) for request in operator.transport.requests]


LISTS = [("GET", False), ("GET", True)]
"""Open ones whole, closed ones by their metadata."""


def test_a_start_lists_closed_ones_by_metadata(api_server: Cluster, api_namespace: str, uid: str) -> None:
    """And recalls what the operator before it did: verdicts, what they held, a win in force with all its blocks."""

    async def run() -> tuple[JobMemory, JobMemory]:
        before = await Operator.start(api_server, api_namespace)
        plans = [make_question(uid, number) for number in range(4)]
        for plan, verdict in zip(plans, (NO_GAIN, WON, NO_GAIN, None), strict=True):
            await conclude(before, plan, verdict)
        await put_in_force(before, plans[1])
        for plan in plans[:3]:
            document = await show(before, plan.name)
            assert is_told(document)
            assert "managedFields" not in document["metadata"]
            assert before.index.version(Key(api_namespace, plan.name)) <= int(document["metadata"]["resourceVersion"])
        after = await Operator.start(api_server, api_namespace)
        assert asked(after) == LISTS
        return await before.recall(), await after.recall()

    known, recalled = play(run())
    assert recalled == known
    assert [len(experiment.blocks) for experiment in recalled.experiments] == [0, 2, 0, 2]


def test_what_another_version_closed_is_read_and_marked(api_server: Cluster, api_namespace: str, uid: str) -> None:
    """It bears the label alone, or not even that; the next start has to read nothing."""

    async def run() -> None:
        before = await Operator.start(api_server, api_namespace)
        for number, verdict in enumerate((NO_GAIN, WON)):
            await conclude(before, make_question(uid, number), verdict)
        for name, label in (("pydocs-e0", "true"), ("pydocs-e1", "false")):
            lost = {"labels": {CLOSED_LABEL: label}, "annotations": {COMPACT_ANNOTATION: None}}
            await before.client.patch(Kind.EXPERIMENT, api_namespace, name, {"metadata": lost})
        known = await before.recall()
        second = await Operator.start(api_server, api_namespace)
        assert [method for method, _ in asked(second)].count("PATCH") == 2
        assert await second.recall() == known
        for name in ("pydocs-e0", "pydocs-e1"):
            assert is_told(await show(second, name))
        third = await Operator.start(api_server, api_namespace)
        assert asked(third) == LISTS
        assert await third.recall() == known

    play(run())


def test_people_s_reading_marks_nothing(api_server: Cluster, api_namespace: str, uid: str) -> None:
    """The command reads the same as an operator would, and writes nothing."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        await conclude(operator, make_question(uid, 0), NO_GAIN)
        lost = {"annotations": {COMPACT_ANNOTATION: None}}
        await operator.client.patch(Kind.EXPERIMENT, api_namespace, "pydocs-e0", {"metadata": lost})
        written = len(operator.transport.writes)
        records = await Records.read(operator.client, api_namespace, lambda: 1.0)
        seen = (await operator.ledger()).seen
        assert await records.recall(seen, FINGERPRINT, FAMILY) == await operator.recall()
        assert len(operator.transport.writes) == written

    play(run())


@pytest.mark.parametrize(
    ("write", "is_done", "held_s"),
    [
        pytest.param(1, False, 0.0, id="before its mark is taken away"),
        pytest.param(1, True, 0.0, id="its mark taken away"),
        pytest.param(2, False, 0.0, id="before the loss is written"),
        pytest.param(2, True, LATE.held_device_s, id="the loss written"),
        pytest.param(3, False, LATE.held_device_s, id="before it is marked again"),
        pytest.param(3, True, LATE.held_device_s, id="marked again"),
    ],
)
def test_a_late_loss_is_never_forgotten(
    api_server: Cluster, api_namespace: str, uid: str, write: int, is_done: bool, held_s: float
) -> None:
    """Killed at each write of it: the next start counts what is on record, and the loss once it is charged again."""

    async def run() -> None:
        operator, plan = await Operator.start(api_server, api_namespace), make_question(uid, 0)
        await conclude(operator, plan, NO_GAIN)
        (known,) = (await operator.recall()).experiments
        ledger = await operator.ledger()
        operator.transport.fault = cut_at(write, before=not is_done)
        with pytest.raises(Died):
            await ledger.add_loss(plan.name, LATE)
        reborn = await Operator.start(api_server, api_namespace)
        (found,) = (await reborn.recall()).experiments
        assert found.held_device_s == pytest.approx(known.held_device_s + held_s)
        await (await reborn.ledger()).add_loss(plan.name, LATE)
        assert is_told(await show(reborn, plan.name))
        third = await Operator.start(api_server, api_namespace)
        assert asked(third) == LISTS
        (found,) = (await third.recall()).experiments
        assert found.held_device_s == pytest.approx(known.held_device_s + LATE.held_device_s)

    play(run())


def test_a_win_keeps_its_mark(api_server: Cluster, api_namespace: str, uid: str) -> None:
    """Holdout blocks and applications are one write each, and a start reads what they say."""

    async def run() -> None:
        operator, plan = await Operator.start(api_server, api_namespace), make_question(uid, 0)
        await conclude(operator, plan, WON)
        for number, kind in enumerate((ApplicationKind.APPLIED, ApplicationKind.ROLLED_BACK)):
            await put_in_force(operator, plan, kind)
            written = len(operator.transport.writes)
            spec = holdout_block(plan.seed, number)
            held_out = make_record(plan, plan.blocks[0]).model_copy(update={"spec": spec})
            await (await operator.ledger()).add_block(plan.name, held_out)
            assert len(operator.transport.writes) == written + 1
            reborn = await Operator.start(api_server, api_namespace)
            assert asked(reborn) == LISTS
            memory = await reborn.recall()
            assert [len(experiment.blocks) for experiment in memory.experiments] == [3 + number]
            assert memory.applications[-1].kind is kind
            assert reborn.index.is_unsettled(Key(api_namespace, plan.name)) is (kind is ApplicationKind.APPLIED)

    play(run())


def test_a_mark_that_the_server_does_not_take_costs_no_verdict(
    api_server: Cluster, api_namespace: str, uid: str
) -> None:
    """Silence at the mark alone: the verdict is on record, and the next start sets the mark."""

    async def run() -> None:
        operator, plan = await Operator.start(api_server, api_namespace), make_question(uid, 0)
        await conclude(operator, plan, None)
        ledger = await operator.ledger()

        async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
            if request.method == "PATCH" and not request.path.endswith("/status"):
                raise UnreachableError("no answer")
            return await send(request)

        operator.transport.fault = fault
        with pytest.raises(ApiUnavailable, match="no answer"):
            await ledger.add_verdict(plan.name, NO_GAIN, 400.0)
        operator.transport.fault = None
        (found,) = (await operator.recall()).experiments
        assert found.verdict == NO_GAIN
        assert not is_told(await show(operator, plan.name))
        reborn = await Operator.start(api_server, api_namespace)
        assert is_told(await show(reborn, plan.name))
        assert await reborn.recall() == await operator.recall()

    play(run())


def test_an_index_knows_as_much_by_metadata_as_by_whole_objects(
    api_server: Cluster, api_namespace: str, uid: str
) -> None:
    """Of kin too: the newest answers, the latest few, in their order."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for number in range(6):
            await conclude(operator, make_question(uid, number), WON if number == 4 else NO_GAIN)
        whole = ExperimentIndex()
        async for document in operator.client.list(Kind.EXPERIMENT, api_namespace):
            whole.learn(document)
        told = (await Operator.start(api_server, api_namespace)).index
        for of in (whole, told):
            assert len(of) == 6
        assert told.of_job(api_namespace, uid) == whole.of_job(api_namespace, uid)
        kin = (api_namespace, "another", FINGERPRINT, FAMILY)
        assert told.of_kin(*kin) == whole.of_kin(*kin) != []
        assert [told.recall(key) for key in told.of_kin(*kin)] == [whole.recall(key) for key in whole.of_kin(*kin)]
        assert [told.version(key) for key in told.of_kin(*kin)] == [whole.version(key) for key in whole.of_kin(*kin)]

    play(run())

"""Is every fact kept exactly once when answers are lost, writes collide, reads are stale and operators die?

The real API server throughout; faults stand between it and the client.
"""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.ledger import KubeLedger, LedgerConflictError, LedgerRefusedError
from amdahl_loop.adapters.kube.recall import STALE_S, LedgerUnreadableError
from amdahl_loop.adapters.kube.transport import Answer, Request, open_transport
from amdahl_loop.domain.experiments import Experiment, Loss
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import FAMILY, FINGERPRINT, make_job, make_observation, make_window
from judge_builders import make_plan, make_record
from kube_builders import (
    Fault,
    FaultyTransport,
    create_job,
    failing,
    impatient,
    install_crds,
    lose_answers,
    refuse,
    see_job,
    show_the_past,
)
from operator_builders import STARTED, Operator, play
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

Result = TypeVar("Result")

WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


@pytest.fixture(scope="module")
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


class Story:
    """Everything that is ever recorded of one experiment, step by step."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.plan = make_plan(name="pydocs-e0", job="pydocs", job_uid=uid)
        self.blocks = tuple(make_record(self.plan, spec, started_at_s=100.5) for spec in self.plan.blocks[:2])
        self.loss = Loss(run=self.plan.run_name(self.plan.blocks[2]), started_at_s=7.5, held_device_s=3.25)
        observation = make_observation(make_job(), make_window())
        self.observation = observation.model_copy(update={"run": "pydocs-ffffffff-o0"})
        self.observation = self.observation.model_copy(
            update={"report": observation.report.model_copy(update={"run": "pydocs-ffffffff-o0"})}
        )
        self.application = Application(
            job="pydocs",
            job_uid=uid,
            fingerprint=FINGERPRINT,
            at_s=500.125,
            kind=ApplicationKind.APPLIED,
            experiment="pydocs-e0",
            declared=Knobs(dataloader_workers=0),
            knobs=Knobs(dataloader_workers=2),
        )

    @property
    def steps(self) -> list[Callable[[KubeLedger], Awaitable[object]]]:
        """One fact each, in the loop's order."""
        name = self.plan.name
        return [
            lambda ledger: ledger.add_observation(self.uid, self.observation),
            lambda ledger: ledger.add_plan(self.plan),
            lambda ledger: ledger.reserve(name, self.plan.run_name(self.plan.blocks[0]), 60.0),
            lambda ledger: ledger.add_block(name, self.blocks[0]),
            lambda ledger: ledger.add_block(name, self.blocks[1]),
            lambda ledger: ledger.add_loss(name, self.loss),
            lambda ledger: ledger.add_verdict(name, WON, 400.0),
            lambda ledger: ledger.add_application(self.application),
        ]

    def check(self, memory: JobMemory) -> None:
        """All of it is there, once."""
        whole = Experiment(plan=self.plan, blocks=self.blocks, losses=(self.loss,), verdict=WON)
        assert memory.experiments == (whole,)
        assert memory.closed_at_s == {self.plan.name: 400.0}
        assert memory.applications == (self.application,)
        assert [seen.run for seen in memory.observations] == [self.observation.run]


@pytest.fixture
def story(api_server: Cluster, api_namespace: str, definitions: None) -> Story:
    """A job in a namespace of its own, and what is to be recorded of it."""
    return Story(create_job(api_server, api_namespace)["metadata"]["uid"])


def objects_of(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """Every Experiment there is."""
    found = cluster.admin.get(f"/apis/amdahl-loop.io/v1alpha1/namespaces/{namespace}/experiments").body["items"]
    assert isinstance(found, list)
    return found


def objects(cluster: Cluster, namespace: str) -> list[str]:
    """Every Experiment there is, with its label."""
    found = objects_of(cluster, namespace)
    return [f"{item['metadata']['name']} {item['metadata']['labels']['amdahl-loop.io/closed']}" for item in found]


WRITES = ("POST", "PATCH")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: None, id="nothing"),
        pytest.param(lambda: lose_answers(*WRITES, times=1), id="the answer of every write is lost once"),
        pytest.param(lambda: lose_answers(*WRITES, times=4), id="the answer of every write is lost four times"),
        pytest.param(lambda: lose_answers("GET", times=2), id="the answers of reads are lost"),
        pytest.param(lambda: refuse(409, "PATCH", times=3, reason="Conflict"), id="three conflicts"),
        pytest.param(lambda: refuse(429, *WRITES, "GET", times=3), id="throttled"),
        pytest.param(lambda: refuse(500, *WRITES, "GET", times=3), id="internal errors"),
        pytest.param(lambda: refuse(503, *WRITES, "GET", times=5), id="unavailable"),
    ],
)
def test_each_fact_is_kept_once_whatever_becomes_of_requests(
    api_server: Cluster, api_namespace: str, story: Story, fault: Callable[[], Fault | None]
) -> None:
    """The fault strikes at every single step; the next life finds exactly what was recorded."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for step in story.steps:
            ledger = await operator.ledger()
            operator.transport.fault = fault()
            await step(ledger)
            operator.transport.fault = None
        story.check(await operator.recall())
        reborn = await Operator.start(api_server, api_namespace)
        story.check(await reborn.recall())

    play(run())
    assert objects(api_server, api_namespace) == ["pydocs-e0 true"]


class Killed(BaseException):
    """The operator process is gone."""


def kill_at(number: int, after: bool) -> Fault:
    """The process dies before or after its write number `number` is done."""
    count = [0]

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if request.method not in WRITES:
            return await send(request)
        count[0] += 1
        if count[0] == number and not after:
            raise Killed
        answer = await send(request)
        if count[0] == number:
            raise Killed
        return answer

    return fault


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 10))
def test_a_loop_that_is_killed_at_any_write_ends_with_the_same_facts(
    api_server: Cluster, api_namespace: str, story: Story, number: int, after: bool
) -> None:
    """A new process begins with a list, repeats the step that it does not find done, and goes on."""

    async def live(first: int, fault: Fault | None) -> int:
        """Take steps from the first that memory does not show as done; returns where it ended."""
        operator = await Operator.start(api_server, api_namespace)
        operator.transport.fault = fault
        done = first
        try:
            for step in story.steps[first:]:
                ledger = await operator.ledger()
                await ledger.recall(story.uid, FINGERPRINT, FAMILY)
                await step(ledger)
                done += 1
        except Killed:
            pass
        operator.transport.fault = None
        if done == len(story.steps):
            story.check(await operator.recall())
        return done

    done = play(live(0, kill_at(number, after)))
    assert play(live(done, None)) == len(story.steps)
    assert objects(api_server, api_namespace) == ["pydocs-e0 true"]


def test_a_label_that_a_crash_left_behind_is_mended_at_the_next_start(
    api_server: Cluster, api_namespace: str, story: Story
) -> None:
    """The verdict is the fact; the label follows it."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for step in story.steps[:6]:
            await step(await operator.ledger())
        ledger = await operator.ledger()
        with failing(operator.transport, kill_at(2, after=False)), pytest.raises(Killed):
            await story.steps[6](ledger)
        assert objects(api_server, api_namespace) == ["pydocs-e0 false"]
        await Operator.start(api_server, api_namespace)

    play(run())
    assert objects(api_server, api_namespace) == ["pydocs-e0 true"]


def test_what_cannot_be_written_now_is_tried_again_later(api_server: Cluster, api_namespace: str, story: Story) -> None:
    """Longer troubles raise ApiUnavailable, nothing is half done, and the same step then succeeds."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for step in story.steps:
            ledger = await operator.ledger()
            for trouble in (refuse(503, *WRITES, times=99), refuse(409, "PATCH", times=99, reason="Conflict")):
                with failing(operator.transport, trouble), contextlib.suppress(ApiUnavailable):
                    await step(ledger)
            await step(await operator.ledger())
        story.check(await operator.recall())

    play(run())


def test_a_created_experiment_whose_answer_never_came_is_found(
    api_server: Cluster, api_namespace: str, story: Story
) -> None:
    """The create was done and all answers were lost: the same process sees the experiment at its next pass."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        ledger = await operator.ledger()
        with failing(operator.transport, lose_answers("POST", "GET", times=99)), pytest.raises(ApiUnavailable):
            await ledger.add_plan(story.plan)
        assert (await operator.recall()).experiments == (Experiment(plan=story.plan),)

    play(run())


def test_an_experiment_that_was_never_created_is_forgotten(
    api_server: Cluster, api_namespace: str, story: Story
) -> None:
    """The create never arrived: the next pass asks the server, and knows of nothing."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        ledger = await operator.ledger()
        with failing(operator.transport, refuse(503, "POST", times=99)), pytest.raises(ApiUnavailable):
            await ledger.add_plan(story.plan)
        assert (await operator.recall()).experiments == ()

    play(run())


class TestTwoOperators:
    """An old one that has not died yet, and a new one."""

    def test_what_one_has_recorded_the_other_does_not_record_again(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """Both take every step, in turn, each knowing only its own writes."""

        async def run() -> None:
            first = await Operator.start(api_server, api_namespace)
            second = await Operator.start(api_server, api_namespace)
            for step in story.steps:
                for operator in (first, second):
                    await step(await operator.ledger())
            for operator in (first, second):
                story.check(await operator.recall())

        play(run())
        assert objects(api_server, api_namespace) == ["pydocs-e0 true"]

    def test_one_that_decided_on_old_knowledge_is_told(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """Applied by one between the other's look and its own application: the same is kept once, another is not kept."""

        async def run() -> None:
            first = await Operator.start(api_server, api_namespace)
            for step in story.steps[:-1]:
                await step(await first.ledger())
            second = await Operator.start(api_server, api_namespace)
            late = await second.ledger()
            assert (await late.recall(story.uid, FINGERPRINT, FAMILY)).applications == ()
            await story.steps[-1](await first.ledger())
            await late.add_application(story.application.model_copy(update={"at_s": 501.0}))
            other = story.application.model_copy(update={"at_s": 502.0, "knobs": Knobs(dataloader_workers=3)})
            with pytest.raises(ApiUnavailable, match="changed since"):
                await late.add_application(other)
            story.check(await second.recall())

        play(run())

    def test_a_block_on_record_is_not_reserved_again(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """One that has read the ledger before the other's block was recorded may start no try of it, but the next block."""

        async def run() -> None:
            first = await Operator.start(api_server, api_namespace)
            second = await Operator.start(api_server, api_namespace)
            ledger, late = await first.ledger(), await second.ledger()
            await ledger.add_plan(story.plan)
            run = story.plan.run_name(story.plan.blocks[0])
            assert await ledger.reserve(story.plan.name, run, 60.0)
            await late.recall(story.uid, FINGERPRINT, FAMILY)
            await ledger.add_block(story.plan.name, story.blocks[0])
            for again in (run, story.plan.run_name(story.plan.blocks[0], attempt=1)):
                assert not await late.reserve(story.plan.name, again, 60.0)
            (found,) = objects_of(api_server, api_namespace)
            assert "reserved" not in found["status"]
            assert await late.reserve(story.plan.name, story.plan.run_name(story.plan.blocks[1]), 60.0)

        play(run())

    @pytest.mark.parametrize(
        "is_recorded_first", [True, False], ids=["recorded, then stopped", "stopped, then recorded"]
    )
    def test_a_run_is_charged_once(
        self, api_server: Cluster, api_namespace: str, story: Story, is_recorded_first: bool
    ) -> None:
        """One operator records a block, the other sweeps its Job away: what it held is the block's. Another try is charged."""

        async def run() -> None:
            first = await Operator.start(api_server, api_namespace)
            second = await Operator.start(api_server, api_namespace)
            ledger, late = await first.ledger(), await second.ledger()
            await ledger.add_plan(story.plan)
            block, name = story.blocks[0], story.plan.name
            swept = Loss(
                run=story.plan.run_name(block.spec), started_at_s=block.started_at_s, held_device_s=block.held_device_s
            )
            earlier = swept.model_copy(update={"started_at_s": block.started_at_s - 60})
            await late.add_loss(name, earlier)
            for step in (True, False) if is_recorded_first else (False, True):
                await (ledger.add_block(name, block) if step else late.add_loss(name, swept))
            (experiment,) = (await second.recall()).experiments
            assert (experiment.blocks, experiment.losses) == ((block,), (earlier,))

        play(run())

    def test_contradictions_are_refused(self, api_server: Cluster, api_namespace: str, story: Story) -> None:
        """Another plan, block or verdict under a name that is taken changes nothing."""

        async def run() -> None:
            first = await Operator.start(api_server, api_namespace)
            second = await Operator.start(api_server, api_namespace)
            ledger, late = await first.ledger(), await second.ledger()
            other = make_plan(name="pydocs-e0", job="pydocs", job_uid=story.uid, seed=8)
            await ledger.add_plan(story.plan)
            with pytest.raises(LedgerConflictError, match="plan pydocs-e0 is recorded with other content"):
                await late.add_plan(other)
            assert (await second.recall()).experiments == (Experiment(plan=story.plan),)
            await ledger.add_block("pydocs-e0", story.blocks[0])
            with pytest.raises(LedgerConflictError, match="block p0 of pydocs-e0 is recorded with other content"):
                await late.add_block("pydocs-e0", story.blocks[0].model_copy(update={"node": "elsewhere"}))
            await ledger.add_verdict("pydocs-e0", WON, 1.0)
            with pytest.raises(LedgerConflictError, match="the verdict of pydocs-e0 is recorded with other content"):
                await late.add_verdict("pydocs-e0", WON.model_copy(update={"sentence": "No."}), 2.0)

        play(run())


def test_the_clock_may_go_back_and_the_order_stays(api_server: Cluster, api_namespace: str, story: Story) -> None:
    """A roll-back that the clock dates before its application is still the newest word."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for step in story.steps:
            await step(await operator.ledger())
        back = story.application.model_copy(update={"kind": ApplicationKind.ROLLED_BACK, "at_s": 200.0})
        for _ in range(2):
            ledger = await operator.ledger()
            await ledger.recall(story.uid, FINGERPRINT, FAMILY)
            await ledger.add_application(back)
        memory = await operator.recall()
        assert [application.kind for application in memory.applications] == ["applied", "rolledBack"]
        assert memory.applications[1].at_s == pytest.approx(500.126)

    play(run())


class TestThePast:
    """A server that shows what was."""

    def test_stale_reads_stop_the_pass_and_write_nothing(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """Until the present is shown again."""

        async def run() -> None:
            operator = await Operator.start(api_server, api_namespace)
            for step in story.steps[:3]:
                await step(await operator.ledger())
            past = show_the_past()
            with failing(operator.transport, past):
                await operator.recall()
            await story.steps[3](await operator.ledger())
            with failing(operator.transport, past):
                with pytest.raises(ApiUnavailable, match="shown as it was before"):
                    await operator.recall()
                with pytest.raises(ApiUnavailable, match="shown as it was before"):
                    await story.steps[4](await operator.ledger())
            (experiment,) = (await operator.recall()).experiments
            assert experiment.blocks == story.blocks[:1]

        play(run())

    def test_a_store_that_was_put_back_is_believed_in_the_end(
        self, api_server: Cluster, api_namespace: str, story: Story, tmp_path: Path
    ) -> None:
        """Etcd restored from an older snapshot: a minute of doubt, then the loop goes on from what is there."""

        async def before() -> Operator:
            operator = await Operator.start(api_server, api_namespace)
            for step in story.steps[:4]:
                await step(await operator.ledger())
            api_server.snapshot_etcd(tmp_path / "snapshot")
            await story.steps[4](await operator.ledger())
            return operator

        async def after(operator: Operator) -> None:
            reached = FaultyTransport(await open_transport(api_server.admin.kubeconfig))
            operator.transport, operator.client = reached, impatient(reached)
            STARTED.append(operator)
            with pytest.raises(ApiUnavailable, match="shown as it was before"):
                await operator.recall()
            operator.now_s += STALE_S + 1
            (experiment,) = (await operator.recall()).experiments
            assert experiment.blocks == story.blocks[:1]
            for step in story.steps[4:]:
                await step(await operator.ledger())
            story.check(await operator.recall())

        operator = play(before())
        api_server.restore_etcd(tmp_path / "snapshot")
        play(after(operator))


class TestOthersHands:
    """Objects that somebody deleted, took or broke."""

    def test_a_deleted_experiment_is_forgotten(self, api_server: Cluster, api_namespace: str, story: Story) -> None:
        """Deleted by hand: its blocks have no plan any more."""

        async def run() -> None:
            operator = await Operator.start(api_server, api_namespace)
            for step in story.steps[:4]:
                await step(await operator.ledger())
            api_server.admin.kubectl("delete", "experiment", "pydocs-e0", "--namespace", api_namespace)
            assert (await operator.recall()).experiments == ()
            with pytest.raises(LedgerConflictError, match="has no plan"):
                await story.steps[4](await operator.ledger())

        play(run())

    def test_a_job_that_is_gone_keeps_no_observation(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """Deleted or made anew meanwhile: nothing is written to another job of the same name."""

        async def run() -> None:
            operator = await Operator.start(api_server, api_namespace)
            gone, remade = await operator.ledger(), await operator.ledger()
            api_server.admin.kubectl("delete", "trainingjob", "pydocs", "--namespace", api_namespace)
            await gone.add_observation(story.uid, story.observation)
            create_job(api_server, api_namespace)
            await remade.add_observation(story.uid, story.observation)
            assert (await see_job(operator.client, api_namespace)).status.observation is None

        play(run())

    def test_a_broken_plan_is_named_and_concerns_its_own_job_alone(
        self, api_server: Cluster, api_namespace: str, story: Story
    ) -> None:
        """An open experiment whose hash does not fit its plan is not believed; other jobs go on."""

        async def run() -> None:
            operator = await Operator.start(api_server, api_namespace)
            await story.steps[1](await operator.ledger())
            raw = await operator.client.get(Kind.EXPERIMENT, api_namespace, "pydocs-e0")
            assert raw is not None
            raw["spec"]["planHash"] = "0" * 16
            raw["metadata"] = {"name": "pydocs-broken", "namespace": api_namespace}
            await operator.client.create(Kind.EXPERIMENT, api_namespace, raw)
            reborn = await Operator.start(api_server, api_namespace)
            with pytest.raises(LedgerUnreadableError, match="pydocs-broken cannot be read: its plan hashes to"):
                await reborn.recall()
            ledger = await reborn.ledger()
            assert (await ledger.recall("another job", "0" * 16, FAMILY)).experiments == ()

        play(run())

    def test_a_refusal_carries_the_server_s_words(self, api_server: Cluster, api_namespace: str, story: Story) -> None:
        """A plan that the server does not take says why, and nothing is expected of it."""

        async def run() -> None:
            operator = await Operator.start(api_server, api_namespace)
            ledger = await operator.ledger()
            with (
                failing(operator.transport, refuse(403, "POST", reason="Forbidden")),
                pytest.raises(LedgerRefusedError, match="Experiment pydocs-e0: injected 403"),
            ):
                await ledger.add_plan(story.plan)
            assert (await operator.recall()).experiments == ()

        play(run())


def test_a_pass_over_an_idle_job_reads_little_and_writes_nothing(
    api_server: Cluster, api_namespace: str, story: Story
) -> None:
    """The job, and the one experiment whose values are in force."""

    async def run() -> None:
        operator = await Operator.start(api_server, api_namespace)
        for step in story.steps:
            await step(await operator.ledger())
        operator.transport.requests.clear()
        await operator.recall()
        assert [request.method for request in operator.transport.requests] == ["GET", "GET"]

    play(run())

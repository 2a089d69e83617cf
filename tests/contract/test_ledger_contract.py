"""What every ledger keeps to: in memory, in a file, and in a cluster.

`LedgerStore` has one contract and three implementations. A plan, a block, a verdict, a loss and an application are kept
exactly as they came and exactly once, also by a loop that was killed and began again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.domain.blocks import Stage, enumerate_blocks, holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory, Observation
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import Arm, BlockReport, Phase, Saves
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord, Vote
from amdahl_loop.ports import LedgerStore
from builders import FAMILY, FINGERPRINT, make_job, make_observation, make_window
from kube_builders import connect, create_job, install_crds, see_job
from testbed.cluster import Cluster

OTHER_FINGERPRINT, OTHER_FAMILY = "1" * 16, "2" * 16
WON = Verdict(
    word=VerdictWord.WON,
    sentence="Saves 30 %.",
    effect=1 / 3,
    interval=(0.1, 0.5000000000000001),
    effect_se=1e-17,
    floor=0.03,
    blocks_used=7,
    votes=(Vote(check=0, agree=True, effect=0.3, bar=0.15, changed=("time", "order"), node="a"),),
)
NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain of 3 % or more.", effect=0.01, interval=(-0.01, 0.02))

Scenario = Callable[[LedgerStore, str], Awaitable[Any]]


class Home(Protocol):
    """Where one kind of ledger lives: `run` opens it for one loop's life, and again for the next one's."""

    job_uid: str

    def run(self, scenario: Scenario) -> Any:
        """One life of a loop."""


class InMemory:
    """Facts that outlive the ledger over them."""

    job_uid = "job-of-memory"

    def __init__(self) -> None:
        self.facts = Facts()

    def run(self, scenario: Scenario) -> Any:
        """A ledger over what the last one left."""
        ledger = MemoryLedger(self.facts)
        try:
            return asyncio.run(scenario(ledger, self.job_uid))
        finally:
            self.facts = ledger.state


class InFile:
    """One SQLite file."""

    job_uid = "job-of-file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, scenario: Scenario) -> Any:
        """The file, opened and closed."""
        with SqliteLedger.open(self.path) as ledger:
            return asyncio.run(scenario(ledger, self.job_uid))


class InCluster:
    """Objects on a real API server; each life begins with a new client and a new list."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.job_uid = create_job(cluster, namespace)["metadata"]["uid"]

    def run(self, scenario: Scenario) -> Any:
        """An operator's life."""

        async def live() -> Any:
            async with await connect(self.cluster) as client:
                index = await load_index(client, [self.namespace])
                return await scenario(await self.open(client, index), self.job_uid)

        return asyncio.run(live())

    async def open(self, client: KubeClient, index: ExperimentIndex) -> KubeLedger:
        """The ledger of one pass over the job."""
        return KubeLedger(client, index, await see_job(client, self.namespace), lambda: 1000.0)


@pytest.fixture(scope="module")
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


@pytest.fixture(params=["memory", "file", pytest.param("cluster", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """Each kind of ledger in turn."""
    if request.param == "cluster":
        request.getfixturevalue("definitions")
        yield InCluster(request.getfixturevalue("api_server"), request.getfixturevalue("api_namespace"))
    else:
        yield InMemory() if request.param == "memory" else InFile(tmp_path / "ledger.db")


def make_plan(
    job_uid: str, name: str = "pydocs-e0", fingerprint: str = FINGERPRINT, family: str = FAMILY, **changes: Any
) -> Plan:
    """A plan to try two loader workers."""
    constants = PROFILES[ProfileName.QUICK]
    return Plan(
        **{
            "name": name,
            "job": "pydocs",
            "job_uid": job_uid,
            "fingerprint": fingerprint,
            "family": family,
            "hypothesis": Hypothesis(
                changes=(Change(knob=KnobName.DATALOADER_WORKERS, before=0, after=2),),
                phase=Phase.INPUT,
                expected_gain=1 / 3,
                source=Source.RULE,
                rationale="input waits",
            ),
            "baseline": Knobs(dataloader_workers=0),
            "variant": Knobs(dataloader_workers=2),
            "objective": Objective.DEVICE_HOURS,
            "max_slowdown": 1.05,
            "constants": constants,
            "live": False,
            "interruption_interval_s": 86400.0,
            "max_lost_work_s": 1800.0,
            "device_hours_ahead": 200 / 3,
            "seed": 7,
            "blocks": enumerate_blocks(7, constants),
        }
        | changes
    )


def make_block(plan: Plan, index: int, at_s: float = 1_763_723_245.1234567, holdout: bool = False) -> BlockRecord:
    """The record of the plan's block number `index`, with figures that have many digits."""
    spec = holdout_block(plan.seed, index) if holdout else plan.blocks[index]
    windows = tuple(
        make_window(1 / 3, arm=Arm(label), index=number, saves=Saves(count=2, block_s=0.001, interference_s=1e-6))
        for number, label in enumerate(spec.labels)
    )
    report = BlockReport(run=plan.run_name(spec), state="done", windows=windows)
    return BlockRecord(spec=spec, node="here", started_at_s=at_s, held_device_s=20.2, report=report)


def make_loss(plan: Plan, at_s: float = 7.25) -> Loss:
    """A run that was stopped."""
    return Loss(run=plan.run_name(plan.blocks[5]), started_at_s=at_s, held_device_s=0.1)


def make_application(
    job_uid: str,
    at_s: float = 1_763_723_999.123,
    kind: ApplicationKind = ApplicationKind.APPLIED,
    experiment: str = "pydocs-e0",
    after: int = 2,
) -> Application:
    """Values in force."""
    return Application(
        job="pydocs",
        job_uid=job_uid,
        fingerprint=FINGERPRINT,
        at_s=at_s,
        kind=kind,
        experiment=experiment,
        declared=Knobs(dataloader_workers=0),
        knobs=Knobs(dataloader_workers=after),
    )


async def recall(ledger: LedgerStore, job_uid: str, fingerprint: str = FINGERPRINT, family: str = FAMILY) -> JobMemory:
    """What the loop is told."""
    return await ledger.recall(job_uid, fingerprint, family)


async def close(ledger: LedgerStore, plan: Plan, verdict: Verdict = NO_GAIN, at_s: float = 50.5) -> None:
    """An experiment without blocks, closed."""
    await ledger.add_plan(plan)
    await ledger.add_verdict(plan.name, verdict, at_s)


class TestRemembering:
    """What was recorded comes back, in this life and the next."""

    def test_an_open_experiment_comes_back_letter_for_letter(self, home: Home) -> None:
        """Plan with its hash, every block with every digit, and what was lost."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            await ledger.add_plan(plan)
            for index in range(3):
                await ledger.add_block(plan.name, make_block(plan, index))
            await ledger.add_loss(plan.name, make_loss(plan))
            await check(ledger, uid)

        async def check(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            memory = await recall(ledger, uid)
            whole = Experiment(
                plan=plan, blocks=tuple(make_block(plan, n) for n in range(3)), losses=(make_loss(plan),)
            )
            assert memory.experiments == (whole,)
            assert memory.experiments[0].plan.hash == plan.hash
            assert memory.closed_at_s == {}
            assert await ledger.experiments() == (whole,)

        home.run(record)
        home.run(check)

    def test_what_a_decision_asks_of_a_closed_experiment_comes_back(self, home: Home) -> None:
        """Question, answer, cost and time; `experiments()` holds the evidence too."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            for number, verdict in enumerate((NO_GAIN, WON)):
                plan = make_plan(uid, f"pydocs-e{number}")
                await ledger.add_plan(plan)
                await ledger.add_block(plan.name, make_block(plan, 0))
                await ledger.add_block(plan.name, make_block(plan, 1))
                await ledger.add_loss(plan.name, make_loss(plan))
                await ledger.add_verdict(plan.name, verdict, 50.5 + number)
            await check(ledger, uid)

        async def check(ledger: LedgerStore, uid: str) -> None:
            memory = await recall(ledger, uid)
            assert [e.name for e in memory.experiments] == ["pydocs-e0", "pydocs-e1"]
            assert memory.closed_at_s == {"pydocs-e0": 50.5, "pydocs-e1": 51.5}
            for experiment, verdict in zip(memory.experiments, (NO_GAIN, WON), strict=True):
                plan, found = make_plan(uid, experiment.name), experiment.plan
                assert found.hypothesis == plan.hypothesis
                assert (found.job_uid, found.fingerprint, found.family) == (uid, FINGERPRINT, FAMILY)
                assert (found.baseline, found.variant, found.constants) == (plan.baseline, plan.variant, plan.constants)
                assert experiment.held_device_s == sum((20.2, 20.2)) + 0.1
                assert experiment.verdict is not None
                assert experiment.verdict.model_copy(update={"votes": verdict.votes}) == verdict
            (first, second) = await ledger.experiments()
            assert (first.verdict, second.verdict) == (NO_GAIN, WON)
            assert second.blocks == tuple(make_block(make_plan(uid, "pydocs-e1"), n) for n in range(2))

        home.run(record)
        home.run(check)

    def test_observations_and_applications_come_back(self, home: Home) -> None:
        """The newest observation with every digit, applications in the order of recording."""

        def observed(uid: str) -> Observation:
            job = make_job()
            observation = make_observation(job, make_window(1 / 3), at_s=1_763_723_000.125)
            return observation.model_copy(update={"run": f"{uid[:8]}-o0", "report": _of(uid, observation.report)})

        def _of(uid: str, report: BlockReport) -> BlockReport:
            return report.model_copy(update={"run": f"{uid[:8]}-o0"})

        def applied(uid: str) -> list[Application]:
            return [
                make_application(uid, 1.5),
                make_application(uid, 2.5, ApplicationKind.ROLLED_BACK, after=0),
                make_application(uid, 3.25, experiment="pydocs-e1", after=3),
            ]

        async def record(ledger: LedgerStore, uid: str) -> None:
            await ledger.add_observation(uid, observed(uid))
            await ledger.add_observation(uid, observed(uid))
            for number in range(2):
                await close(ledger, make_plan(uid, f"pydocs-e{number}"), WON, 1.0 + number)
            for application in applied(uid):
                await ledger.add_application(application)
                await ledger.add_application(application)
            await check(ledger, uid)

        async def check(ledger: LedgerStore, uid: str) -> None:
            memory = await recall(ledger, uid)
            (found,) = memory.observations
            assert found.model_copy(update={"job": make_job()}) == observed(uid)
            assert found.job.spec == make_job().spec
            assert memory.applications == tuple(applied(uid))

        home.run(record)
        home.run(check)

    @pytest.mark.parametrize(
        ("is_job", "fingerprint", "family", "own", "kin"),
        [
            pytest.param(True, FINGERPRINT, FAMILY, ["same", "moved"], ["moved"], id="the job itself"),
            pytest.param(False, FINGERPRINT, FAMILY, ["same"], ["moved"], id="another job, same work"),
            pytest.param(False, "0" * 16, FAMILY, [], ["same", "moved"], id="kin only"),
            pytest.param(False, "0" * 16, "0" * 16, [], [], id="a stranger"),
        ],
    )
    def test_recall_tells_own_from_kin(
        self, home: Home, is_job: bool, fingerprint: str, family: str, own: list[str], kin: list[str]
    ) -> None:
        """Own: same job or same fingerprint. Kin: closed, same family, another fingerprint."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plans = [
                make_plan(uid, "same"),
                make_plan(uid, "moved", OTHER_FINGERPRINT),
                make_plan("x", "far", "3" * 16, OTHER_FAMILY),
            ]
            for number, plan in enumerate(plans):
                await close(ledger, plan, at_s=float(number))
            await ledger.add_plan(make_plan("x", "unfinished", "4" * 16))
            await check(ledger, uid)

        async def check(ledger: LedgerStore, uid: str) -> None:
            memory = await recall(ledger, uid if is_job else "another", fingerprint, family)
            assert [e.name for e in memory.experiments] == own
            assert [e.name for e in memory.family] == kin

        home.run(record)
        home.run(check)

    def test_nothing_is_known_of_a_new_job(self, home: Home) -> None:
        """An empty ledger answers with empty memory."""

        async def check(ledger: LedgerStore, uid: str) -> None:
            assert await recall(ledger, uid) == JobMemory()
            assert await ledger.experiments() == ()

        home.run(check)


class TestExactlyOnce:
    """Repeats are told from contradictions."""

    def test_a_plan_may_be_recorded_again_and_never_changed(self, home: Home) -> None:
        """Word for word it is no error; another plan under its name is refused."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            await ledger.add_plan(make_plan(uid))
            await ledger.add_plan(make_plan(uid))
            for other in (make_plan(uid, seed=8), make_plan("another")):
                with pytest.raises(ValueError, match="recorded"):
                    await ledger.add_plan(other)
            assert await ledger.experiments() == (Experiment(plan=make_plan(uid)),)

        home.run(record)

    def test_a_block_is_recorded_once(self, home: Home) -> None:
        """The same again changes nothing, other content is refused, in the next life too."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            await ledger.add_plan(plan)
            await ledger.add_block(plan.name, make_block(plan, 0))
            await repeat(ledger, uid)

        async def repeat(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            with contextlib.suppress(ValueError):
                await ledger.add_block(plan.name, make_block(plan, 0))
            with pytest.raises(ValueError, match="recorded"):
                await ledger.add_block(plan.name, make_block(plan, 0, at_s=7))
            assert (await ledger.experiments())[0].blocks == (make_block(plan, 0),)

        home.run(record)
        home.run(repeat)

    def test_losses_are_charged_once(self, home: Home) -> None:
        """The same run twice is one loss; another moment is another run, also after the verdict."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            await ledger.add_plan(plan)
            for at_s in (1.5, 1.5, 2.5):
                await ledger.add_loss(plan.name, make_loss(plan, at_s))
            await ledger.add_verdict(plan.name, NO_GAIN, 3.0)
            await ledger.add_loss(plan.name, make_loss(plan, 9.5))
            (experiment,) = await ledger.experiments()
            assert experiment.losses == tuple(make_loss(plan, at_s) for at_s in (1.5, 2.5, 9.5))

        home.run(record)

    def test_a_verdict_is_final(self, home: Home) -> None:
        """Another verdict is refused, and so is a block that comes too late."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            await ledger.add_plan(plan)
            await ledger.add_verdict(plan.name, NO_GAIN, 1.0)
            with contextlib.suppress(ValueError):
                await ledger.add_verdict(plan.name, NO_GAIN, 1.0)
            with pytest.raises(ValueError, match=r"closed|verdict|recorded"):
                await ledger.add_verdict(plan.name, WON, 2.0)
            with pytest.raises(ValueError, match=r"closed|verdict"):
                await ledger.add_block(plan.name, make_block(plan, 1))
            (experiment,) = await ledger.experiments()
            assert (experiment.blocks, experiment.verdict) == ((), NO_GAIN)
            assert (await recall(ledger, uid)).closed_at_s == {plan.name: 1.0}

        home.run(record)

    def test_holdout_blocks_come_after_the_verdict_and_no_others(self, home: Home) -> None:
        """Before it they are refused; afterwards they are read back with the rest."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            await ledger.add_plan(plan)
            with pytest.raises(ValueError, match=r"open|before"):
                await ledger.add_block(plan.name, make_block(plan, 0, holdout=True))
            await ledger.add_verdict(plan.name, WON, 1.0)
            await ledger.add_application(make_application(uid))
            for index in range(2):
                await ledger.add_block(plan.name, make_block(plan, index, holdout=True))
            await check(ledger, uid)

        async def check(ledger: LedgerStore, uid: str) -> None:
            (experiment,) = (await recall(ledger, uid)).experiments
            assert [record.spec.stage for record in experiment.blocks] == [Stage.HOLDOUT] * 2
            assert experiment.blocks == tuple(make_block(make_plan(uid), n, holdout=True) for n in range(2))

        home.run(record)
        home.run(check)

    @pytest.mark.parametrize("what", ["block", "loss", "verdict"])
    def test_nothing_is_recorded_without_a_plan(self, home: Home, what: str) -> None:
        """The plan comes first."""

        async def record(ledger: LedgerStore, uid: str) -> None:
            plan = make_plan(uid)
            attempts: dict[str, Callable[[], Awaitable[None]]] = {
                "block": lambda: ledger.add_block("unplanned", make_block(plan, 1)),
                "loss": lambda: ledger.add_loss("unplanned", make_loss(plan)),
                "verdict": lambda: ledger.add_verdict("unplanned", NO_GAIN, 1.0),
            }
            with pytest.raises(ValueError, match="no plan"):
                await attempts[what]()
            assert await ledger.experiments() == ()

        home.run(record)

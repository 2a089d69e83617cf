"""Does an operator that dies at a write come to the same end? The scenarios that are swept, and the sweep."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.jobs import look_up
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.transport import open_transport
from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain.api.training_job import read_training_job
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.children import read_run
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.plan import Halt, Wait
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, RunRequest
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.passing import identify
from amdahl_loop.reconcile import Ports, tick
from fakes import COMPUTE_S, SimulatedRunner, Truth, loader_bound
from reliability.hands import BLOCK_S, NODE, Behaviour
from reliability.kills import Killer, Point
from reliability.operators import Nursery
from reliability.programs import measure
from reliability.relay import name_write
from reliability.scenes import JOB, QUIET_S, TIMEOUT_S, Scene, Theatre, conditions_of, setting, training_job
from reliability.states import State, check_marks, check_names, read_state
from reliability.wire import Object
from testbed.cluster import Cluster

AT_ONCE = 3
"""Scenes that run side by side on one API server."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens on a scene: how it begins, and how it is known to have ended."""

    behaviour: Callable[[], Behaviour]
    begin: Callable[[Scene], Awaitable[None]]
    has_ended: Callable[[Object], bool]
    """Whether the TrainingJob shows the end."""


@dataclass
class Run:
    """One run of a scenario: where the operator was killed, and what came of it."""

    points: tuple[Point, ...] = ()
    victims: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    state: State = field(default_factory=dict)
    fault: str = ""
    took_s: float = 0.0


async def _apply(scene: Scene) -> None:
    await scene.apply(training_job())


WIN_AND_ROLL_BACK = Scenario(
    behaviour=lambda: Behaviour(
        truth=Truth(phases_s=loader_bound), crashes=lambda knobs: (knobs.dataloader_workers or 0) > 0
    ),
    begin=_apply,
    has_ended=lambda job: (
        conditions_of(job).get("Tuned") == ("False", "RolledBack")
        and conditions_of(job).get("Ready") == ("True", "AsDeclared")
        and job["spec"]["knobs"] == {"dataloaderWorkers": 0}
    ),
)
"""Observe, try, refute, win, put in force, write the spec, replace the job; the program dies of it: take it all back."""


STANDARD = training_job(profile="standard")
DAY_S = 86_400.0
APPLIED_DAYS = 3.03
"""Two holdout blocks have run since the win was applied, and the third is due."""


def no_gain(_: Knobs) -> dict[Phase, float]:
    """The input has become fast."""
    return {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0}


class _Past(SimulatedRunner):
    """A machine of days ago, whose noise does not hang on names."""

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Run it at once."""
        del job
        block = read_run(request.run)
        name = request.run.removeprefix(f"{block.experiment}-") if block else "observation"
        report = measure(self.truth, name, request.run, request.windows)
        self.runs[request.run] = Finished(
            summary=encode_report(report), node=NODE, started_at_s=self.now_s, held_device_s=float(BLOCK_S)
        )
        self.now_s += BLOCK_S


async def _remember(job: TrainingJob, start_s: float) -> tuple[Facts, float]:
    """What a loop has recorded that began then, won, and has since seen the win fade for two days; and when it had won."""
    ledger, runner = MemoryLedger(), _Past(Truth(phases_s=loader_bound), now_s=start_s)
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
    is_won, won_s = False, 0.0
    for day in range(3):
        if is_won:
            runner.truth, runner.now_s = Truth(phases_s=no_gain), won_s + day * 1.01 * DAY_S
        while not isinstance(action := (await tick(job, identify(job), ports)).action, Halt):
            runner.now_s = action.until_s if isinstance(action, Wait) else runner.now_s
        is_won, won_s = True, won_s or runner.now_s
    return ledger.state, won_s


async def _apply_long_ago(scene: Scene) -> None:
    """A job whose win was applied three days ago and has faded since, as its operator left it behind."""
    await scene.apply(STANDARD)
    document = {"apiVersion": STANDARD["apiVersion"], "kind": "TrainingJob", "metadata": {"name": JOB}}
    job = read_training_job(await scene.job()).job
    _, lasted_s = await _remember(job, 0.0)
    facts, _ = await _remember(job, float(int(time.time())) - lasted_s - APPLIED_DAYS * DAY_S)
    async with KubeClient(await open_transport(scene.kubeconfig)) as client:
        seen = await look_up(client, scene.namespace, JOB)
        assert seen is not None
        ledger = KubeLedger(client, ExperimentIndex(), seen, time.time)
        for experiment in facts.experiments.values():
            await ledger.add_plan(experiment.plan)
            verdict_after = [b for b in experiment.blocks if b.spec.stage is Stage.HOLDOUT]
            for block in experiment.blocks:
                if block not in verdict_after:
                    await ledger.add_block(experiment.name, block)
            assert experiment.verdict is not None
            await ledger.add_verdict(experiment.name, experiment.verdict, facts.closed_at_s[experiment.name])
            for block in verdict_after:
                await ledger.add_block(experiment.name, block)
        for application in facts.applications:
            await ledger.add_application(application)
        await ledger.add_observation(seen.uid, facts.observations[-1][1])
    await scene.apply(document | {"spec": {"knobs": facts.applications[-1].knobs.declared()}}, manager="amdahl-loop")


LOSS_OF_A_WIN = Scenario(
    behaviour=lambda: Behaviour(truth=Truth(phases_s=no_gain)),
    begin=_apply_long_ago,
    has_ended=lambda job: (
        conditions_of(job).get("Tuned") == ("False", "RolledBack")
        and conditions_of(job).get("Ready") == ("True", "AsDeclared")
        and job["spec"]["knobs"] == {"dataloaderWorkers": 0}
    ),
)
"""A win of days ago is tested on, has gone, and is taken back: spec, values and job."""


Disturb = Callable[[Scene], Awaitable[None]]


async def _leave_alone(_: Scene) -> None:
    """Nothing happens."""


async def run(
    theatre: Theatre, scenario: Scenario, *points: Point, disturb: Disturb = _leave_alone, clock: Path | None = None
) -> Run:
    """One scene from beginning to end, disturbed, its operator killed at these points; what went wrong is noted, not raised."""
    began_s, done = time.monotonic(), Run(points)
    async with theatre.scene(scenario.behaviour()) as scene:
        killer = Killer(scene, list(points))
        scene.relay.fault, scene.clock = killer, clock
        try:
            await scenario.begin(scene)
            scene.start()
            await disturb(scene)
            await _end(scene, scenario, killer)
            done.state = await read_state(scene)
            await check_names(scene)
            await check_marks(scene)
        except AssertionError as error:
            done.fault = f"{error}"
        done.victims, done.writes = killer.victims, [name_write(call) for call in scene.relay.writes]
    done.took_s = time.monotonic() - began_s
    return done


def live(server: Cluster, nursery: Nursery, folder: Path, disturb: Disturb, clock: Path | None = None) -> Run:
    """A whole life of a win, disturbed."""
    (lived,) = live_at_once(server, nursery, folder, {"": disturb}, {"": clock}).values()
    return lived


def live_at_once(
    server: Cluster,
    nursery: Nursery,
    folder: Path,
    disturbs: Mapping[str, Disturb],
    clocks: Mapping[str, Path | None] | None = None,
) -> dict[str, Run]:
    """Whole lives of a win side by side on one server, each disturbed in its own way: most of a life is waiting."""
    clocks = clocks or {}

    async def go() -> list[Run]:
        async with setting(server, nursery, folder) as theatre:
            lives = (
                run(theatre, WIN_AND_ROLL_BACK, disturb=disturb, clock=clocks.get(name))
                for name, disturb in disturbs.items()
            )
            return list(await asyncio.gather(*lives))

    return dict(zip(disturbs, asyncio.run(go()), strict=True))


async def _end(scene: Scene, scenario: Scenario, killer: Killer) -> None:
    """Wait for the end and for the quiet after it, also of the hands; a killed operator is started again at once."""

    async def has_ended() -> bool:
        if scene.operator.has_ended and len(killer.victims) >= len(scene.processes):
            scene.start()
        assert not scene.operator.has_ended or killer.is_striking, f"it has ended by itself\n{await scene.describe()}"
        return scenario.has_ended(await scene.job())

    await scene.wait("the scenario has ended", has_ended)
    deadline_s, before = time.monotonic() + TIMEOUT_S, -1
    while before != len(scene.relay.writes) or scene.operator.has_ended or not scene.village.queue.empty():
        before = len(scene.relay.writes)
        await asyncio.sleep(QUIET_S)
        await scene.wait("it stays so", has_ended)
        assert time.monotonic() < deadline_s, f"it never comes to rest\n{await scene.describe()}"


async def sweep(theatre: Theatre, scenario: Scenario, plans: Iterable[tuple[Point, ...]]) -> list[Run]:
    """A run for each plan, several at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(points: tuple[Point, ...]) -> Run:
        async with room:
            return await run(theatre, scenario, *points)

    return list(await asyncio.gather(*(one(points) for points in plans)))


def find_faults(expected: Run, runs: Iterable[Run]) -> list[str]:
    """A line for each run that went another way than the undisturbed one."""
    faults = []
    for run in runs:
        struck = ", ".join(f"{point} ({victim})" for point, victim in zip(run.points, run.victims, strict=False))
        if run.fault:
            faults.append(f"{struck}: {run.fault}")
        faults += [
            f"{struck}: {part}: {run.state[part]}\n  instead of {wanted}\n  after {', '.join(run.writes)}"
            for part, wanted in expected.state.items()
            if run.state and run.state[part] != wanted
        ]
        missed = run.points[len(run.victims) :]
        if missed and (missed[0].name or missed[0].at < len(run.writes)):
            faults.append(f"{struck}: {missed[0]} was not struck")
    return faults


def hold(expected: Run, lived: Run) -> None:
    """A life that was disturbed has come to the end of the undisturbed one."""
    hold_all(expected, {"": lived})


def hold_all(expected: Run, lives: Mapping[str, Run]) -> None:
    """So have all of these."""
    faults = [f"{name}: {fault}" for name, lived in lives.items() for fault in find_faults(expected, [lived])]
    assert not faults, "\n".join(faults)

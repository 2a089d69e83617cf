"""In which order do effects happen? Observe, decide, perform, record: one pass, one effect.

The only place that orders effects. A pass may be cut anywhere: names are derived before anything is launched, a plan is
recorded before its first block, a block is recorded before its traces are dropped, and every pass starts from what the
ledger and the runner say.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import assert_never

from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import MAX_WHY, BlockRecord, Loss, find_owner
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import MAX_FAILING, Application, ApplicationKind, JobMemory, Observation
from amdahl_loop.domain.plan import (
    Action,
    Admission,
    Apply,
    Challenge,
    Halt,
    Judge,
    Launch,
    Observe,
    Propose,
    Rollback,
    Snapshot,
    Wait,
    next_action,
)
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState, Unplaced
from amdahl_loop.domain.telemetry import BlockReport, Malformed, parse_block_summary
from amdahl_loop.ports import Clock, LedgerStore, Runner

Admit = Callable[[Snapshot], Admission]
"""Whether a job may run a trial now, seen all that is known of it."""


Believe = Callable[[JobMemory], JobMemory]
"""What of a memory may be believed."""


def as_recorded(memory: JobMemory) -> JobMemory:
    """On one machine the ledger is a file of its owner's."""
    return memory


def always_admit(_: Snapshot) -> Admission:
    """On one machine there is nobody else to ask."""
    return Admission()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which job this is, for names and memory."""

    job_uid: str
    fingerprint: str
    family: str


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The world, as the loop may touch it."""

    runner: Runner
    ledger: LedgerStore
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One pass: what was seen, what was decided, and the state of the run it concerns."""

    snapshot: Snapshot
    action: Action
    run: RunState | None = None

    @property
    def is_waiting(self) -> bool:
        """True while a run goes on: nothing changes until it reports."""
        return isinstance(self.run, Running)

    @property
    def is_over(self) -> bool:
        """True when nothing is left to do."""
        return isinstance(self.action, Halt)


async def tick(
    job: TrainingJob,
    identity: Identity,
    ports: Ports,
    since_s: float = 0.0,
    *,
    paused: bool = False,
    ended: bool = False,
    failing: str = "",
    withheld: bool = False,
    admit: Admit = always_admit,
    believe: Believe = as_recorded,
) -> Tick:
    """One pass of the loop for one job. What only a cluster knows of it is left out on one machine (see `Snapshot`)."""
    memory = believe(await ports.ledger.recall(identity.job_uid, identity.fingerprint, identity.family))
    snapshot = Snapshot(
        job=job,
        job_uid=identity.job_uid,
        fingerprint=identity.fingerprint,
        family=identity.family,
        memory=memory,
        now_s=ports.clock(),
        since_s=since_s,
        paused=paused,
        ended=ended,
        failing=failing,
        withheld=withheld,
    )
    snapshot = snapshot.under(admit(snapshot))
    action = next_action(snapshot)
    return Tick(snapshot=snapshot, action=action, run=await _perform(action, snapshot, ports))


async def _perform(action: Action, snapshot: Snapshot, ports: Ports) -> RunState | None:
    match action:
        case Observe():
            return await _advance_observation(action, snapshot, ports)
        case Launch() | Challenge():
            return await _advance_block(action, snapshot, ports)
        case Propose():
            await ports.ledger.add_plan(action.plan)
        case Judge():
            await ports.ledger.add_verdict(action.experiment.name, action.verdict, ports.clock())
        case Apply():
            await _apply(ApplicationKind.APPLIED, action.experiment.name, action.knobs, snapshot, ports)
        case Rollback():
            await _apply(ApplicationKind.ROLLED_BACK, action.application.experiment, action.knobs, snapshot, ports)
        case Wait():
            await _give_up(action, ports)
        case Halt():
            pass
        case _:
            assert_never(action)
    return None


async def _advance(request: RunRequest, snapshot: Snapshot, ports: Ports) -> RunState:
    """Submit a run that is absent; say how it stands."""
    state = await ports.runner.find(request.run)
    if isinstance(state, Absent):
        await ports.runner.submit(snapshot.present, request)
        return Running()
    return state


async def _advance_observation(action: Observe, snapshot: Snapshot, ports: Ports) -> RunState:
    state = await _advance(action.request, snapshot, ports)
    if isinstance(state, Finished):
        report, failure = _read(state, action.request.run)
        observation = Observation(
            run=action.request.run,
            at_s=ports.clock(),
            fingerprint=snapshot.fingerprint,
            job=snapshot.job.without_environment(),
            knobs=snapshot.knobs,
            report=report or BlockReport(run=action.request.run, state="error", why=failure),
            held_device_s=state.held_device_s,
        )
        await ports.ledger.add_observation(snapshot.job_uid, observation)
        await ports.runner.stop(action.request.run)
    return state


async def _advance_block(action: Launch | Challenge, snapshot: Snapshot, ports: Ports) -> RunState:
    run = action.request.run
    state = await _advance(action.request, snapshot, ports)
    if isinstance(state, Finished) and state.is_taken and action.spec.stage is Stage.PROOF:
        state = Unplaced(why=state.failure)  # a plan has spare blocks for every stage but this
    if isinstance(state, Unplaced):  # stopped first: a try that is not on record costs nothing but another try
        held = await ports.runner.stop(run)
        loss = Loss(run=run, started_at_s=ports.clock(), held_device_s=held.held_device_s if held else 0.0)
        await ports.ledger.add_loss(action.experiment.name, loss.model_copy(update={"why": state.why[:MAX_WHY]}))
    if isinstance(state, Finished):
        report, failure = _read(state, run)
        record = BlockRecord(
            spec=action.spec,
            node=state.node,
            started_at_s=state.started_at_s,
            held_device_s=state.held_device_s,
            report=report,
            failure=failure,
        )
        await ports.ledger.add_block(action.experiment.name, record)
        await ports.runner.stop(run)
    return state


async def _give_up(action: Wait, ports: Ports) -> None:
    """Stop the run that others come before; what it had held is charged. A run that is over is left to be recorded."""
    if action.gives_up and isinstance(await ports.runner.find(action.gives_up), Running):
        loss = await ports.runner.stop(action.gives_up)
        if loss is not None and loss.held_device_s > 0:
            await ports.ledger.add_loss(action.experiment.name, loss)


async def sweep(ports: Ports, keep: Collection[str] = ()) -> None:
    """Stop every run that is not kept. What a block had held is charged to its experiment, unless it is recorded."""
    held = [loss for loss in await ports.runner.sweep(keep) if loss.held_device_s > 0]
    experiments = await ports.ledger.experiments() if held else ()
    for loss in held:
        owner = find_owner(loss.run, experiments)
        if owner is not None:
            await ports.ledger.add_loss(owner.name, loss)


def _read(state: Finished, run: str) -> tuple[BlockReport | None, str]:
    """The believed report of a finished run, or why there is none."""
    if not state.summary:
        return None, (state.failure or "the run left no summary")[:200]
    report = parse_block_summary(state.summary, run)
    return (None, report.reason[:200]) if isinstance(report, Malformed) else (report, state.failure[:200])


async def _apply(kind: ApplicationKind, experiment: str, knobs: Knobs, snapshot: Snapshot, ports: Ports) -> None:
    await ports.ledger.add_application(
        Application(
            job=snapshot.job.metadata.name,
            job_uid=snapshot.job_uid,
            fingerprint=snapshot.fingerprint,
            at_s=ports.clock(),
            kind=kind,
            experiment=experiment,
            declared=snapshot.job.spec.knobs,
            knobs=knobs,
            failing=snapshot.failing[:MAX_FAILING],
        )
    )

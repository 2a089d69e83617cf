"""The `explain` command: observe a job, and say what holds it back, what could be won and what would be tried.

Nothing is tried. Where the ledger holds no observation of the job as it is, one is made and kept, so that a later `run`
need not repeat it.
"""

import argparse
import asyncio
from typing import assert_never

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.cli.drive import drive, stop_on_signals
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.cli.output import emit
from amdahl_loop.cli.report import (
    shape_diagnosis,
    shape_ideas,
    shape_observation,
    shape_rejected,
)
from amdahl_loop.cli.screens_explain import show_explain
from amdahl_loop.cli.session import Session, World, open_session
from amdahl_loop.cli.shapes import ExplainShape
from amdahl_loop.cli.watch import open_watch
from amdahl_loop.cli.words import changes_of, moment
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.phases import Unobservable
from amdahl_loop.domain.plan import (
    Action,
    Apply,
    Challenge,
    Halt,
    Judge,
    Launch,
    Observe,
    Propose,
    Review,
    Rollback,
    Snapshot,
    Wait,
    look,
    next_action,
)
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.tuning import Mode
from amdahl_loop.reconcile import Ports


def explain(arguments: argparse.Namespace, world: World) -> int:
    """Observe where need be, then review."""
    with open_session(arguments.manifest, arguments.profile, arguments.ledger, world) as session:
        snapshot = asyncio.run(_observe(session, arguments.output, world))
        observation = snapshot.observation
        if observation is None:
            raise Stop(Exit.NOT_OBSERVED, "Not observed: the job is suspended; set spec.suspend to false.")
        review = look(snapshot, observation)
        if isinstance(review, Unobservable):
            raise Stop(Exit.NOT_OBSERVED, review.sentence)
        shape = _describe(session, snapshot, review)
    emit(shape, show_explain(shape), arguments.output, world)
    return Exit.DONE


async def _observe(session: Session, output: str, world: World) -> Snapshot:
    """Let the loop observe and nothing else: on a copy of the memory, without what is under way."""
    snapshot = await session.snapshot()
    memory, identity = snapshot.memory, session.identity
    closed = {e.name: e for e in memory.experiments if e.verdict is not None}
    copy = MemoryLedger(
        Facts(
            observations=tuple((identity.job_uid, observation) for observation in memory.observations),
            experiments=closed,
            applications=memory.applications,
        )
    )
    ports = Ports(runner=session.ports.runner, ledger=copy, clock=session.ports.clock)
    with stop_on_signals() as stop, open_watch(output, world, is_result_alone=True) as watch:
        latest = await drive(_observed_only(session.job), identity, ports, watch, stop, world.sleep)
        for _, observation in copy.state.observations[len(memory.observations) :]:
            as_declared = observation.model_copy(update={"job": session.job.without_environment()})
            await session.ledger.add_observation(identity.job_uid, as_declared)
        if not isinstance(latest.action, Halt):
            raise Stop(Exit.INTERRUPTED, "Interrupted; nothing is left running.")
        return await session.snapshot()


def _observed_only(job: TrainingJob) -> TrainingJob:
    tuning = job.spec.tuning.model_copy(update={"mode": Mode.OBSERVE})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"tuning": tuning})})


def _tell_next(action: Action) -> str:
    """What `run` would do first."""
    match action:
        case Propose():
            return f"`run` would try this first: {action.worth.sentence}."
        case Launch() | Challenge():
            question = changes_of(action.experiment.plan.hypothesis)
            if action.spec.stage is Stage.HOLDOUT:
                return f"`run` would test a win on first: {question} {action.sentence}."
            return f"{question} is under way; `run` goes on with block {action.spec.name}: {action.sentence}."
        case Wait():
            question = changes_of(action.experiment.plan.hypothesis)
            return f"{question} is under way; {action.sentence} until {moment(action.until_s)}."
        case Judge():
            return f"`run` would close {action.experiment.name}. {action.verdict.sentence}"
        case Apply() | Rollback():
            return f"`run` would put {action.knobs.declared()} in force."
        case Observe():
            return "`run` would observe the job."
        case Halt():
            return action.sentence
        case _:
            assert_never(action)


def _describe(session: Session, snapshot: Snapshot, review: Review) -> ExplainShape:
    return ExplainShape(
        job=snapshot.job.metadata.name,
        observation=shape_observation(review.breakdown),
        diagnosis=shape_diagnosis(review.diagnosis),
        next=_tell_next(next_action(snapshot)),
        ideas=shape_ideas(review),
        rejected=shape_rejected(review),
        settled=list(review.settled),
        ledger=str(session.ledger.path),
    )

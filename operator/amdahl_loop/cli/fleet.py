"""The `fleet` command: where does a cluster waste most, what would tuning bring, and who is tried next?

Jobs stand in the order in which their trials are admitted. What each recorded of itself is read, and the domain's own
functions weigh it, as the operator does; nothing is observed, and nothing is written.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.policies import Policies, list_policies
from amdahl_loop.adapters.kube.recall import LedgerUnreadableError
from amdahl_loop.adapters.kube.survey import Records, list_jobs
from amdahl_loop.cli.exits import Exit
from amdahl_loop.cli.output import emit
from amdahl_loop.cli.report import shape_ideas
from amdahl_loop.cli.screens_fleet import show_fleet
from amdahl_loop.cli.session import World
from amdahl_loop.cli.shapes import FleetBankShape, FleetJobShape, FleetShape, FleetTotalShape, TrialShape
from amdahl_loop.cli.way import Cluster
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.fleet import Limits, Member, Pressure, admit, describe, rank
from amdahl_loop.domain.isolation import find_obstacles
from amdahl_loop.domain.plan import Review, Snapshot, look
from amdahl_loop.domain.policy import cap_parallel_trials, constrain
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.withholding import is_withheld
from amdahl_loop.operate import say_failure
from amdahl_loop.passing import OVER, identify

TYPES = JobConditionType
NOT_SEEN = "The operator has not looked at this job yet."


@dataclass(frozen=True, kw_only=True)
class View:
    """One job: what it reports, its place among the others, and what is worth trying on it."""

    seen: SeenJob
    member: Member
    review: Review | None = None
    trouble: str = ""


async def show_ranking(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`fleet`: every job of a namespace, or of the cluster."""
    client, namespace = cluster.client, cluster.namespace
    jobs = await list_jobs(client, namespace)
    policies = await list_policies(client, namespace)
    records = await Records.read(client, namespace, world.clock)
    views = await asyncio.gather(*(_look_at(seen, policies, records, world.clock()) for seen in jobs))
    ordered = put_in_order(views, policies)
    shapes = [_shape(number, view) for number, view in enumerate(ordered, start=1)]
    shape = FleetShape(namespace=namespace, jobs=shapes, total=_sum_up(shapes))
    emit(shape, show_fleet(shape), arguments.output, world)
    return Exit.DONE


async def take_snapshot(
    seen: SeenJob, job: TrainingJob, policies: Policies, records: Records, now_s: float
) -> Snapshot:
    """What a pass of the operator would decide by, from what is recorded. `job` is the seen one, or a variation."""
    held = constrain(job, policies.get(seen.namespace, {}))
    identity = identify(held.job)
    memory = await records.recall(seen, identity.fingerprint, identity.family)
    is_ended = _condition(seen.status, TYPES.COMPLETE).status is ConditionStatus.TRUE
    is_suspended = _condition(seen.status, TYPES.SUSPENDED).reason in OVER
    return Snapshot(
        job=held.job,
        job_uid=identity.job_uid,
        fingerprint=identity.fingerprint,
        family=identity.family,
        memory=memory,
        now_s=now_s,
        paused=held.is_paused or is_suspended,
        ended=is_ended,
        withheld=is_withheld(held.job, memory.applications),
    )


def put_in_order(views: Sequence[View], policies: Policies) -> tuple[View, ...]:
    """Those that want a trial, as they are admitted: who runs one, what was begun, the ranking; then the others."""
    members = [view.member for view in views]
    caps = {name: cap for name, known in policies.items() if (cap := cap_parallel_trials(known.values())) is not None}
    wanting = list(admit(members, Limits(trials=len(members), namespace_trials=caps)))
    others = [member.key for member in rank(members) if member.need is None]
    by_key = {view.member.key: view for view in views}
    return tuple(by_key[key] for key in (*wanting, *others))


async def _look_at(seen: SeenJob, policies: Policies, records: Records, now_s: float) -> View:
    bare = Member(namespace=seen.namespace, name=seen.name)
    if seen.job is None:
        return View(seen=seen, member=bare, trouble=seen.faults)
    try:
        return _weigh(seen, await take_snapshot(seen, seen.job, policies, records, now_s))
    except ApiUnavailable:
        raise
    except LedgerUnreadableError as error:
        return View(seen=seen, member=bare, trouble=str(error))
    except Exception as error:  # noqa: BLE001  # one job's fault must not hide the others
        return View(seen=seen, member=bare, trouble=f"This job cannot be weighed. {say_failure(error)}")


def _weigh(seen: SeenJob, snapshot: Snapshot) -> View:
    """The job's place and what is worth trying, from what is recorded."""
    observation = snapshot.observation
    review = look(snapshot, observation) if observation is not None else None
    return View(
        seen=seen,
        member=_place(snapshot, seen.status),
        review=review if isinstance(review, Review) else None,
    )


def _place(snapshot: Snapshot, status: TrainingJobStatus) -> Member:
    """The job among the others; one whose block runs holds what that needs, one that may have no trial wants none."""
    member = describe(snapshot, Pressure())
    if find_obstacles(snapshot.job.spec.template, snapshot.job.spec.tuning.trial):
        return member.model_copy(update={"need": None})
    is_running = _condition(status, TYPES.EXPERIMENTING).reason == Reason.BLOCK_RUNNING
    holds_h = member.need.reserve_h if is_running and member.need is not None else 0.0
    return member.model_copy(update={"holds_h": holds_h})


def _shape(number: int, view: View) -> FleetJobShape:
    seen, status, review = view.seen, view.seen.status, view.review
    diagnosis, bank = status.diagnosis, status.bank
    return FleetJobShape(
        rank=number,
        namespace=seen.namespace,
        job=seen.name,
        standing=_condition(status, TYPES.READY).reason,
        class_=diagnosis.bottleneck.value if diagnosis else None,
        sentence=view.trouble or (diagnosis.sentence if diagnosis else ""),
        wasted=status.wasted_device_hours_per_hour,
        removable=round(view.member.removable_h_per_h, 4) if review is not None else None,
        ideas=shape_ideas(review) if review is not None else [],
        trial=_tell_trial(view),
        tuned=_condition(status, TYPES.TUNED).reason,
        bank=FleetBankShape(gross=bank.gross_device_hours, spent=bank.spent_device_hours, net=bank.net_device_hours)
        if bank
        else None,
        current=status.observed_generation == seen.generation,
    )


def _tell_trial(view: View) -> TrialShape:
    """The state of a job's trials, as its conditions say it: what blocks them, before that something does."""
    status = view.seen.status
    stalled, trying = _condition(status, TYPES.STALLED), _condition(status, TYPES.EXPERIMENTING)
    told = trying
    if view.trouble or stalled.status is ConditionStatus.TRUE:
        told = stalled
    elif trying.reason == Reason.BLOCKED:
        told = _condition(status, TYPES.TRIALS_BLOCKED)
    return TrialShape(
        running=trying.reason == Reason.BLOCK_RUNNING,
        reason=told.reason,
        sentence=view.trouble or told.message,
        experiment=status.active_experiment,
    )


def _condition(status: TrainingJobStatus, wanted: JobConditionType) -> JobCondition:
    """A condition that is reported, or one that says that nothing is."""
    absent = JobCondition(
        type=wanted,
        status=ConditionStatus.UNKNOWN,
        reason=Reason.NOT_MEASURED_YET,
        message=NOT_SEEN,
        last_transition_time="1970-01-01T00:00:00Z",
    )
    return next((known for known in status.conditions if known.type is wanted), absent)


def _sum_up(shapes: Sequence[FleetJobShape]) -> FleetTotalShape:
    banks = [shape.bank for shape in shapes if shape.bank is not None]
    totals: Mapping[str, float] = {
        name: round(sum(getattr(bank, name) for bank in banks), 4) for name in ("gross", "spent", "net")
    }
    return FleetTotalShape(
        jobs=len(shapes),
        measured=sum(shape.wasted is not None for shape in shapes),
        wasted=round(sum(shape.wasted or 0.0 for shape in shapes), 4),
        removable=round(sum(shape.removable or 0.0 for shape in shapes), 4),
        bank=FleetBankShape(**totals),
    )

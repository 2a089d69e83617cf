"""Would the loop decide today as it decided then?

Every recorded entry is derived anew, in order: the loop is given exactly what was recorded before it and the run that
it was about to see, takes one tick, and must come to the very same entry. Nothing is started. After a difference the
record is followed, so that each experiment is judged for itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.adapters.recorded import NotRecordedError, RecordedRunner, finished_block, finished_observation
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Lost, Measured, Observed
from amdahl_loop.cli.setting import Setting, find_gaps, find_setting, recall
from amdahl_loop.domain.children import is_observation
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.plan import Action, Apply, Challenge, Halt, Judge, Launch, Observe, Propose, Rollback, Wait
from amdahl_loop.domain.runs import Finished
from amdahl_loop.domain.values import Frozen
from amdahl_loop.reconcile import Ports, Tick, tick

RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One recorded entry against what the loop decides today; `difference` is empty where they agree.

    `is_derived` is False where the record does not hold what the loop knew, so that nothing can be said.
    """

    subject: str
    entry: str
    difference: str = ""
    is_derived: bool = True


async def replay(bodies: Sequence[Body]) -> tuple[Decision, ...]:
    """Derive every entry of a ledger from those before it. What was done from outside is no decision of the loop."""
    ledger = MemoryLedger()
    decisions = []
    gaps = find_gaps(bodies)
    for position, body in enumerate(bodies):
        if not _is_owners(body):
            before = ledger.state
            setting = find_setting(bodies, position, before)
            difference = None if setting is None else await _derive(body, setting, before, gaps)
            decision = Decision(
                subject=subject_of(body),
                entry=name_of(body),
                difference=difference or "",
                is_derived=difference is not None,
            )
            decisions.append(decision)
        await record(ledger, body)
    return tuple(decisions)


def _is_owners(body: Body) -> bool:
    """Whether an entry tells what others did: a run that was stopped, a value that its owner put back."""
    return isinstance(body, Lost) or (isinstance(body, Application) and body.kind is ApplicationKind.REVERTED)


async def _derive(body: Body, setting: Setting, before: Facts, gaps: frozenset[str]) -> str | None:
    """One tick on the facts before an entry: how its outcome differs from the entry, or nothing.

    None where the loop had measured something that the record lacks.
    """
    job_uid = setting.identity.job_uid
    before = recall(before, job_uid)
    ledger = MemoryLedger(before)
    runner = RecordedRunner(_run_of(body, before))
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: setting.now_s)
    try:
        seen = await tick(
            setting.job,
            setting.identity,
            ports,
            setting.since_s,
            failing=setting.failing,
            withheld=setting.withheld,
        )
    except NotRecordedError as error:
        if job_uid in gaps and is_observation(error.run):
            return None
        return f"the loop would run {error.run} now, the record holds {name_of(body)}"
    added = _find_added(before, ledger.state)
    if type(added) is type(body) and is_close(added.model_dump(), _bare(body).model_dump()):
        return ""
    return _describe_difference(seen, body)


def _bare(body: Body) -> Body:
    """An entry as it would be written today: earlier ones kept more of the job than anything reads."""
    if not isinstance(body, Observed):
        return body
    observation = body.observation.model_copy(update={"job": body.observation.job.without_environment()})
    return body.model_copy(update={"observation": observation})


def _find_added(before: Facts, after: Facts) -> Body | None:
    """The entry that a tick has made."""
    if after.observations != before.observations:
        job_uid, observation = after.observations[-1]
        return Observed(job_uid=job_uid, observation=observation)
    if after.applications != before.applications:
        return after.applications[-1]
    for name, experiment in after.experiments.items():
        known = before.experiments.get(name)
        if known is None:
            return experiment.plan
        if experiment.blocks != known.blocks:
            return Measured(experiment=name, record=experiment.blocks[-1])
        if experiment.verdict is not None and known.verdict is None:
            return Closed(experiment=name, at_s=after.closed_at_s[name], verdict=experiment.verdict)
    return None


def is_close(now: object, recorded: object) -> bool:
    """Equal, but for the last digits of floating-point numbers, in which mathematical libraries differ."""
    if isinstance(now, float) and isinstance(recorded, float):
        return math.isclose(now, recorded, rel_tol=RELATIVE_TOLERANCE)
    if isinstance(now, Mapping) and isinstance(recorded, Mapping):
        return now.keys() == recorded.keys() and all(is_close(now[key], recorded[key]) for key in now)
    if isinstance(now, tuple | list) and isinstance(recorded, tuple | list):
        return len(now) == len(recorded) and all(map(is_close, now, recorded))
    return now == recorded


def _describe_difference(seen: Tick, body: Body) -> str:
    action = seen.action
    if isinstance(body, Closed) and isinstance(action, Judge):
        return f"the verdict is now {action.verdict.word} and {_list_fields(action.verdict, body.verdict)}"
    if isinstance(body, Plan) and isinstance(action, Propose):
        return f"the plan now {_list_fields(action.plan, body)}"
    if isinstance(body, Measured) and isinstance(action, Launch | Challenge) and action.spec != body.record.spec:
        return (
            f"the next block is now {action.spec.name}, recorded is {body.record.spec.name}, or differs in its windows"
        )
    return f"the loop would now {_verb(action)}, the record holds {name_of(body)}"


def _list_fields(now: Frozen, recorded: Frozen) -> str:
    """Which fields differ, with both values where they are short."""
    names = [
        name
        for name in type(recorded).model_fields
        if not is_close(*(value.model_dump()[name] for value in (now, recorded)))
    ]
    told = [f"{name} ({getattr(now, name)!s:.60}, recorded {getattr(recorded, name)!s:.60})" for name in names]
    return f"differs in {'; '.join(told)}"


def _verb(action: Action) -> str:
    match action:
        case Halt():
            return f"halt ({action.sentence})"
        case Wait():
            return f"wait ({action.sentence})"
        case Propose():
            return f"propose {action.plan.name}"
        case Judge():
            return f"close {action.experiment.name} with {action.verdict.word}"
        case Apply() | Rollback():
            return f"put {action.knobs.declared()} in force"
        case Observe() | Launch() | Challenge():
            return f"record {action.request.run} otherwise"


def _run_of(body: Body, facts: Facts) -> Mapping[str, Finished]:
    """The run that an entry came from, as the runner would have told it."""
    if isinstance(body, Observed):
        return {body.observation.run: finished_observation(body.observation)}
    if isinstance(body, Measured):
        run = facts.experiments[body.experiment].plan.run_name(body.record.spec)
        return {run: finished_block(body.record)}
    return {}


async def record(ledger: MemoryLedger, body: Body) -> None:
    """Fold one recorded entry into a ledger."""
    match body:
        case Plan():
            await ledger.add_plan(body)
        case Observed():
            await ledger.add_observation(body.job_uid, body.observation)
        case Measured():
            await ledger.add_block(body.experiment, body.record)
        case Lost():
            await ledger.add_loss(body.experiment, body.loss)
        case Closed():
            await ledger.add_verdict(body.experiment, body.verdict, body.at_s)
        case Application():
            await ledger.add_application(body)


def subject_of(body: Body) -> str:
    """Whose decision an entry is: an experiment's, or a job's own."""
    match body:
        case Plan():
            return body.name
        case Measured() | Lost() | Closed():
            return body.experiment
        case Observed():
            return f"{body.observation.job.metadata.name} (observations)"
        case Application():
            return body.experiment


def name_of(body: Body) -> str:
    """An entry in words."""
    match body:
        case Plan():
            return f"plan {body.name}"
        case Measured():
            return f"block {body.record.spec.name} of {body.experiment}"
        case Lost():
            return f"stopped run {body.loss.run}"
        case Closed():
            return f"verdict {body.verdict.word} on {body.experiment}"
        case Observed():
            return f"observation {body.observation.run}"
        case Application():
            return f"{body.kind} {body.knobs.declared()}"

"""Would the loop decide today as it decided then?

Every recorded entry is derived anew, in order: the loop is given exactly what was recorded before it and the run that
it was about to see, takes one tick, and must come to the very same entry. Nothing is started. After a difference the
record is followed, so that each experiment is judged for itself. What a record does not hold is taken from where it
does: the job from its observations, its profile from the plan, the time from the entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.memory import Facts, MemoryLedger
from amdahl_loop.adapters.recorded import NotRecordedError, RecordedRunner, finished_block, finished_observation
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Measured, Observed
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.ledger import Application, Observation, family_of
from amdahl_loop.domain.plan import Action, Apply, Challenge, Halt, Judge, Launch, Observe, Propose, Rollback
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished
from amdahl_loop.reconcile import Identity, Ports, Tick, tick


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
    """Derive every entry of a ledger from those before it."""
    ledger = MemoryLedger()
    decisions = []
    for position, body in enumerate(bodies):
        before = ledger.state
        setting = _setting(bodies, position, before)
        difference = await _derive(body, setting, MemoryLedger(before)) if setting else ""
        decision = Decision(
            subject=subject_of(body), entry=name_of(body), difference=difference, is_derived=setting is not None
        )
        decisions.append(decision)
        await record(ledger, body)
    return tuple(decisions)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the loop knew from outside the ledger when it made an entry."""

    job: TrainingJob
    identity: Identity
    now_s: float
    since_s: float


async def _derive(body: Body, setting: Setting, ledger: MemoryLedger) -> str:
    """One tick on the facts before an entry: how its outcome differs from the entry, or nothing."""
    expected = MemoryLedger(ledger.state)
    await record(expected, body)
    runner = RecordedRunner(_run_of(body, ledger.state))
    ports = Ports(runner=runner, ledger=ledger, clock=lambda: setting.now_s)
    try:
        seen = await tick(setting.job, setting.identity, ports, setting.since_s)
    except NotRecordedError as error:
        return f"the loop would run {error.run} now, the record holds {name_of(body)}"
    if ledger.state == expected.state:
        return ""
    return _describe_difference(seen, body)


def _describe_difference(seen: Tick, body: Body) -> str:
    action = seen.action
    if isinstance(body, Closed) and isinstance(action, Judge):
        return f"the verdict is now {action.verdict.word} ({action.verdict.sentence}), recorded is {body.verdict.word}"
    if isinstance(body, Plan) and isinstance(action, Propose):
        fields = [name for name in Plan.model_fields if getattr(action.plan, name) != getattr(body, name)]
        return f"the plan now differs in {', '.join(fields)}"
    if isinstance(body, Measured) and isinstance(action, Launch | Challenge) and action.spec != body.record.spec:
        return (
            f"the next block is now {action.spec.name}, recorded is {body.record.spec.name}, or differs in its windows"
        )
    return f"the loop would now {_verb(action)}, the record holds {name_of(body)}"


def _verb(action: Action) -> str:
    match action:
        case Halt():
            return f"halt ({action.sentence})"
        case Propose():
            return f"propose {action.plan.name}"
        case Judge():
            return f"close {action.experiment.name} with {action.verdict.word}"
        case Apply() | Rollback():
            return f"put {action.knobs.declared()} in force"
        case Observe() | Launch() | Challenge():
            return f"record {action.request.run} otherwise"


def _setting(bodies: Sequence[Body], position: int, facts: Facts) -> Setting | None:
    """Job, identity and time of an entry, from where the record holds them."""
    body = bodies[position]
    job_uid = _job_uid(body, facts)
    observation = _observation_for(bodies, position, job_uid, facts)
    if observation is None:
        return None
    job, fingerprint = observation.job, observation.fingerprint
    if isinstance(body, Plan):
        tuning = job.spec.tuning.model_copy(update={"profile": body.constants.profile})
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"tuning": tuning})})
    if isinstance(body, Application):
        job = job.with_knobs(body.declared)
    identity = Identity(job_uid=job_uid, fingerprint=fingerprint, family=_family(bodies, job, fingerprint))
    return Setting(job=job, identity=identity, now_s=_time(bodies, position), since_s=_since(body, observation, facts))


def _observation_for(bodies: Sequence[Body], position: int, job_uid: str, facts: Facts) -> Observation | None:
    """The observation that shows the job as it was: the entry's own, the last, or the next after a cancellation."""
    body = bodies[position]
    if isinstance(body, Observed):
        return body.observation
    if isinstance(body, Closed) and body.verdict.reason == "Cancelled":
        later = (b.observation for b in bodies[position:] if isinstance(b, Observed) and b.job_uid == job_uid)
        return next(later, None)
    past = [observation for uid, observation in facts.observations if uid == job_uid]
    return past[-1] if past else None


def _family(bodies: Sequence[Body], job: TrainingJob, fingerprint: str) -> str:
    """As the plans of this fingerprint say; the command that it follows from is recorded, too."""
    plans = (body.family for body in bodies if isinstance(body, Plan) and body.fingerprint == fingerprint)
    return next(plans, family_of(job))


def _time(bodies: Sequence[Body], position: int) -> float:
    """When an entry was made: its own time, else that of the next entry that has one, else the last known."""
    later = (at for body in bodies[position:] if (at := _own_time(body)) is not None)
    earlier = (at for body in reversed(bodies[:position]) if (at := _own_time(body)) is not None)
    return next(later, next(earlier, 0.0))


def _own_time(body: Body) -> float | None:
    match body:
        case Observed():
            return body.observation.at_s
        case Measured():
            return body.record.started_at_s
        case Closed() | Application():
            return body.at_s
        case Plan():
            return None


def _since(body: Body, observation: Observation, facts: Facts) -> float:
    """When the loop of an entry began. A job observed anew after a failure shows that another loop had begun."""
    if not isinstance(body, Observed):
        return 0.0
    asked = (body.job_uid, observation.fingerprint, observation.knobs)
    is_again = any((uid, seen.fingerprint, seen.knobs) == asked for uid, seen in facts.observations)
    return observation.at_s if is_again else 0.0


def _run_of(body: Body, facts: Facts) -> Mapping[str, Finished]:
    """The run that an entry came from, as the runner would have told it."""
    if isinstance(body, Observed):
        return {body.observation.run: finished_observation(body.observation)}
    if isinstance(body, Measured):
        run = facts.experiments[body.experiment].plan.run_name(body.record.spec)
        return {run: finished_block(body.record)}
    return {}


def _job_uid(body: Body, facts: Facts) -> str:
    if isinstance(body, Measured | Closed):
        return facts.experiments[body.experiment].plan.job_uid
    return body.job_uid


async def record(ledger: MemoryLedger, body: Body) -> None:
    """Fold one recorded entry into a ledger."""
    match body:
        case Plan():
            await ledger.add_plan(body)
        case Observed():
            await ledger.add_observation(body.job_uid, body.observation)
        case Measured():
            await ledger.add_block(body.experiment, body.record)
        case Closed():
            await ledger.add_verdict(body.experiment, body.verdict, body.at_s)
        case Application():
            await ledger.add_application(body)


def subject_of(body: Body) -> str:
    """Whose decision an entry is: an experiment's, or a job's own."""
    match body:
        case Plan():
            return body.name
        case Measured() | Closed():
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
        case Closed():
            return f"verdict {body.verdict.word} on {body.experiment}"
        case Observed():
            return f"observation {body.observation.run}"
        case Application():
            return f"{body.kind} {body.knobs.declared()}"

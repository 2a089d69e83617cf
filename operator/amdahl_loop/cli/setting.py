"""What did the loop know from outside its ledger when it made an entry? A replay must give it the same.

Each fact is taken from where the record holds it: the job from its observations, its profile and declared values from
plans and applications, the time from the entries themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amdahl_loop.adapters.manifests import is_local
from amdahl_loop.adapters.memory import Facts
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Lost, Measured, Observed
from amdahl_loop.domain.children import observation_number
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.ledger import Application, Observation, family_of
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.verdicts import CANCELLED
from amdahl_loop.domain.withholding import is_withheld
from amdahl_loop.reconcile import Identity


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the loop knew from outside the ledger when it made an entry."""

    job: TrainingJob
    identity: Identity
    now_s: float
    since_s: float
    failing: str = ""
    withheld: bool = False
    """Proven values run from the spec or not at all: as a cluster's mode and limits want it."""


def find_setting(bodies: Sequence[Body], position: int, facts: Facts) -> Setting | None:
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
    return Setting(
        job=job,
        identity=identity,
        now_s=_time(bodies, position),
        since_s=_since(body, observation, facts),
        failing=body.failing if isinstance(body, Application) else "",
        withheld=not is_local(job_uid) and is_withheld(job, [a for a in facts.applications if a.job_uid == job_uid]),
    )


def recall(facts: Facts, job_uid: str) -> Facts:
    """The facts as the loop recalled them: a cluster keeps the newest measurement of a job alone."""
    if is_local(job_uid):
        return facts
    own = [position for position, (uid, _) in enumerate(facts.observations) if uid == job_uid]
    kept = tuple(one for position, one in enumerate(facts.observations) if position not in own[:-1])
    return replace(facts, observations=kept)


def find_gaps(bodies: Sequence[Body]) -> frozenset[str]:
    """UIDs of jobs of which not every measurement is recorded, by their numbers.

    A cluster keeps the measurements that plans were made from, and the newest.
    """
    numbers: dict[str, list[int]] = {}
    for body in bodies:
        if isinstance(body, Observed) and not is_local(body.job_uid):
            numbers.setdefault(body.job_uid, []).append(observation_number(body.observation.run))
    return frozenset(uid for uid, known in numbers.items() if sorted(known) != list(range(len(known))))


def _observation_for(bodies: Sequence[Body], position: int, job_uid: str, facts: Facts) -> Observation | None:
    """The observation that shows the job as it was: the entry's own, the last, or the next after a cancellation."""
    body = bodies[position]
    if isinstance(body, Observed):
        return body.observation
    if isinstance(body, Closed) and body.verdict.reason == CANCELLED:
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
        case Lost():
            return body.loss.started_at_s
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


def _job_uid(body: Body, facts: Facts) -> str:
    if isinstance(body, Measured | Lost | Closed):
        return facts.experiments[body.experiment].plan.job_uid
    return body.job_uid

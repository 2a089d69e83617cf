"""How does a cluster's ledger become entries, and entries a cluster's ledger?

Experiments hold their facts side by side; an export lists them in the order in which they came, which is the order a
replay derives them in. Pure: what was read in, entries out, and the other way round.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from math import inf

from amdahl_loop.adapters.sqlite.entries import Body, Closed, Lost, Measured, Observed
from amdahl_loop.adapters.sqlite.fold import Fold
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.api.training_job import ObservationReport, read_observation, report_observation
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import Loss, Plan
from amdahl_loop.domain.ledger import Application, Observation
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Malformed

LEAD_S = 1.0
"""A plan is written at least this long before its first block starts: its pods have to be made."""

Moment = tuple[float, Body]


@dataclass(frozen=True, kw_only=True)
class KnownJob:
    """A job that is still there: as the loop may treat it, and its newest measurement."""

    job: TrainingJob
    newest: ObservationReport | None


def list_bodies(experiments: Iterable[StoredExperiment], jobs: Mapping[str, KnownJob]) -> tuple[Body, ...]:
    """Every fact of these experiments, and what was measured of the jobs (by UID), in the order in which it came.

    A measurement names the job that was measured; of a job that is gone there is none.
    """
    by_job: dict[str, list[StoredExperiment]] = {uid: [] for uid in jobs}
    for stored in experiments:
        by_job.setdefault(stored.experiment.plan.job_uid, []).append(stored)
    lanes = [_list_job(own, jobs.get(uid), uid) for uid, own in by_job.items()]
    return tuple(body for _, body in merge(*lanes, key=lambda moment: moment[0]))


def _list_job(experiments: Sequence[StoredExperiment], known: KnownJob | None, job_uid: str) -> list[Moment]:
    """Facts of one job: its experiments come one after the other, oldest first, and whatever tests a win on between."""
    moments: list[Moment] = []
    seen: set[str] = set()
    floor_s = 0.0
    for stored in experiments:
        observed = _observe(stored.observation, known, job_uid, seen)
        main = [*observed, *_list_main(stored)]
        for at_s, body in main:
            floor_s = max(floor_s, at_s)
            moments.append((floor_s, body))
        moments += _list_tail(stored, floor_s)
    if known is not None:
        moments += [(max(floor_s, at_s), body) for at_s, body in _observe(known.newest, known, job_uid, seen)]
    return sorted(moments, key=lambda moment: moment[0])


def _observe(reported: ObservationReport | None, known: KnownJob | None, job_uid: str, seen: set[str]) -> list[Moment]:
    """A measurement, told once; what cannot be believed is none."""
    if reported is None or known is None or reported.run in seen:
        return []
    observation = read_observation(reported, known.job.with_knobs(reported.knobs))
    if isinstance(observation, Malformed):
        return []
    seen.add(reported.run)
    return [(observation.at_s, Observed(job_uid=job_uid, observation=observation))]


def _list_main(stored: StoredExperiment) -> list[Moment]:
    """From the plan to the verdict. Nodes tell whole seconds, so the order of the blocks is that of the record."""
    experiment = stored.experiment
    blocks = [record for record in experiment.blocks if record.spec.stage is not Stage.HOLDOUT]
    moments: list[Moment] = [
        (record.started_at_s, Measured(experiment=experiment.name, record=record)) for record in blocks
    ]
    for loss in _list_losses(stored, is_after=False):
        place = sum(at_s <= loss.started_at_s for at_s, _ in moments)
        moments.insert(place, (loss.started_at_s, Lost(experiment=experiment.name, loss=loss)))
    begun_s = max(0.0, moments[0][0] - LEAD_S) if moments else 0.0
    moments.insert(0, (begun_s, experiment.plan))
    if experiment.verdict is not None and stored.closed_at_s is not None:
        closed = Closed(experiment=experiment.name, at_s=stored.closed_at_s, verdict=experiment.verdict)
        moments.append((stored.closed_at_s, closed))
    return moments


def _list_tail(stored: StoredExperiment, floor_s: float) -> list[Moment]:
    """What follows a verdict: values that took effect, and blocks that test them on."""
    name = stored.experiment.name
    moments: list[Moment] = [(application.at_s, application) for application in stored.applications]
    moments += [
        (record.started_at_s, Measured(experiment=name, record=record))
        for record in stored.experiment.blocks
        if record.spec.stage is Stage.HOLDOUT
    ]
    moments += [(loss.started_at_s, Lost(experiment=name, loss=loss)) for loss in _list_losses(stored, is_after=True)]
    return [(max(floor_s, at_s), body) for at_s, body in sorted(moments, key=lambda moment: moment[0])]


def _list_losses(stored: StoredExperiment, is_after: bool) -> list[Loss]:
    """Stopped runs, those that began after the verdict or the others, oldest first."""
    end_s = inf if stored.closed_at_s is None else stored.closed_at_s
    losses = [loss for loss in stored.experiment.losses if (loss.started_at_s > end_s) is is_after]
    return sorted(losses, key=lambda loss: loss.started_at_s)


def gather_experiments(bodies: Sequence[Body]) -> tuple[StoredExperiment, ...]:
    """The experiments that entries tell of, in the order of their plans, each with what its plan was made from."""
    fold = Fold()
    for number, body in enumerate(bodies, start=1):
        fold.add(number, body)
    applications: dict[str, list[Application]] = {}
    reports: dict[str, ObservationReport | None] = {}
    newest: dict[str, list[Observation]] = {}
    for body in bodies:
        match body:
            case Observed():
                newest.setdefault(body.job_uid, []).append(body.observation)
            case Plan():
                reports[body.name] = _find_report(body, newest.get(body.job_uid, ()))
            case Application():
                applications.setdefault(body.experiment, []).append(body)
            case _:
                continue
    return tuple(
        StoredExperiment(
            experiment=experiment,
            closed_at_s=fold.closed_at_s.get(experiment.name),
            applications=tuple(applications.get(experiment.name, ())),
            observation=reports[experiment.name],
        )
        for experiment in fold.experiments()
    )


def _find_report(plan: Plan, observations: Sequence[Observation]) -> ObservationReport | None:
    """The measurement that a plan was made from: the newest of this work under the plan's baseline."""
    fitting = [o for o in observations if o.fingerprint == plan.fingerprint and o.knobs == plan.baseline]
    return report_observation(fitting[-1]) if fitting else None

"""The commands over a cluster's ledger: `fleet`, `ledger`, `show`, `explain`, `export`, `import`.

All but `import` read only. Imported late, by `main`: one machine needs none of the client library.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.text import Text

from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.policies import list_policies
from amdahl_loop.adapters.kube.restore import Need, RestoreDeniedError, RestoreRefusedError, plan_restore, restore
from amdahl_loop.adapters.kube.survey import (
    Records,
    find_experiment,
    find_job,
    list_experiments,
    list_jobs,
)
from amdahl_loop.adapters.sqlite.entries import parse_export, render_export
from amdahl_loop.cli.arguments import is_name
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.cli.fleet import show_ranking, take_snapshot
from amdahl_loop.cli.ledger import choose, present, read_lines, write_export
from amdahl_loop.cli.output import emit, note
from amdahl_loop.cli.report import shape_diagnosis, shape_experiment, shape_ideas, shape_observation, shape_rejected
from amdahl_loop.cli.screens_explain import show_explain
from amdahl_loop.cli.screens_ledger import show_ledger
from amdahl_loop.cli.session import World, with_profile
from amdahl_loop.cli.shapes import ExplainShape, IgnoreShape, LedgerShape, RestoreShape
from amdahl_loop.cli.transfer import KnownJob, gather_experiments, list_bodies
from amdahl_loop.cli.way import Cluster, over_cluster
from amdahl_loop.cli.words import choices, counted
from amdahl_loop.domain.api.conditions import JobConditionType
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.applying import Conflict, KeepOverlay, decide
from amdahl_loop.domain.phases import Unobservable
from amdahl_loop.domain.plan import Review, Snapshot, look
from amdahl_loop.domain.policy import constrain
from amdahl_loop.domain.withholding import find_ban


async def list_all(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`ledger`: every experiment, oldest first, open ones last."""
    kept = await list_experiments(cluster.client, cluster.namespace)
    for namespace, unreadable in kept.unreadable:
        note(f"Experiment {namespace}/{unreadable.name} cannot be read: {unreadable.reason}", world)
    shapes = [shape_experiment(stored.experiment, namespace) for namespace, stored in kept.readable]
    emit(LedgerShape(ledger=cluster.place, experiments=shapes), show_ledger(shapes), arguments.output, world)
    return Exit.DONE


async def show_one(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`show`: one experiment, by its name or a beginning of it."""
    namespace, name = cluster.one_namespace, arguments.experiment
    found = await find_experiment(cluster.client, namespace, name) if is_name(name) else None
    if found is None:
        kept = await list_experiments(cluster.client, namespace)
        chosen = choose(name, [stored.experiment for _, stored in kept.readable], cluster.place)
        return present(chosen, namespace, arguments, world)
    if not isinstance(found.stored, StoredExperiment):
        raise Stop(Exit.LEDGER, f"Experiment {name} cannot be read: {found.stored.reason}; use what wrote it")
    return present(found.stored.experiment, namespace, arguments, world)


async def explain_one(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`explain`: what a job's recorded measurement shows. Nothing is observed anew."""
    seen = await _find_job(cluster, arguments.manifest)
    if seen.job is None:
        raise Stop(Exit.USAGE, f"TrainingJob {seen.name} cannot be used:\n{seen.faults}")
    job = with_profile(seen.job, arguments.profile)
    policies = await list_policies(cluster.client, seen.namespace)
    records = await Records.read(cluster.client, seen.namespace, world.clock)
    snapshot = await take_snapshot(seen, job, policies, records, world.clock())
    observation = snapshot.observation
    if observation is None:
        raise Stop(Exit.NOT_OBSERVED, f"Not observed: {_why_unobserved(seen)}")
    review = look(snapshot, observation)
    if isinstance(review, Unobservable):
        raise Stop(Exit.NOT_OBSERVED, review.sentence)
    sentences = constrain(job, policies.get(seen.namespace, {})).sentences
    shape = _describe(cluster, seen, snapshot, review, sentences)
    emit(shape, show_explain(shape), arguments.output, world)
    return Exit.DONE


async def export_all(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`export`: a namespace's ledger as JSON lines, with what was measured of the jobs that are still there."""
    namespace = cluster.one_namespace
    kept = await list_experiments(cluster.client, namespace)
    if kept.unreadable:
        names = "; ".join(f"{unreadable.name}: {unreadable.reason}" for _, unreadable in kept.unreadable)
        raise Stop(
            Exit.LEDGER, f"not exported: {names}. Export with the version that wrote it, or delete the Experiment"
        )
    policies = (await list_policies(cluster.client, namespace)).get(namespace, {})
    jobs = {
        seen.uid: KnownJob(job=constrain(seen.job, policies).job, newest=seen.status.observation)
        for seen in await list_jobs(cluster.client, namespace)
        if seen.job is not None
    }
    lines = tuple(render_export(list_bodies([stored for _, stored in kept.readable], jobs)))
    return write_export(lines, cluster.place, arguments, world)


async def import_all(cluster: Cluster, arguments: argparse.Namespace, world: World) -> int:
    """`import`: closed experiments of an export become Experiments; what is there already is left alone."""
    experiments = gather_experiments(tuple(parse_export(read_lines(arguments.file))))
    closed = [stored for stored in experiments if stored.experiment.verdict is not None]
    try:
        pieces = await plan_restore(cluster.client, cluster.one_namespace, closed)
        await restore(cluster.client, pieces)
    except RestoreRefusedError as error:
        raise Stop(Exit.LEDGER, str(error)) from error
    except RestoreDeniedError as error:
        raise Stop(Exit.ENVIRONMENT, f"{error}; docs/cli.md says who may import") from error
    needs = [piece.need for piece in pieces]
    shape = RestoreShape(
        ledger=cluster.place,
        file=str(arguments.file),
        created=needs.count(Need.OBJECT),
        completed=needs.count(Need.STATUS) + needs.count(Need.MARK),
        present=needs.count(Need.NOTHING),
        open=len(experiments) - len(closed),
    )
    emit(shape, Text(_tell_restored(shape)), arguments.output, world)
    return Exit.DONE


def _tell_restored(shape: RestoreShape) -> str:
    told = f"{counted(shape.created, 'experiment')} of {shape.file} created in {shape.ledger}"
    told += f", {shape.completed} completed" if shape.completed else ""
    told += f", {shape.present} there already" if shape.present else ""
    told += f"; {shape.open} open left out: only the loop that runs one can end it" if shape.open else ""
    return f"{told}. A running operator reads them within seconds."


async def _find_job(cluster: Cluster, named: Path) -> SeenJob:
    """The job of that name; a file is no name."""
    name = str(named)
    if named.is_file() or named.suffix in (".yaml", ".yml"):
        raise Stop(
            Exit.USAGE, f"{name} is a file: name the job (its metadata.name), or leave the cluster's options out"
        )
    seen = await find_job(cluster.client, cluster.one_namespace, name) if is_name(name) else None
    if seen is not None:
        return seen
    names = [known.name for known in await list_jobs(cluster.client, cluster.namespace)]
    raise Stop(Exit.USAGE, f"no TrainingJob is named {name!r} in {cluster.place}; name one of: {choices(name, names)}")


def _why_unobserved(seen: SeenJob) -> str:
    """What the job itself reports, the more telling first."""
    told = {condition.type: condition for condition in seen.status.conditions}
    for wanted in (JobConditionType.SUSPENDED, JobConditionType.OBSERVED, JobConditionType.READY):
        condition = told.get(wanted)
        if condition is not None and condition.message:
            return condition.message
    return "the operator has not looked at this job yet; is it running, and does it watch this namespace?"


def _describe(
    cluster: Cluster, seen: SeenJob, snapshot: Snapshot, review: Review, sentences: tuple[str, ...]
) -> ExplainShape:
    decision = decide(
        snapshot.job.spec.tuning.mode,
        seen.declared,
        snapshot.memory.applications,
        ban=find_ban(snapshot.job, snapshot.memory.applications),
    )
    rules = decision.ignore if isinstance(decision, KeepOverlay | Conflict) else ()
    return ExplainShape(
        job=seen.name,
        observation=shape_observation(review.breakdown),
        diagnosis=shape_diagnosis(review.diagnosis),
        next=seen.status.message,
        ideas=shape_ideas(review),
        rejected=shape_rejected(review),
        settled=list(review.settled),
        ledger=cluster.place,
        policies=list(sentences),
        ignore=[IgnoreShape(where=rule.where, snippet=rule.snippet) for rule in rules],
    )


COMMANDS: Mapping[str, Callable[[argparse.Namespace, World], int]] = {
    "fleet": over_cluster(show_ranking),
    "ledger": over_cluster(list_all),
    "show": over_cluster(show_one),
    "explain": over_cluster(explain_one),
    "export": over_cluster(export_all),
    "import": over_cluster(import_all),
}

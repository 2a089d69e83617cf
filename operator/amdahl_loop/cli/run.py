"""The `run` command: tune a job, show what was proven, write it if asked, train on if asked."""

import argparse
import asyncio

from amdahl_loop.adapters.manifests import diff_text, edit_knobs, write_manifest
from amdahl_loop.cli.drive import drive, stop_on_signals
from amdahl_loop.cli.exits import Exit
from amdahl_loop.cli.output import emit, note
from amdahl_loop.cli.report import (
    breakdown_of,
    diagnosis_of,
    first_observation,
    own_experiments,
    proven_values,
    shape_bank,
    shape_diagnosis,
    shape_experiment,
    shape_final,
    shape_observation,
)
from amdahl_loop.cli.screens import show_run
from amdahl_loop.cli.session import Session, World, open_session
from amdahl_loop.cli.shapes import ManifestShape, RunShape
from amdahl_loop.cli.train import prepare
from amdahl_loop.cli.watch import open_watch
from amdahl_loop.cli.words import counted
from amdahl_loop.domain.plan import Halt, Snapshot
from amdahl_loop.reconcile import Tick


def run(arguments: argparse.Namespace, world: World) -> int:
    """Tick until nothing is left to do; the exit code says how it ended."""
    with open_session(arguments.manifest, arguments.profile, arguments.ledger, world) as session:
        latest, snapshot = asyncio.run(_loop(session, arguments.output, world))
        halt = latest.action if isinstance(latest.action, Halt) else None
        reason = halt.sentence if halt else _how_to_resume(arguments, snapshot)
        shape = describe(session, snapshot, reason, is_written=arguments.write and halt is not None)
    emit(shape, show_run(shape), arguments.output, world)
    if halt is None:
        return Exit.INTERRUPTED
    if halt.failed:
        note(f"amdahl-loop: {halt.sentence}", world)
        return Exit.NOT_OBSERVED
    if arguments.train:
        world.train(prepare(snapshot.present, session.manifest.path.parent, world.environment))
    return Exit.DONE


async def _loop(session: Session, output: str, world: World) -> tuple[Tick, Snapshot]:
    with stop_on_signals() as stop, open_watch(output, world) as watch:
        latest = await drive(session.job, session.identity, session.ports, watch, stop, world.sleep)
        return latest, await session.snapshot()


def describe(session: Session, snapshot: Snapshot, reason: str, is_written: bool) -> RunShape:
    """The result of a run from what the ledger knows; writes the manifest where that was asked for."""
    first, last = breakdown_of(snapshot, first_observation(snapshot)), breakdown_of(snapshot, snapshot.observation)
    manifest = session.manifest
    proven = proven_values(snapshot)
    text = edit_knobs(manifest, proven) if proven else manifest.text
    if is_written and proven:
        write_manifest(manifest, text)
    return RunShape(
        job=snapshot.job.metadata.name,
        reason=reason,
        observation=shape_observation(first) if first else None,
        diagnosis=shape_diagnosis(diagnosis_of(snapshot, first)) if first else None,
        experiments=[shape_experiment(experiment) for experiment in own_experiments(snapshot)],
        after=shape_observation(last) if last else None,
        final=shape_final(snapshot.knobs),
        bank=shape_bank(snapshot),
        manifest=ManifestShape(
            path=str(manifest.path), diff=diff_text(manifest, text), written=is_written and bool(proven)
        ),
        ledger=str(session.ledger.path),
        profile=snapshot.job.spec.tuning.profile.value,
    )


def _how_to_resume(arguments: argparse.Namespace, snapshot: Snapshot) -> str:
    experiments = own_experiments(snapshot)
    kept = f"{counted(len(experiments), 'experiment')} with "
    kept += counted(sum(len(experiment.blocks) for experiment in experiments), "block")
    profile = f" --profile {arguments.profile}" if arguments.profile else ""
    again = f"amdahl-loop run {arguments.manifest}{profile} --ledger {arguments.ledger}"
    return f"Interrupted; {kept} kept, only the block in progress is lost. Go on with: {again}"

"""The commands that read a ledger or move it: `ledger`, `show`, `replay`, `export`, `import`. They start nothing."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import Body, parse_export
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.cli.output import emit
from amdahl_loop.cli.replay import Decision, replay
from amdahl_loop.cli.report import shape_blocks, shape_experiment, shape_floor
from amdahl_loop.cli.screens_ledger import show_ledger, show_replay, show_show
from amdahl_loop.cli.session import World
from amdahl_loop.cli.shapes import LedgerShape, ReplayedShape, ReplayShape, ShowShape, TransferShape
from amdahl_loop.cli.svg import draw_blocks
from amdahl_loop.cli.words import changes_of, choices
from amdahl_loop.domain.experiments import Experiment


def list_experiments(arguments: argparse.Namespace, world: World) -> int:
    """`ledger`: every experiment, oldest first."""
    shapes = [shape_experiment(experiment) for experiment in _read(arguments.ledger)]
    emit(LedgerShape(ledger=str(arguments.ledger), experiments=shapes), show_ledger(shapes), arguments.output, world)
    return Exit.DONE


def show_experiment(arguments: argparse.Namespace, world: World) -> int:
    """`show`: one experiment, and its blocks as a drawing where a file is named."""
    experiment = choose(arguments.experiment, _read(arguments.ledger), str(arguments.ledger))
    return present(experiment, None, arguments, world)


def present(experiment: Experiment, namespace: str | None, arguments: argparse.Namespace, world: World) -> int:
    """Print one experiment, wherever it is kept, and draw it where a file is named."""
    plan = experiment.plan
    shape = ShowShape(
        experiment=shape_experiment(experiment, namespace),
        hypothesis=f"{changes_of(plan.hypothesis)}: {plan.hypothesis.rationale}",
        profile=plan.constants.profile.value,
        objective=plan.objective.value,
        seed=plan.seed,
        floor=shape_floor(experiment),
        planned_blocks=len(plan.blocks),
        runs=shape_blocks(experiment),
        svg=str(arguments.svg) if arguments.svg else None,
    )
    if arguments.svg:
        arguments.svg.write_text(draw_blocks(shape), encoding="utf-8")
    emit(shape, show_show(shape), arguments.output, world)
    return Exit.DONE


def replay_ledger(arguments: argparse.Namespace, world: World) -> int:
    """`replay`: every recorded decision derived anew; code 5 with the first difference where one does not agree."""
    decisions = asyncio.run(replay(_read_bodies(arguments.ledger)))
    shape = _summarise(decisions, arguments.ledger)
    emit(shape, show_replay(shape), arguments.output, world)
    return Exit.DONE if shape.agree else Exit.DISAGREES


def export_ledger(arguments: argparse.Namespace, world: World) -> int:
    """`export`: the ledger as JSON lines, to a file or to standard output."""
    with SqliteLedger.open(arguments.ledger, exclusive=False) as ledger:
        lines = tuple(ledger.export_lines())
    return write_export(lines, str(arguments.ledger), arguments, world)


def write_export(lines: Sequence[str], ledger: str, arguments: argparse.Namespace, world: World) -> int:
    """Put an export where it was asked for."""
    text = "".join(f"{line}\n" for line in lines)
    if arguments.file is None:
        world.stdout.write(text)
        return Exit.DONE
    arguments.file.write_text(text, encoding="utf-8")
    shape = TransferShape(ledger=ledger, file=str(arguments.file), entries=len(lines) - 1)
    emit(shape, Text(f"{shape.entries} entries written to {shape.file}."), arguments.output, world)
    return Exit.DONE


def import_ledger(arguments: argparse.Namespace, world: World) -> int:
    """`import`: add what is new of an export, all or nothing."""
    lines = read_lines(arguments.file)
    with SqliteLedger.open(arguments.ledger) as ledger:
        added = ledger.import_lines(lines)
    shape = TransferShape(ledger=str(arguments.ledger), file=str(arguments.file), entries=added)
    emit(shape, Text(f"{added} entries of {shape.file} are new and were added."), arguments.output, world)
    return Exit.DONE


def _read(path: Path) -> tuple[Experiment, ...]:
    with SqliteLedger.open(path, exclusive=False) as ledger:
        return asyncio.run(ledger.experiments())


def read_lines(path: Path) -> list[str]:
    """Lines of an export; bytes that are no text break its chain of hashes, and are named by it."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _read_bodies(path: Path) -> tuple[Body, ...]:
    """Everything that a ledger, or a file that was exported from one, records; an export begins with a brace."""
    if _is_export(path):
        return tuple(parse_export(read_lines(path)))
    with SqliteLedger.open(path, exclusive=False) as ledger:
        return tuple(parse_export(ledger.export_lines()))


def _is_export(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{"


def choose(name: str, experiments: Sequence[Experiment], place: str) -> Experiment:
    """The experiment of that name, or the only one that begins with it."""
    found = [e for e in experiments if e.name == name] or [e for e in experiments if e.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    names = choices(name, [e.name for e in found or experiments])
    problem = f"{name!r} fits {len(found)} experiments" if found else f"no experiment is named {name!r}"
    raise Stop(Exit.USAGE, f"{problem} in {place}; name one of: {names}")


def _summarise(decisions: Sequence[Decision], path: Path) -> ReplayShape:
    subjects = dict.fromkeys(decision.subject for decision in decisions)
    differences = [f"{decision.entry}: {decision.difference}" for decision in decisions if decision.difference]
    return ReplayShape(
        ledger=str(path),
        agree=not differences,
        decisions=len(decisions),
        not_derived=[decision.entry for decision in decisions if not decision.is_derived],
        first_difference=differences[0] if differences else "",
        replayed=[_summarise_one(name, [d for d in decisions if d.subject == name]) for name in subjects],
    )


def _summarise_one(subject: str, decisions: Sequence[Decision]) -> ReplayedShape:
    difference = next((f"{d.entry}: {d.difference}" for d in decisions if d.difference), "")
    return ReplayedShape(id=subject, decisions=len(decisions), agree=not difference, difference=difference)

"""What do `ledger` and `show` look like?"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.screens import changes_text, heading, show_experiment, verdict_text
from amdahl_loop.cli.shapes import BlockShape, ExperimentShape, ReplayShape, ShowShape
from amdahl_loop.cli.words import clean, counted, device_hours, percent, saved, signed

SHOWN_SHARE = 0.02
"""Smaller phases of a window are left to `-o json`."""


def show_ledger(experiments: Sequence[ExperimentShape]) -> RenderableType:
    """`ledger`: a row an experiment."""
    if not experiments:
        return Text("No experiment is recorded yet.")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, expand=False)
    table.add_column("experiment", overflow="fold", no_wrap=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("change", overflow="fold")
    table.add_column("saves", justify="right", no_wrap=True)
    table.add_column("blocks", justify="right", no_wrap=True)
    table.add_column("device-h", justify="right", no_wrap=True)
    for experiment in experiments:
        table.add_row(
            experiment.id,
            verdict_text(experiment.verdict),
            changes_text(experiment),
            "" if experiment.effect is None else signed(experiment.effect),
            str(experiment.blocks),
            device_hours(experiment.device_seconds / 3600),
        )
    return table


def show_show(shown: ShowShape) -> RenderableType:
    """`show`: the hypothesis, every block with its windows, votes and vetoes, the verdict."""
    experiment = shown.experiment
    parts: list[RenderableType] = [
        Text.assemble((experiment.id, "bold"), f"  {shown.profile}, {shown.objective}, from {experiment.source}"),
        Text(clean(shown.hypothesis)),
        Text(f"{len(shown.runs)} of at most {shown.planned_blocks} planned blocks have run; seed {shown.seed}", "dim"),
        heading("Blocks"),
    ]
    parts += [_show_block(block) for block in shown.runs] or [Text("None has run.", "dim")]
    if experiment.refutes:
        parts.append(heading("Votes"))
    for number, vote in enumerate(experiment.refutes, start=1):
        word = Text("agrees  ", "green") if vote.agree else Text("objects ", "red")
        told = f"check {number} {saved(vote.effect)}, changed {', '.join(vote.changed)}"
        parts.append(Text.assemble(word, told))
    if experiment.vetoes:
        parts.append(heading("Vetoes"))
    for veto in experiment.vetoes:
        word = Text("silent  ", "green") if veto.silent else Text("VETO    ", "bold red")
        parts.append(Text.assemble(word, f"{veto.name:<8}", clean(veto.sentence)))
    return Group(*parts, heading("Verdict"), show_experiment(experiment))


def _show_block(block: BlockShape) -> RenderableType:
    effect = saved(block.effect) if block.effect is not None else ""
    state = Text() if block.valid else Text(f"  void{': ' if block.problem else ''}{clean(block.problem)}", "yellow")
    head = Text.assemble((f"{block.name:<6}", "bold"), f"{block.stage:<10}{block.order:<6}{effect}", state)
    rows = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "left"):
        rows.add_column(justify=justify)
    for window in block.windows:
        arm = window.arm if window.ran == window.arm else f"{window.arm} (ran {window.ran})"
        cost = f"{1000 * window.device_s_per_sample:.4g} ms" if window.device_s_per_sample else "-"
        seen = ", ".join(f"{phase} {percent(share)}" for phase, share in window.phases.items() if share >= SHOWN_SHARE)
        told = seen if window.outcome == "ok" else f"{window.outcome} {clean(window.why)}"
        rows.add_row(arm, f"{window.steps} steps", f"{cost}/sample", told)
    return Group(head, Padding(rows, (0, 0, 0, 6)))


def show_replay(replayed: ReplayShape) -> RenderableType:
    """`replay`: agreement per experiment, and the first difference."""
    parts: list[RenderableType] = []
    for one in replayed.replayed:
        word = Text("agrees   ", "green") if one.agree else Text("differs  ", "bold red")
        parts.append(Text.assemble(word, f"{one.id}: {counted(one.decisions, 'decision')}"))
    unknown = "cannot be derived: the job as it was then is not recorded"
    parts += [Text(f"{entry} {unknown}", "yellow") for entry in replayed.not_derived]
    if replayed.agree:
        parts.append(Text(f"All {counted(replayed.decisions, 'recorded decision')} agree; nothing was run."))
    else:
        parts.append(Text(f"First difference: {clean(replayed.first_difference)}", "bold red"))
    return Group(*parts)

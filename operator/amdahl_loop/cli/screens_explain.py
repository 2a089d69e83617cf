"""What does `explain` look like?"""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.bars import PhaseBar
from amdahl_loop.cli.screens import heading, list_changes, show_diagnosis
from amdahl_loop.cli.shapes import ExplainShape
from amdahl_loop.cli.words import clean, percent


def show_explain(explain: ExplainShape) -> RenderableType:
    """`explain`: where time goes, what each knob could win, and what would be tried."""
    ceilings = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("knob", "saves", "speed-up", "because"):
        ceilings.add_column(title, justify="right" if title in ("saves", "speed-up") else "left")
    for knob, ceiling in explain.diagnosis.ceilings.items():
        ceilings.add_row(knob, percent(ceiling.removable_share), f"{ceiling.speedup:.2f} x", clean(ceiling.sentence))
    parts: list[RenderableType] = [PhaseBar(explain.observation.phases), show_diagnosis(explain.diagnosis)]
    if explain.diagnosis.ceilings:
        parts += [heading("What each knob could win at most"), ceilings]
    if explain.ideas:
        parts.append(heading("Ideas, best first"))
    for idea in explain.ideas:
        mark = Text("try   ", "bold green") if idea.worth_trying else Text("skip  ", "dim")
        hope = f"  expected to save {percent(idea.expected_gain)} ({idea.source})"
        why = Text(f"{clean(idea.rationale)}\n{clean(idea.sentence)}.", "dim")
        head = Text.assemble(mark, (list_changes(idea.changes), "bold"), hope)
        parts.append(Group(head, Padding(why, (0, 0, 0, 6))))
    if explain.rejected:
        parts.append(heading("May not be tried"))
        parts += [Text(f"{list_changes(rejected.changes)}: {rejected.reason}") for rejected in explain.rejected]
    if explain.settled:
        parts.append(heading("Settled already"))
        parts += [Text(clean(sentence)) for sentence in explain.settled]
    if explain.policies:
        parts.append(heading("What policies change"))
        parts += [Text(clean(sentence)) for sentence in explain.policies]
    if explain.ignore:
        parts.append(heading("To hand the proven values over"))
        parts += [Text(f"{rule.where}: {rule.snippet}") for rule in explain.ignore]
    return Group(*parts, Text(), Text(clean(explain.next)))

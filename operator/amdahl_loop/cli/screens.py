"""What does the end of `run` look like, and what do all screens share? Rich renderables; nothing here decides."""

from collections.abc import Sequence
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.bars import PhaseBar
from amdahl_loop.cli.shapes import (
    BankShape,
    ChangeShape,
    DiagnosisShape,
    ExperimentShape,
    ObservationShape,
    RunShape,
)
from amdahl_loop.cli.words import clean, counted, device_hours, saved, step_time
from amdahl_loop.domain.knob_values import KnobValue
from amdahl_loop.domain.verdicts import VerdictWord

VERDICT_STYLES = {
    VerdictWord.WON: "bold green",
    VerdictWord.NO_GAIN: "default",
    VerdictWord.REFUTED: "yellow",
    VerdictWord.VETOED: "red",
    VerdictWord.INCONCLUSIVE: "yellow",
    VerdictWord.ERROR: "bold red",
}


def show_run(run: RunShape) -> RenderableType:
    """The end of `run`: experiments, before and after, the diff, the bank, and why the loop stopped."""
    parts: list[RenderableType] = []
    if run.experiments:
        parts += [heading("Experiments"), *map(show_experiment, run.experiments)]
    if run.observation is not None:
        parts += [heading("Before and after"), _show_change(run.observation, run.after)]
    if run.manifest.diff or run.manifest.written:
        name = PurePath(run.manifest.path).name
        title = f"{name}, written" if run.manifest.written else f"{name}, not written (--write does)"
        parts += [heading(title), show_diff(run.manifest.diff)]
    parts += [heading("Bank"), _show_bank(run.bank), Text(), Text(clean(run.reason))]
    return Group(*parts)


def show_experiment(experiment: ExperimentShape) -> RenderableType:
    """The verdict with its effect, its sentence, and what it cost under which name."""
    effect = f"  {saved(experiment.effect)}" if experiment.effect is not None else ""
    head = Text.assemble(verdict_text(experiment.verdict), "  ", (changes_text(experiment), "bold"), effect)
    cost = f"{counted(experiment.blocks, 'block')}, {device_hours(experiment.device_seconds / 3600)} device-hours"
    body = Text.assemble(clean(experiment.sentence) or "under way", "\n", (f"{experiment.id}: {cost}", "dim"))
    return Group(head, Padding(body, (0, 0, 0, 2)))


def verdict_text(word: VerdictWord | None) -> Text:
    """The verdict's word in its colour."""
    return Text(str(word), VERDICT_STYLES[word]) if word else Text("open", "cyan")


def changes_text(experiment: ExperimentShape) -> str:
    """Every change of an experiment on one line."""
    return list_changes(experiment.changes)


def list_changes(changes: Sequence[ChangeShape]) -> str:
    """`dataloaderWorkers 0 -> 2, prefetchFactor 2 -> 4`."""
    return ", ".join(f"{change.knob} {_value(change.from_)} -> {_value(change.to)}" for change in changes)


def _value(value: KnobValue | None) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def heading(title: str) -> RenderableType:
    """A rule with a title, after an empty line."""
    return Padding(Rule(Text(title, "bold"), align="left", style="dim"), (1, 0, 0, 0))


def _show_change(before: ObservationShape, after: ObservationShape | None) -> RenderableType:
    """One bar each, as long as its device-seconds per sample, under one legend."""
    shown = [("before", before)] + ([("after", after)] if after is not None and after != before else [])
    longest = max(_cost(seen) for _, seen in shown)
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, seen in shown:
        facts = f"{step_time(seen.step_s)} a step, {seen.samples_per_s:.4g} samples/s, {_devices(seen.devices)}"
        table.add_row(Text(name, "bold"), Group(PhaseBar(seen.phases, _cost(seen) / longest), Text(facts, "dim")))
    return table


def _cost(seen: ObservationShape) -> float:
    """Device-seconds per sample."""
    return seen.devices / max(seen.samples_per_s, 1e-12)


def _devices(count: int) -> str:
    return counted(count, "device")


def show_diagnosis(diagnosis: DiagnosisShape) -> Text:
    """Class and sentence."""
    return Text.assemble((diagnosis.class_, "bold"), "  ", clean(diagnosis.sentence))


def show_diff(diff: str) -> RenderableType:
    """A unified diff in colours; nothing where the manifest says it already."""
    if not diff:
        return Text("The manifest holds these values already.", "dim")
    return Syntax(diff.rstrip("\n"), "diff", theme="ansi_dark", background_color="default", word_wrap=True)


def _show_bank(bank: BankShape) -> RenderableType:
    line = Text.assemble(
        f"gross {device_hours(bank.gross)}  -  spent {device_hours(bank.spent)}  =  ",
        (f"net {device_hours(bank.net)} device-hours", "bold green" if bank.net > 0 else "bold"),
        f"  (at least {device_hours(bank.at_least)})" if bank.gross > 0 else "",
    )
    return Group(line, Text(bank.basis, "dim"))

"""What is on the screen? Rich renderables of domain values; nothing here decides or measures."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.bars import PhaseBar
from amdahl_loop.cli.shapes import (
    BankShape,
    BlockShape,
    ChangeShape,
    DiagnosisShape,
    ExperimentShape,
    ExplainShape,
    ObservationShape,
    RunShape,
    ShowShape,
)
from amdahl_loop.cli.words import clean, device_hours, percent, signed, step_time
from amdahl_loop.domain.experiments import VerdictWord

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
        parts += [_heading("Experiments"), *map(show_experiment, run.experiments)]
    if run.observation is not None:
        parts += [_heading("Before and after"), _show_change(run.observation, run.after)]
    if run.manifest.diff or run.manifest.written:
        title = f"{run.manifest.path} (written)" if run.manifest.written else f"{run.manifest.path} (not written)"
        parts += [_heading(title), show_diff(run.manifest.diff)]
    parts += [_heading("Bank"), _show_bank(run.bank), Text(), Text(clean(run.reason))]
    return Group(*parts)


def show_experiment(experiment: ExperimentShape) -> RenderableType:
    """Two lines: the verdict with its figures, then its sentence."""
    figures = [f"{sum(vote.agree for vote in experiment.refutes)}/{len(experiment.refutes)} checks agree"]
    figures = figures if experiment.refutes else []
    if experiment.effect is not None:
        figures.insert(0, f"saves {signed(experiment.effect)}{_interval(experiment.interval)}")
    figures.append(f"{experiment.blocks} blocks, {device_hours(experiment.device_seconds / 3600)} device-hours")
    head = Text.assemble(verdict_text(experiment.verdict), "  ", (changes_text(experiment), "bold"))
    body = Text.assemble(clean(experiment.sentence) or "still open", "\n", ("; ".join(figures), "dim"), "\n")
    body.append(experiment.id, "dim")
    return Group(head, Padding(body, (0, 0, 1, 2)))


def verdict_text(word: VerdictWord | None) -> Text:
    """The verdict's word in its colour."""
    return Text(str(word), VERDICT_STYLES[word]) if word else Text("open", "cyan")


def changes_text(experiment: ExperimentShape) -> str:
    """Every change of an experiment on one line."""
    return _list_changes([experiment, *experiment.with_])


def _list_changes(changes: Sequence[ChangeShape]) -> str:
    return ", ".join(f"{change.knob} {_value(change.from_)} -> {_value(change.to)}" for change in changes)


def _value(value: int | bool | None) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _interval(interval: tuple[float, float] | None) -> str:
    return f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else ""


def _heading(title: str) -> RenderableType:
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
    return "1 device" if count == 1 else f"{count} devices"


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
    )
    return Group(line, Text(bank.basis, "dim"))


def show_explain(explain: ExplainShape, present: ObservationShape) -> RenderableType:
    """`explain`: where time goes, what each knob could win, and what would be tried."""
    ceilings = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("knob", "could save", "speed-up", "because"):
        ceilings.add_column(title, justify="right" if title in ("could save", "speed-up") else "left")
    for knob, ceiling in explain.diagnosis.ceilings.items():
        ceilings.add_row(
            knob, f"≤ {percent(ceiling.removable_share)}", f"≤ {ceiling.speedup:.2f} x", clean(ceiling.sentence)
        )
    parts: list[RenderableType] = [PhaseBar(present.phases), show_diagnosis(explain.diagnosis)]
    if explain.diagnosis.ceilings:
        parts += [_heading("What each knob could win at most"), ceilings]
    if explain.ideas:
        parts.append(_heading("Ideas, best first"))
    for idea in explain.ideas:
        mark = Text("try   ", "bold green") if idea.worth_trying else Text("skip  ", "dim")
        head = Text.assemble(mark, (_list_changes(idea.changes), "bold"), f"  expected to save {percent(idea.expected_gain)}")
        parts.append(Group(head, Padding(Text(f"{clean(idea.rationale)}\n{clean(idea.sentence)}.", "dim"), (0, 0, 0, 6))))
    if explain.rejected:
        parts.append(_heading("May not be tried"))
        parts += [Text(f"{_list_changes(rejected.changes)}: {rejected.reason}") for rejected in explain.rejected]
    if explain.settled:
        parts.append(_heading("Settled already"))
        parts += [Text(clean(sentence)) for sentence in explain.settled]
    return Group(*parts, Text(), Text(clean(explain.next)))


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
        _heading("Blocks"),
    ]
    parts += [_show_block(block) for block in shown.runs] or [Text("None has run.", "dim")]
    if experiment.refutes:
        parts.append(_heading("Votes"))
    for number, vote in enumerate(experiment.refutes, start=1):
        word = Text("agrees  ", "green") if vote.agree else Text("objects ", "red")
        parts.append(Text.assemble(word, f"check {number} saves {signed(vote.effect)}, changed {', '.join(vote.changed)}"))
    if experiment.vetoes:
        parts.append(_heading("Vetoes"))
    for veto in experiment.vetoes:
        word = Text("silent  ", "green") if veto.silent else Text("VETO    ", "bold red")
        parts.append(Text.assemble(word, f"{veto.name:<8}", clean(veto.sentence)))
    return Group(*parts, _heading("Verdict"), show_experiment(experiment))


def _show_block(block: BlockShape) -> RenderableType:
    effect = f"saves {signed(block.effect)}" if block.effect is not None else ""
    state = Text() if block.valid else Text(f"  void{': ' if block.problem else ''}{clean(block.problem)}", "yellow")
    head = Text.assemble((f"{block.name:<6}", "bold"), f"{block.stage:<10}{block.order:<6}{effect}", state)
    rows = Table.grid(padding=(0, 2))
    for window in block.windows:
        cost = f"{1000 * window.device_s_per_sample:.4g} ms" if window.device_s_per_sample else "-"
        seen = ", ".join(f"{phase} {percent(share)}" for phase, share in window.phases.items() if share >= 0.01)
        told = seen if window.outcome == "ok" else f"{window.outcome} {clean(window.why)}"
        rows.add_row(f"{window.arm}{'' if window.ran == window.arm else f' (ran {window.ran})'}",
                     f"{window.steps} steps", f"{cost}/sample", told)
    return Group(head, Padding(rows, (0, 0, 0, 6)))


def is_number(value: float | None) -> bool:
    """Whether a value exists and is finite."""
    return value is not None and math.isfinite(value)

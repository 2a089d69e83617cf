"""How is time drawn in a terminal?

One stacked bar a job: the phases of its steady time in their order, `compute` first. Where a terminal has no colours,
phases differ by their pattern; where it has no Unicode, by a letter.
"""

from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from amdahl_loop.cli.report import by_phase
from amdahl_loop.cli.words import percent

PHASE_STYLES: Mapping[str, str] = {
    "compute": "green",
    "queue": "red",
    "startup": "cyan",
    "warmup": "bright_cyan",
    "input": "yellow",
    "comm": "blue",
    "checkpoint": "magenta",
    "eval": "bright_blue",
    "other": "bright_black",
}
_PATTERNS: Mapping[str, str] = {
    "compute": "█",
    "queue": "?",
    "startup": "/",
    "warmup": "~",
    "input": "▒",
    "comm": "=",
    "checkpoint": "▓",
    "eval": "+",
    "other": "░",
}
_LETTERS = {phase: phase[0] for phase in PHASE_STYLES} | {"compute": "#", "checkpoint": "k", "comm": "m"}


class PhaseBar:
    """A stacked bar of phase shares with its legend; `length` is the share of the width that the whole bar takes."""

    def __init__(self, phases: Mapping[str, float], length: float = 1.0, legend: bool = True) -> None:
        self.phases = dict(by_phase(phases))
        self.length = min(max(length, 0.0), 1.0)
        self.legend = legend

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The bar on one line, the legend below it on as many as it needs."""
        glyphs = _glyphs(console, options)
        cells = round(options.max_width * self.length)
        bar = Text(no_wrap=True, overflow="crop")
        for phase, width in share_out(self.phases, cells).items():
            bar.append(glyphs[phase] * width, PHASE_STYLES[phase])
        yield bar
        if self.legend:
            yield from _legend(self.phases, glyphs, options.max_width)


def share_out(shares: Mapping[str, float], cells: int) -> dict[str, int]:
    """Whole cells by largest remainder, so that they sum to `cells`; a phase too small for a cell has none."""
    total = sum(shares.values())
    if total <= 0:
        return dict.fromkeys(shares, 0)
    exact = {name: cells * share / total for name, share in shares.items()}
    whole = {name: int(value) for name, value in exact.items()}
    spare = cells - sum(whole.values())
    for name in sorted(exact, key=lambda candidate: whole[candidate] - exact[candidate])[:spare]:
        whole[name] += 1
    return whole


def _glyphs(console: Console, options: ConsoleOptions) -> Mapping[str, str]:
    if options.ascii_only:
        return _LETTERS
    return _PATTERNS if console.color_system is None else dict.fromkeys(PHASE_STYLES, "█")


def _legend(shares: Mapping[str, float], glyphs: Mapping[str, str], width: int) -> list[Text]:
    """`█ compute 59 %` for each phase, broken between phases only."""
    lines = [Text()]
    for phase, share in shares.items():
        item = Text.assemble((glyphs[phase], PHASE_STYLES[phase]), f" {phase} {percent(share)}")
        if lines[-1] and lines[-1].cell_len + 3 + item.cell_len > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append(item)
    return lines

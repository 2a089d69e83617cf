"""How does an experiment look on one page? Its blocks as a small SVG that any browser shows, in light and dark.

One mark a block: how much of the cost it found saved, by stage from left to right. The floor is a dashed line, the
claim and its interval a band; blocks that do not count are hollow.
"""

from collections.abc import Sequence
from html import escape

from amdahl_loop.cli.shapes import BlockShape, ShowShape
from amdahl_loop.cli.words import clean, percent, saved

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 56
STAGES = ("discovery", "refute", "soak", "null", "holdout")
LABELS = {"refute": "refute checks", "null": "null (A/A)", "void": "void: does not count"}
LETTER = 7
"""Usual width of a letter at 13 pixels."""
_STYLE = """
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif; } .page { fill: #ffffff; }
  text { fill: #1f2328; } .dim { fill: #59636e; } .axis { stroke: #d1d9e0; } .zero { stroke: #59636e; }
  .floor { stroke: #9a6700; stroke-dasharray: 5 4; } .claim { stroke: #1a7f37; } .band { fill: #1a7f37; opacity: .13; }
  .discovery { fill: #0969da; stroke: #0969da; } .refute { fill: #8250df; stroke: #8250df; }
  .soak { fill: #bc4c00; stroke: #bc4c00; } .null { fill: #59636e; stroke: #59636e; }
  .holdout { fill: #1a7f37; stroke: #1a7f37; }
  circle { stroke-width: 1.6; } .void { fill: none; stroke-dasharray: 2 2; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; } text { fill: #f0f6fc; } .dim { fill: #9198a1; } .axis { stroke: #3d444d; }
    .zero { stroke: #9198a1; } .floor { stroke: #d29922; }
    .claim { stroke: #3fb950; } .band { fill: #3fb950; opacity: .2; }
    .discovery { fill: #4493f8; stroke: #4493f8; } .refute { fill: #ab7df8; stroke: #ab7df8; }
    .soak { fill: #db6d28; stroke: #db6d28; } .null { fill: #9198a1; stroke: #9198a1; }
    .holdout { fill: #3fb950; stroke: #3fb950; } .void { fill: none; }
  }
"""


def draw_blocks(shown: ShowShape) -> str:
    """The SVG document of an experiment."""
    blocks = [block for block in shown.runs if block.stage in STAGES]
    scale = _Scale(_levels(shown, blocks))
    parts = [
        _title(shown),
        *scale.draw_grid(),
        *_draw_claim(shown, scale),
        *_draw_marks(blocks, scale),
        *_legend(blocks),
    ]
    body = "\n".join(parts)
    label = escape(f"Blocks of {shown.experiment.id}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}">\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>\n{body}\n</svg>\n'
    )


class _Scale:
    """Savings to heights; round steps, zero always shown."""

    def __init__(self, levels: Sequence[float]) -> None:
        low, high = min(*levels, 0.0), max(*levels, 0.0)
        self.step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0) if (high - low) / step <= 6)
        self.low = self.step * (low // self.step)
        self.high = max(self.low + self.step, -self.step * (-high // self.step))

    def y(self, level: float) -> float:
        """Height of a saving on the page."""
        share = (level - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def draw_grid(self) -> list[str]:
        """A line and a label a step."""
        count = round((self.high - self.low) / self.step)
        parts = []
        for level in (self.low + index * self.step for index in range(count + 1)):
            style = "zero" if abs(level) < self.step / 2 else "axis"
            parts.append(_line(style, self.y(level)))
            parts.append(_text(LEFT - 8, self.y(level) + 4, f"{100 * level:.0f} %", "dim", "end"))
        return parts


def _levels(shown: ShowShape, blocks: Sequence[BlockShape]) -> list[float]:
    """Everything that must fit on the page."""
    found = [block.effect for block in blocks if block.effect is not None]
    return [*found, *(shown.experiment.interval or ()), shown.floor or 0.0, 0.0]


def _title(shown: ShowShape) -> str:
    experiment = shown.experiment
    change = ", ".join(f"{change.knob} {change.from_} → {change.to}" for change in experiment.changes)
    word = experiment.verdict or "open"
    effect = f", {saved(experiment.effect)}" if experiment.effect is not None else ""
    head = _text(16, 24, f"{change}: {word}{effect}", "", "start", "font-weight:600;font-size:15px")
    return head + "\n" + _text(16, 44, f"share of cost saved, by block · {experiment.id}", "dim")


def _draw_claim(shown: ShowShape, scale: _Scale) -> list[str]:
    """Band and line of the claim, and the floor that it had to reach."""
    parts, experiment = [], shown.experiment
    width = WIDTH - LEFT - RIGHT
    if experiment.interval:
        low, high = scale.y(experiment.interval[0]), scale.y(experiment.interval[1])
        parts.append(f'<rect class="band" x="{LEFT}" y="{high}" width="{width}" height="{round(low - high, 1)}"/>')
    if experiment.effect is not None:
        parts.append(_line("claim", scale.y(experiment.effect)))
    if shown.floor is not None:
        parts.append(_line("floor", scale.y(shown.floor)))
        label = f"floor {percent(shown.floor)}"
        parts.append(_text(WIDTH - RIGHT, scale.y(shown.floor) - 4, label, "dim", "end"))
    return parts


def _draw_marks(blocks: Sequence[BlockShape], scale: _Scale) -> list[str]:
    """One circle a block that has an effect, a cross at the bottom for one that has none."""
    parts = []
    pitch = (WIDTH - LEFT - RIGHT) / max(len(blocks), 1)
    for number, block in enumerate(blocks):
        x = round(LEFT + (number + 0.5) * pitch, 1)
        parts.append(_text(x, HEIGHT - BOTTOM + 18, block.name, "dim", "middle", "font-size:11px"))
        told = f"{block.name}: {saved(block.effect) if block.effect is not None else block.problem or 'not measured'}"
        title = f"<title>{escape(clean(told + ('' if block.valid else ' (void)')))}</title>"
        if block.effect is None:
            parts.append(f"<g>{title}{_text(x, HEIGHT - BOTTOM - 4, 'x', '', 'middle')}</g>")
        else:
            void = "" if block.valid else " void"
            parts.append(
                f'<circle class="{block.stage}{void}" cx="{x}" cy="{scale.y(block.effect)}" r="5">{title}</circle>'
            )
    return parts


def _legend(blocks: Sequence[BlockShape]) -> list[str]:
    """Stages that occur, and the hollow mark where a block is void."""
    parts, x = [], LEFT + 5
    names = [stage for stage in STAGES if any(block.stage == stage for block in blocks)]
    names += ["void"] if any(not block.valid and block.effect is not None for block in blocks) else []
    for name in names:
        label = LABELS.get(name, name)
        parts.append(f'<circle class="{"null void" if name == "void" else name}" cx="{x}" cy="{HEIGHT - 16}" r="5"/>')
        parts.append(_text(x + 11, HEIGHT - 12, label, "dim"))
        x += 44 + LETTER * len(label)
    return parts


def _line(style: str, y: float) -> str:
    return f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start", css: str = "") -> str:
    extra = f' style="{css}"' if css else ""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}"{extra}>{escape(clean(text))}</text>'

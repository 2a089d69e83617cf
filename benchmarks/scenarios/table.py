"""Was it right? Holds what was found against what is true, and prints one table for people and one for the docs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from catalog import Direction, Scenario, Trap
from loop import Found, Tried
from sweep import Swept

SHARE_BAR = 0.90
HIT_RATE_BAR = 0.50
HEADER = ("scenario", "truth", "found", "sweep gain", "share of it", "trials", "minutes", "right")


@dataclass(frozen=True)
class Row:
    """One line: what is true, what was found, and every way in which they differ."""

    name: str
    truth: str
    found: str
    trials: int
    wins: int
    minutes: float
    faults: tuple[str, ...]
    gain: float | None = None
    share: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The texts of the line."""
        gain = "" if self.gain is None else f"{100 * self.gain:.0f} %"
        share = "" if self.share is None else f"{100 * self.share:.0f} %"
        verdict = "yes" if not self.faults else "NO: " + "; ".join(self.faults)
        minutes = f"{self.minutes:.1f}"
        return (self.name, self.truth, self.found, gain, share, str(self.trials), minutes, verdict)


def judge_scenario(scenario: Scenario, found: Found, swept: Swept | None) -> Row:
    """A scenario is right with the right class, the right knob moved the right way, few trials and most of the gain."""
    faults = []
    if found.bottleneck != scenario.bottleneck:
        faults.append(f"class {found.bottleneck}")
    if len(found.experiments) > scenario.max_trials:
        faults.append(f"{len(found.experiments)} trials, at most {scenario.max_trials}")
    if scenario.knob is None:
        faults += [f"changed {tried.knob}" for tried in found.wins]
    elif not any(is_right_way(tried, scenario) for tried in found.wins):
        faults.append(f"did not win {scenario.direction} {scenario.knob}")
    share = gain = None
    if swept is not None and scenario.knob is not None:
        gain, best = swept.gain(swept.best), swept.costs[swept.best]
        base, mine = next(iter(swept.costs.values())), swept.costs[found.knobs[scenario.knob]]
        share = (base - mine) / (base - best) if base > best else 1.0
        if share < SHARE_BAR:
            faults.append(f"{100 * share:.0f} % of the sweep's gain (best {swept.best})")
    truth = scenario.bottleneck + (f", {scenario.direction} {scenario.knob}" if scenario.knob else ", no change")
    return Row(
        scenario.name,
        truth,
        _tell(found),
        len(found.experiments),
        len(found.wins),
        found.wall_s / 60,
        tuple(faults),
        gain,
        share,
    )


def judge_trap(trap: Trap, found: Found) -> Row:
    """A trap is right when its first experiment has a right verdict for a right reason, and nothing false is won."""
    faults = []
    first = next(iter(found.experiments), None)
    if first is None and not trap.may_stay_closed:
        faults.append("no experiment was opened")
    if first is not None and first.verdict not in trap.verdicts:
        faults.append(first.verdict)
    if first is not None and trap.reasons and first.reason not in trap.reasons:
        faults.append(f"reason {first.reason or 'none'}")
    if "Won" not in trap.verdicts:
        faults += [f"won {tried.knob}" for tried in found.wins if tried is not first]
    truth = " or ".join(trap.verdicts) + (f" ({' or '.join(trap.reasons)})" if trap.reasons else "")
    trials, wins = len(found.experiments), len(found.wins)
    return Row(f"trap: {trap.name}", truth, _tell(found), trials, wins, found.wall_s / 60, tuple(faults))


_RIGHT: Mapping[Direction, bool | str] = {Direction.OFF: "none", Direction.ON: True, Direction.WHOLE: "ddp"}


def is_right_way(tried: Tried, scenario: Scenario) -> bool:
    """Whether a change moved the right knob the right way."""
    if tried.knob != scenario.knob or tried.before is None:
        return False
    if scenario.direction in _RIGHT:
        return tried.after == _RIGHT[scenario.direction]
    if isinstance(tried.before, str) or isinstance(tried.after, str):
        return False
    return tried.after > tried.before if scenario.direction is Direction.UP else tried.after < tried.before


def _tell(found: Found) -> str:
    return found.bottleneck + "; " + ("; ".join(str(tried) for tried in found.experiments) or "nothing tried")


def summarize(rows: list[Row]) -> str:
    """One sentence over all lines: how many are right, the hit rate of the scenarios, false wins of the traps."""
    scenarios = [row for row in rows if not row.name.startswith("trap: ")]
    trials, wins = sum(row.trials for row in scenarios), sum(row.wins for row in scenarios)
    hit_rate = f"{wins} of {trials} experiments won ({100 * wins / trials:.0f} %)" if trials else "no experiments"
    right = sum(not row.faults for row in rows)
    return f"{right} of {len(rows)} right; scenarios: {hit_rate}, {100 * HIT_RATE_BAR:.0f} % are asked for."


def is_passed(rows: list[Row]) -> bool:
    """Every line right, and enough of the scenarios' experiments won."""
    scenarios = [row for row in rows if not row.name.startswith("trap: ")]
    trials, wins = sum(row.trials for row in scenarios), sum(row.wins for row in scenarios)
    return all(not row.faults for row in rows) and (not trials or wins / trials >= HIT_RATE_BAR)


def render_text(rows: list[Row]) -> str:
    """The table in columns of equal width."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [min(70, max(len(line[at]) for line in lines)) for at in range(len(HEADER))]
    drawn = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([drawn[0], "-" * min(180, sum(widths) + 2 * math.ceil(len(widths))), *drawn[1:]])


def render_markdown(rows: list[Row]) -> str:
    """The table for the docs."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines)

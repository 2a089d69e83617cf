"""How are numbers and foreign texts written for people?"""

import difflib
import time
from collections.abc import Sequence

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import Hypothesis

_STAGES = {stage: stage.value for stage in Stage} | {Stage.NULL: "null (A/A)"}


def clean(text: str) -> str:
    """Text that came out of a training process or a manifest, without what could move a cursor or colour a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.replace("\n", " ").replace("\t", " "))


def percent(share: float) -> str:
    """`38 %`; one decimal below ten, so that small shares are not rounded away."""
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"


def signed(share: float) -> str:
    """A saving with its sign: `+38 %` is cheaper, `-4.0 %` is dearer."""
    return ("+" if share >= 0 else "") + percent(share)


def saved(share: float) -> str:
    """A saving in words: `saves 38 %`, or `costs 4.0 % more`."""
    return f"saves {percent(share)}" if share >= 0 else f"costs {percent(-share)} more"


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `1 h 20 min`: as exact as an estimate deserves."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def moment(at_s: float) -> str:
    """`Sun 14:05`, by the clock of this machine."""
    return time.strftime("%a %H:%M", time.localtime(at_s))


def step_time(seconds: float) -> str:
    """A step's time in the unit that fits."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def device_hours(hours: float) -> str:
    """Device-hours with as many digits as they need: trials cost thousandths, banks hold tens."""
    return f"{hours:.3g}" if abs(hours) < 1000 else f"{hours:.0f}"


def counted(number: int, thing: str) -> str:
    """`1 block`, `4 blocks`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def changes_of(hypothesis: Hypothesis) -> str:
    """`dataloaderWorkers 0 -> 2, prefetchFactor 2 -> 4`."""
    return ", ".join(str(change) for change in hypothesis.changes)


def block_title(plan: Plan, spec: BlockSpec) -> str:
    """What a block is for, and which one of how many: `discovery block 3`, `refute check 2 of 3`."""
    if spec.stage is Stage.REFUTE:
        within = f", block {spec.index + 1}" if plan.constants.blocks_per_check > 1 else ""
        return f"refute check {spec.check + 1} of {plan.constants.checks}{within}"
    return f"{_STAGES[spec.stage]} block {spec.index + 1}"


CHOICES = 10


def choices(name: str, names: Sequence[str]) -> str:
    """Names to choose from in place of a wrong one: the nearest first, at most ten, and how many more there are."""
    near = difflib.get_close_matches(name, names, n=CHOICES, cutoff=0.6)
    ordered = [*near, *(other for other in names if other not in near)]
    more = f" and {len(ordered) - CHOICES} more" if len(ordered) > CHOICES else ""
    return (", ".join(ordered[:CHOICES]) or "none") + more

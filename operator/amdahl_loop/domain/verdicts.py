"""How can an experiment end, and what do its guards and its refute checks say?"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from amdahl_loop.domain.values import Frozen


class VerdictWord(StrEnum):
    """How an experiment ended."""

    WON = "Won"
    NO_GAIN = "NoGain"
    REFUTED = "Refuted"
    VETOED = "Vetoed"
    INCONCLUSIVE = "Inconclusive"
    ERROR = "Error"


class VetoName(StrEnum):
    """Guards that end a win alone."""

    WORK = "work"
    QUALITY = "quality"
    SOAK = "soak"
    NULL = "null"
    COST = "cost"
    HARM = "harm"
    METER = "meter"


class Veto(Frozen):
    """What one guard found; `silent` is the good case, with the proof it used."""

    name: VetoName
    """The guard."""
    silent: bool
    """True where the guard found nothing."""
    sentence: Annotated[str, Field(max_length=300)]
    """What it looked at and what it found, with the numbers."""


class Vote(Frozen):
    """What one refute check found, and what it had changed."""

    check: int
    """Number of the refute check, from 0."""
    agree: bool
    """Whether the check agrees with the claim."""
    effect: float
    """Effect that the check found, as a difference of log cost."""
    bar: float
    """Effect that it had to find to agree."""
    changed: Annotated[tuple[Annotated[str, Field(max_length=16)], ...], Field(max_length=8)]
    """What the check changed, as its records confirm: time, order, offset, seed, node."""
    node: Annotated[str, Field(max_length=1100)] = ""
    """Nodes that the check ran on, separated by commas."""


CANCELLED = "Cancelled"
"""Reason of an experiment that its job's owner ended by a change: its question was never answered."""


class Verdict(Frozen):
    """How an experiment ended, with one sentence that holds the numbers. Effects are differences of log cost."""

    word: VerdictWord
    """How the experiment ended."""
    sentence: Annotated[str, Field(max_length=500)]
    """Why, with the numbers."""
    effect: float | None = None
    """Effect that the word rests on: log cost of the baseline less that of the variant; 0.22 saves 20 %."""
    interval: tuple[float, float] | None = None
    """Two-sided 90 % interval of the effect."""
    effect_se: float | None = None
    """Standard error of the effect."""
    floor: float | None = None
    """Smallest effect that counted, given the noise that was seen."""
    discovery_effect: float | None = None
    """Effect that discovery found; it flatters the winner and is credited nowhere."""
    blocks_used: int = 0
    """Blocks that had run by the end."""
    votes: Annotated[tuple[Vote, ...], Field(max_length=16)] = ()
    """What each refute check said."""
    vetoes: Annotated[tuple[Veto, ...], Field(max_length=16)] = ()
    """What each guard found."""
    reason: Annotated[str, Field(max_length=40)] = ""
    """The same in one word, for machines."""

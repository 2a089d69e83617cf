"""Which answers can the judge give, and what does it hold in hand while it thinks?

The closed union `Assessment` is what the loop acts on. `Case` is an experiment with its blocks read; `Claim` is what
discovery found and what every later stage is measured against. Verdicts are written here, so all sentences look alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.evidence import Evidence, Sifted, read_block
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.stats import Estimate
from amdahl_loop.domain.verdicts import Verdict, VerdictWord, Veto, Vote

INTERVAL_LEVEL = 0.90
"""Reported intervals are two-sided at this level: the lower end is the 95 % "at least" of the bank."""


@dataclass(frozen=True, slots=True)
class NeedBlocks:
    """At least these blocks must finish before more can be said; they are independent and in plan order."""

    specs: tuple[BlockSpec, ...]
    stage: Stage
    sentence: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """Discovery found a win; `specs` are the blocks that try to refute it. Effects are differences of log cost."""

    effect: float
    interval: tuple[float, float]
    floor: float
    specs: tuple[BlockSpec, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The experiment is over."""

    verdict: Verdict


Assessment = NeedBlocks | Candidate | Closed


@dataclass(frozen=True, slots=True)
class Claim:
    """An effect that was found or is carried over, its interval, the effective floor, and the blocks it rests on."""

    effect: float
    interval: tuple[float, float]
    floor: float
    discovery: Sifted
    proof: tuple[Veto, ...]

    @property
    def sentence(self) -> str:
        """The claim in words."""
        blocks = len(self.discovery.valid)
        return f"{describe(self.effect, self.interval)} over {blocks} blocks, floor {percent(self.floor)}"


@dataclass(frozen=True, slots=True)
class Case:
    """An experiment with every finished block read, in plan order."""

    experiment: Experiment
    evidence: tuple[Evidence, ...]

    @property
    def plan(self) -> Plan:
        """The plan under which everything ran."""
        return self.experiment.plan

    @property
    def scored(self) -> tuple[Evidence, ...]:
        """Every finished block but the proof's."""
        return tuple(block for block in self.evidence if block.spec.stage is not Stage.PROOF)

    def finished(self, stage: Stage, check: int | None = None) -> tuple[Evidence, ...]:
        """Finished blocks of a stage up to the first that is not: later ones may not jump the queue."""
        by_spec = {block.spec: block for block in self.evidence}
        found = []
        for spec in self.plan.stage_blocks(stage, check):
            if spec not in by_spec:
                break
            found.append(by_spec[spec])
        return tuple(found)

    def next_specs(self, stage: Stage, count: int, check: int | None = None) -> tuple[BlockSpec, ...]:
        """The next planned blocks of a stage that have not finished; empty where the plan holds no more."""
        planned, ran = self.plan.stage_blocks(stage, check), len(self.finished(stage, check))
        return planned[ran : ran + max(1, count)]

    def records(self, blocks: Iterable[Evidence]) -> tuple[BlockRecord, ...]:
        """The records of blocks."""
        specs = {block.spec for block in blocks}
        return tuple(record for record in self.experiment.blocks if record.spec in specs)


def open_case(experiment: Experiment) -> Case:
    """Read every finished block that the plan knows; anything else is none of this experiment's."""
    by_spec = {record.spec: record for record in experiment.blocks}
    plan = experiment.plan
    return Case(experiment, tuple(read_block(plan, by_spec[spec]) for spec in plan.blocks if spec in by_spec))


def close(
    case: Case,
    word: VerdictWord,
    reason: str,
    sentence: str,
    *,
    found: Estimate | None = None,
    claim: Claim | None = None,
    floor: float | None = None,
    votes: Sequence[Vote] = (),
    vetoes: Sequence[Veto] = (),
) -> Closed:
    """The verdict. `found` is the effect that the word rests on; without it the claim's stands, if there is one."""
    effect = found.mean if found else claim.effect if claim else None
    interval = found.interval(INTERVAL_LEVEL) if found else claim.interval if claim else None
    finite = interval is not None and all(math.isfinite(end) for end in interval)
    return Closed(
        Verdict(
            word=word,
            sentence=sentence[:500],
            effect=effect,
            interval=interval if finite else None,
            effect_se=found.se if found and math.isfinite(found.se) else None,
            floor=claim.floor if claim else floor,
            discovery_effect=claim.effect if claim else effect,
            blocks_used=len(case.experiment.blocks),
            votes=tuple(votes),
            vetoes=tuple(vetoes),
            reason=reason,
        )
    )


def describe(effect: float, interval: tuple[float, float]) -> str:
    """An effect in words: what the variant saves of the cost per sample, with its interval."""
    low, high = (100 * -math.expm1(-end) for end in interval)
    return f"saves {100 * -math.expm1(-effect):+.1f} % [{low:+.1f}, {high:+.1f}]"


def percent(effect: float) -> str:
    """A difference of log cost as a share of the cost."""
    return f"{100 * -math.expm1(-effect):.1f} %"

"""Does a win survive attempts to kill it?

Each check changes every nuisance at once (time, order, data offset, seed, and the node where there is another) and
gives one vote; changing one thing per check lets 97 % of conditional false wins through (research 1.5). A check that
did not change what it had to change gives no vote. Time has changed when the check keeps the plan's distance from all
other evidence: the loop waits for it, and the records must confirm it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.evidence import Evidence, Sifted
from amdahl_loop.domain.experiments import BlockRecord, Experiment
from amdahl_loop.domain.stats import mean
from amdahl_loop.domain.verdicts import Vote

REQUIRED_CHANGES = ("time", "order", "offset", "seed")
SPACING_SLACK = 0.95
"""Share of the planned distance in time that the records must show: the clocks of loop and nodes differ a little."""


@dataclass(frozen=True, slots=True)
class Check:
    """One refute check that has run: its blocks, their records, and the effect it found.

    `effect` is the estimate from `used` blocks; `voted` is what the vote sees: it keeps blocks that the variant spoilt.
    """

    number: int
    blocks: Sifted
    records: tuple[BlockRecord, ...]
    used: tuple[Evidence, ...]
    effect: float
    voted: float


def agreement_bar(claim: float, floor: float, constants: Constants) -> float:
    """A check agrees when it finds at least this: half the claim, and half the floor."""
    return max(constants.agree_share * claim, constants.agree_share * floor)


def run_check(
    number: int, blocks: Sifted, records: Sequence[BlockRecord], wanted: int, is_exhausted: bool
) -> Check | None:
    """The check once it holds `wanted` valid blocks; None while blocks are wanting, for good when they cannot come.

    When its plan is exhausted, void blocks fill up; missing ones never do.
    """
    valid = blocks.valid
    if len(valid) < wanted and not (is_exhausted and len(blocks.measured) >= wanted):
        return None
    used = valid if len(valid) >= wanted else blocks.measured
    kept = [block.effect for block in blocks.kept]
    effect = mean([block.effect for block in used])
    voted = min(effect, mean(kept)) if kept else effect
    return Check(number, blocks, tuple(records), used, effect, voted)


def due_at_s(experiment: Experiment, spec: BlockSpec) -> float | None:
    """When a check's block may start: the plan's distance after the newest block that is not of the same check.

    None where nothing has to be waited for: other stages, profiles without spacing.
    """
    spacing_s = experiment.plan.constants.check_spacing_s
    before = [r.started_at_s for r in experiment.blocks if (r.spec.stage, r.spec.check) != (spec.stage, spec.check)]
    if spec.stage is not Stage.REFUTE or not spacing_s or not before:
        return None
    return max(before) + spacing_s


def cast_vote(
    check: Check, discovery: Sequence[BlockRecord], peers: Sequence[BlockRecord], bar: float, spacing_s: float = 0.0
) -> Vote:
    """The vote of a check, with what it really changed against discovery and the blocks of the other checks."""
    nodes = sorted({record.node for record in check.records if record.node})
    return Vote(
        check=check.number,
        agree=check.voted >= bar,
        effect=check.effect,
        bar=bar,
        changed=name_changes(check, discovery, peers, spacing_s),
        node=",".join(nodes),
    )


def name_changes(
    check: Check, discovery: Sequence[BlockRecord], peers: Sequence[BlockRecord], spacing_s: float = 0.0
) -> tuple[str, ...]:
    """What a check changed; only what records and reports confirm. The node is compared with discovery's alone."""
    records, others = check.records, (*discovery, *peers)
    windows = [window for block in check.used for window in block.windows]
    nodes = {record.node for record in records}
    found = {
        "time": _is_apart([r.started_at_s for r in records], [o.started_at_s for o in others], spacing_s),
        "order": not others or any(r.spec.order != o.spec.order for r in records for o in others),
        "offset": all(window.offset_applied for window in windows)
        and _share_none((r.spec.offsets for r in records), (o.spec.offsets for o in others)),
        "seed": _share_none((r.spec.seeds for r in records), (o.spec.seeds for o in others)),
        "node": bool(discovery) and "" not in nodes and nodes.isdisjoint(o.node for o in discovery),
    }
    return tuple(name for name, changed in found.items() if changed)


def unchanged(vote: Vote) -> tuple[str, ...]:
    """What the check had to change and did not; a vote counts only when this is empty."""
    return tuple(name for name in REQUIRED_CHANGES if name not in vote.changed)


def is_lost(votes: Sequence[Vote], checks: int) -> bool:
    """True once a majority for the win has become impossible."""
    return 2 * (checks - sum(not vote.agree for vote in votes)) <= checks


def _is_apart(mine_s: Sequence[float], theirs_s: Sequence[float], spacing_s: float) -> bool:
    """True when no two starts coincide, nor lie closer than the planned distance, less the slack."""
    distances_s = [abs(one_s - other_s) for one_s in mine_s for other_s in theirs_s]
    return all(distance_s > 0 and distance_s >= SPACING_SLACK * spacing_s for distance_s in distances_s)


def _share_none(mine: Iterable[tuple[int, ...]], theirs: Iterable[tuple[int, ...]]) -> bool:
    taken = {value for values in theirs for value in values}
    return all(value not in taken for values in mine for value in values)

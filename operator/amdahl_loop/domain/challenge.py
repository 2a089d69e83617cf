"""Does the claim stand when everything is done to kill it?

Refute checks vote, soak and null may veto, harm and cost are read again from the checks' own blocks. The effect of a
win is the mean of the checks alone: the discovery run chose the claim and flatters it (research 1.7).
"""

import math
from collections.abc import Sequence

from amdahl_loop.domain import refute, vetoes
from amdahl_loop.domain.assessment import (
    INTERVAL_LEVEL,
    Assessment,
    Candidate,
    Case,
    Claim,
    Closed,
    NeedBlocks,
    close,
    describe,
    percent,
)
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.discovery import (
    effective_floor,
    judge_steadiness,
    standing_vetoes,
    stop_for_guards,
    stop_for_setting,
)
from amdahl_loop.domain.evidence import Evidence, Sifted, sift
from amdahl_loop.domain.refute import Check
from amdahl_loop.domain.stats import Estimate, estimate, mean, pooled_sd
from amdahl_loop.domain.verdicts import VerdictWord, Veto, VetoName, Vote


def challenge(case: Case, claim: Claim) -> Assessment:
    """Refute checks, soak and null, in this order; the first that kills the claim ends it."""
    checks = _run_checks(case, claim)
    if not isinstance(checks, tuple):
        return checks
    if case.plan.skip_discovery:
        settled = _settle_transfer(case, claim, checks)
        if isinstance(settled, Closed):
            return settled
        claim = settled
    votes = _cast_votes(case, claim, checks)
    doubt = _find_doubt(case, claim, checks, votes)
    if doubt:
        return doubt
    guards: list[Veto] = []
    for stage in (Stage.SOAK, Stage.NULL):
        guard = _run_guard(case, claim, checks, votes, stage)
        if not isinstance(guard, Veto):
            return guard
        guards.append(guard)
    return _conclude(case, claim, checks, votes, guards)


def carry_claim(case: Case, proof: tuple[Veto, ...]) -> Claim:
    """A win proven elsewhere claims its old gain here; it skips discovery and nothing else."""
    constants = case.plan.constants
    expected = -math.log1p(-case.plan.hypothesis.expected_gain)
    return Claim(expected, (expected, expected), constants.floor, Sifted((), constants.void_gate), proof)


def _run_checks(case: Case, claim: Claim) -> tuple[Check, ...] | Assessment:
    """All checks once they have run and a majority agrees; else the next blocks, or the end."""
    constants = case.plan.constants
    checks: list[Check] = []
    needed: list[BlockSpec] = []
    for number in range(constants.checks):
        check = _run_check(case, claim, number)
        if isinstance(check, Closed):
            return check
        if isinstance(check, Check):
            checks.append(check)
        else:
            needed.extend(check)
    votes = _cast_votes(case, claim, checks)
    ended = _count_votes(case, claim, votes, is_complete=not needed)
    if ended:
        return ended
    if not needed:
        return tuple(checks)
    if not case.finished(Stage.REFUTE) and not case.plan.skip_discovery:
        return Candidate(claim.effect, claim.interval, claim.floor, tuple(needed), f"candidate: {claim.sentence}")
    agreed = sum(vote.agree for vote in votes)
    return NeedBlocks(
        tuple(needed), Stage.REFUTE, f"{agreed} of {len(votes)} checks agree so far, {constants.checks} vote"
    )


def _run_check(case: Case, claim: Claim, number: int) -> Check | tuple[BlockSpec, ...] | Closed:
    """One check, or the blocks it still needs, or the end where its plan is used up."""
    constants, finished = case.plan.constants, case.finished(Stage.REFUTE, number)
    sifted = sift(finished, constants, reference=claim.discovery.blocks)
    specs = case.next_specs(Stage.REFUTE, constants.blocks_per_check - len(sifted.valid), number)
    records = case.records(finished)
    check = refute.run_check(number, sifted, records, constants.blocks_per_check, is_exhausted=not specs)
    if check is not None:
        return check
    if specs:
        return specs
    sentence = f"check {number} could not be run: {len(sifted.measured)} of {len(finished)} blocks were measured"
    return close(case, VerdictWord.INCONCLUSIVE, "too_few_checks", sentence, claim=claim)


def _cast_votes(case: Case, claim: Claim, checks: Sequence[Check]) -> tuple[Vote, ...]:
    bar = refute.agreement_bar(claim.effect, claim.floor, case.plan.constants)
    discovery = case.records(claim.discovery.blocks)
    every = {check.number: check.records for check in checks}
    spacing_s = case.plan.constants.check_spacing_s
    return tuple(
        refute.cast_vote(
            check, discovery, [r for n, rs in every.items() if n != check.number for r in rs], bar, spacing_s
        )
        for check in checks
    )


def _count_votes(case: Case, claim: Claim, votes: Sequence[Vote], is_complete: bool) -> Closed | None:
    """Refuted as soon as no majority is possible; inconclusive where a check did not change what it had to."""
    total = case.plan.constants.checks
    if refute.is_lost(votes, total):
        against = sum(not vote.agree for vote in votes)
        found = estimate([vote.effect for vote in votes])
        sentence = (
            f"refuted: {against} of {len(votes)} checks found less than {percent(votes[0].bar)}; "
            f"claimed {percent(claim.effect)}, the checks' mean is {percent(found.mean)}"
        )
        return close(case, VerdictWord.REFUTED, "outvoted", sentence, found=found, claim=claim, votes=votes)
    for vote in votes:
        unchanged = [name for name in refute.unchanged(vote) if is_complete or name != "order"]
        if unchanged:
            sentence = f"check {vote.check} does not count: it did not change {', '.join(unchanged)}"
            return close(case, VerdictWord.INCONCLUSIVE, "too_few_checks", sentence, claim=claim, votes=votes)
    return None


def _settle_transfer(case: Case, claim: Claim, checks: Sequence[Check]) -> Claim | Closed:
    """What discovery would have asked, asked of the checks: the pooled bound above 0, and the mean above the floor."""
    constants = case.plan.constants
    used = _used_blocks(checks)
    ended = stop_for_setting(case, used, constants.transfer_alpha)
    if ended:
        return ended
    found, floor = estimate([block.effect for block in used]), effective_floor(constants, used)
    pooled = Claim(found.mean, found.interval(INTERVAL_LEVEL), floor, Sifted(used, claim.discovery.gate), claim.proof)
    over = f"over {len(used)} blocks of {len(checks)} checks"
    sentence = f"{describe(found.mean, pooled.interval)} {over}, floor {percent(floor)}"
    if found.mean < floor:
        return close(case, VerdictWord.NO_GAIN, "below_floor", f"no gain here: {sentence}", found=found, claim=pooled)
    bound = found.lower(constants.transfer_alpha)
    if bound <= 0:
        text = f"undecided: {sentence}; bound at {100 * (1 - constants.transfer_alpha):.1f} % is {percent(bound)}"
        return close(case, VerdictWord.INCONCLUSIVE, "transfer_bound", text, found=found, claim=pooled)
    return Claim(found.mean, pooled.interval, floor, Sifted((), claim.discovery.gate), claim.proof)


def _run_guard(
    case: Case, claim: Claim, checks: Sequence[Check], votes: Sequence[Vote], stage: Stage
) -> Veto | NeedBlocks | Closed:
    """Soak or null: silent, or the next block, or the end."""
    blocks = sift(case.finished(stage), case.plan.constants, reference=claim.discovery.blocks)
    planned = len(case.plan.stage_blocks(stage))
    spread = _pool_spread(case, claim, checks)
    if stage is Stage.SOAK:
        said = vetoes.judge_soak(blocks, planned, claim.effect, spread, case.plan.constants)
    else:
        said = vetoes.judge_null(blocks, planned, claim.effect, claim.floor, spread)
    if said is None:
        specs = case.next_specs(stage, 1)
        return NeedBlocks(specs, stage, f"{stage}: {len(blocks.blocks)} of at most {planned} blocks have run")
    found = _refute_estimate(case, claim, checks)
    if isinstance(said, vetoes.Unclear):
        word, text = VerdictWord.INCONCLUSIVE, said.sentence
        return close(case, word, said.reason, text, found=found, claim=claim, votes=votes)
    if not said.silent:
        text = f"vetoed by {said.name}: {said.sentence}"
        return close(
            case, VerdictWord.VETOED, said.name.value, text, found=found, claim=claim, votes=votes, vetoes=(said,)
        )
    return said


def _find_doubt(case: Case, claim: Claim, checks: Sequence[Check], votes: Sequence[Vote]) -> Closed | None:
    """Doubts that need all blocks at once: asked when the votes are in, and again with the soak's blocks.

    Replacing void blocks hides a variant's bad launches, so the mean that keeps them must pass the checks' own bar.
    """
    constants, found = case.plan.constants, _refute_estimate(case, claim, checks)
    challenged = (*(block for check in checks for block in check.blocks.blocks), *case.finished(Stage.SOAK))
    everything = sift((*claim.discovery.blocks, *challenged), constants)
    unsteady = judge_steadiness(everything, constants)
    if unsteady:
        veto, text = vetoes.loud(VetoName.HARM, unsteady), f"vetoed by harm: {unsteady}"
        return close(case, VerdictWord.VETOED, "unsteady", text, found=found, claim=claim, votes=votes, vetoes=(veto,))
    least = refute.agreement_bar(claim.effect, claim.floor, constants)
    for what, effect in (
        ("the checks' mean", found.mean),
        ("the mean with the variant's spoilt blocks", mean([block.effect for block in everything.kept])),
    ):
        if effect < least:
            text = f"refuted: {what} is {percent(effect)}, {percent(least)} is needed"
            return close(case, VerdictWord.REFUTED, "mean_too_low", text, found=found, claim=claim, votes=votes)
    return None


def _conclude(
    case: Case, claim: Claim, checks: Sequence[Check], votes: Sequence[Vote], guards: Sequence[Veto]
) -> Closed:
    """Every check has voted and every veto with blocks of its own is silent: the last doubts, or the win."""
    used = _used_blocks(checks)
    ended = _find_doubt(case, claim, checks, votes) or stop_for_guards(case, claim, used)
    if ended:
        return ended
    found = _refute_estimate(case, claim, checks)
    silent = (*claim.proof, *guards, *standing_vetoes(case.plan, found.mean, used), vetoes.describe_meter(case.scored))
    agreed, nodes = sum(vote.agree for vote in votes), _count_nodes(case)
    where = f"on {nodes} nodes" if nodes > 1 else "on this node"
    changes = ", ".join(str(change) for change in case.plan.hypothesis.changes)
    text = (
        f"{changes} {describe(found.mean, found.interval(INTERVAL_LEVEL))} {where}: {agreed} of {len(votes)} checks "
        f"agree, {len(silent)} vetoes silent; discovery claimed {percent(claim.effect)}, floor {percent(claim.floor)}"
    )
    return close(case, VerdictWord.WON, "won", text, found=found, claim=claim, votes=votes, vetoes=silent)


def _refute_estimate(case: Case, claim: Claim, checks: Sequence[Check]) -> Estimate:
    """Mean of the checks. Its error is the larger of what the checks' own spread and what the pooled blocks say."""
    found = estimate([check.effect for check in checks])
    sd, df = _pool_spread(case, claim, checks)
    pooled_se = sd / math.sqrt(len(_used_blocks(checks)))
    return Estimate(found.mean, max(found.se, pooled_se), max(df, found.df))


def _pool_spread(case: Case, claim: Claim, checks: Sequence[Check]) -> tuple[float, int]:
    """Standard deviation of a block and its degrees of freedom: discovery, checks and null, each about its mean."""
    constants = case.plan.constants
    null = sift(case.finished(Stage.NULL), constants, reference=claim.discovery.blocks)
    groups = (claim.discovery.valid, _used_blocks(checks), null.valid)
    return pooled_sd([[block.effect for block in group] for group in groups])


def _used_blocks(checks: Sequence[Check]) -> tuple[Evidence, ...]:
    return tuple(block for check in checks for block in check.used)


def _count_nodes(case: Case) -> int:
    return len({record.node for record in case.experiment.blocks if record.node})

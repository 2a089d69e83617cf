"""Is there a gain at all?

Looks at 4, 6, 8, 12 valid blocks with alpha spent over them (research 1.4). A look sees only the blocks that had run
when its count was reached, so no later block can change what it said. A candidate must be above the effective floor,
steady and harmless; everything else ends here, most often as `NoGain` after four blocks.
"""

import math
from collections.abc import Sequence

from amdahl_loop.domain import cadence, vetoes
from amdahl_loop.domain.assessment import (
    INTERVAL_LEVEL,
    Assessment,
    Case,
    Claim,
    Closed,
    NeedBlocks,
    close,
    describe,
    percent,
)
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.evidence import Evidence, Sifted, effect_at, sift
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import judged_by
from amdahl_loop.domain.stats import estimate, mean, pair_sd, sign_test
from amdahl_loop.domain.telemetry import PHASES, Arm, Phase
from amdahl_loop.domain.verdicts import VerdictWord, Veto, VetoName

MISSING_LEAD = 2
"""A variant that fails to report this much more often than the baseline is not judged."""

SHARE_SHIFT = 0.10
"""Phase shares in trial and job may differ by 10 points; beyond that the trial does not resemble the job."""

_LAUNCH_PHASES = frozenset({Phase.QUEUE, Phase.STARTUP, Phase.WARMUP})


def discover(case: Case, proof: tuple[Veto, ...]) -> Claim | Assessment:
    """Walk the looks; a claim, the next blocks, or the end."""
    constants, finished = case.plan.constants, case.finished(Stage.DISCOVERY)
    look = 0
    for ran in range(1, len(finished) + 1):
        sifted = sift(finished[:ran], constants)
        ended = _stop_for_voids(case, sifted)
        if ended:
            return ended
        if len(sifted.valid) < constants.looks[look]:
            continue
        said = _take_look(case, sifted, look, proof)
        if said is not None:
            return said
        look += 1
    wanted = constants.looks[look] - len(sift(finished, constants).valid)
    specs = case.next_specs(Stage.DISCOVERY, wanted)
    if not specs:
        sentence = f"all {len(finished)} planned blocks ran and too many were void"
        return close(case, VerdictWord.INCONCLUSIVE, "voids", sentence)
    return NeedBlocks(specs, Stage.DISCOVERY, f"{wanted} more valid blocks to the look at {constants.looks[look]}")


def stop_for_setting(case: Case, used: Sequence[Evidence], alpha: float) -> Closed | None:
    """Reasons not to judge here at all: too noisy, unlike the job, or always the same data."""
    spread, limit = pair_spread(used), case.plan.constants.max_block_sd
    if spread > limit and not _stands_out(case.plan.constants, used, alpha):
        sentence = f"too noisy to experiment: block sd {percent(spread)}, above {percent(limit)}"
        return close(case, VerdictWord.INCONCLUSIVE, "too_noisy", sentence)
    shifted = _find_shifted_phase(case.plan, used)
    if shifted:
        return close(case, VerdictWord.INCONCLUSIVE, "not_representative", shifted)
    if not any(window.offset_applied for block in used for window in block.windows):
        sentence = "the data offset could not be applied, so no refute check could see other data"
        return close(case, VerdictWord.INCONCLUSIVE, "offset_not_applied", sentence)
    return None


def stop_for_guards(case: Case, claim: Claim, used: Sequence[Evidence]) -> Closed | None:
    """Memory, lost work, price in wall time, and for cadences the whole interval of the interruption rate."""
    for veto in standing_vetoes(case.plan, claim.effect, used):
        if not veto.silent:
            sentence = f"vetoed by {veto.name}: {veto.sentence}"
            return close(case, VerdictWord.VETOED, veto.name.value, sentence, claim=claim, vetoes=(veto,))
    fragile = _find_fragile_rate(case.plan, used)
    return close(case, VerdictWord.INCONCLUSIVE, "rate_uncertain", fragile, claim=claim) if fragile else None


def standing_vetoes(plan: Plan, effect: float, blocks: Sequence[Evidence]) -> tuple[Veto, ...]:
    """Guards that read whatever blocks there are: harm and cost."""
    wall_effect = mean([block.wall_effect for block in blocks])
    guards = (vetoes.judge_memory(plan, blocks), vetoes.judge_lost_work(plan, blocks))
    return (*(veto for veto in guards if veto), vetoes.judge_cost(plan, effect, wall_effect))


def judge_steadiness(blocks: Sifted, constants: Constants) -> str:
    """Why the variant is unsteady, or nothing: it may not spoil more blocks than chance allows (sign test)."""
    variant, baseline = blocks.spoilt_by(Arm.VARIANT), blocks.spoilt_by(Arm.BASELINE)
    p_value = sign_test(variant, variant + baseline)
    if p_value >= constants.steady_alpha:
        return ""
    return f"unsteady: the variant spoilt {variant} blocks, the baseline {baseline} (p {p_value:.3f})"


def effective_floor(constants: Constants, used: Sequence[Evidence]) -> float:
    """The smallest gain that may be claimed at this noise: research on two shared cores, design section 8."""
    return max(constants.floor, constants.noise_floor_factor * pair_spread(used))


def pair_spread(used: Sequence[Evidence]) -> float:
    """Standard deviation of a block, from its arms' disagreements with themselves.

    A block is half the difference of two sums of two windows, so its variance is one window's.
    """
    return pair_sd([block.gap(arm) for block in used for arm in Arm])


def _stands_out(constants: Constants, used: Sequence[Evidence], alpha: float) -> bool:
    """Whether a gain is so large that noise which would hide most others does not matter to it.

    The floor grows with the noise, so a bound that clears it asks the same of a loud machine as of a quiet one, and far
    more than of a gain that is to be found where blocks hardly spread.
    """
    bar = constants.noisy_margin * effective_floor(constants, used)
    return bar > 0 and estimate([block.effect for block in used]).lower(alpha) >= bar


def _stop_for_voids(case: Case, sifted: Sifted) -> Closed | None:
    constants = case.plan.constants
    cap = math.ceil(constants.looks[-1] * constants.spare_share)
    if sifted.void_count > cap:
        problems = [block.problem for block in sifted.blocks if block.problem]
        last = problems[-1] if problems else "an arm disagreed with itself"
        sentence = f"{sifted.void_count} of {len(sifted.blocks)} blocks were void, {cap} are allowed; last: {last}"
        return close(case, VerdictWord.INCONCLUSIVE, "voids", sentence)
    variant, baseline = sifted.missing_by(Arm.VARIANT), sifted.missing_by(Arm.BASELINE)
    if variant - baseline >= MISSING_LEAD:
        sentence = f"the variant failed to report in {variant} blocks, the baseline in {baseline}"
        return close(case, VerdictWord.INCONCLUSIVE, "variant_missing", sentence)
    return None


def _take_look(case: Case, sifted: Sifted, look: int, proof: tuple[Veto, ...]) -> Claim | Closed | None:
    """One look: a claim, the end, or None to go on.

    `NoGain` is said only where the mean itself is below the profile's floor: above it, but below what the noise allows,
    more blocks may show that the noise was overrated.
    """
    constants = case.plan.constants
    used = sifted.valid[: constants.looks[look]]
    ended = stop_for_setting(case, used, constants.alphas[look])
    if ended:
        # One neighbour's visit can spoil a first look; a noisy machine is still noisy at the second.
        is_passing = look == 0 and ended.verdict.reason == "too_noisy"
        return None if is_passing else ended
    found, floor = estimate([block.effect for block in used]), effective_floor(constants, used)
    interval = found.interval(INTERVAL_LEVEL)
    sentence = f"{describe(found.mean, interval)} over {len(used)} blocks, floor {percent(floor)}"
    if found.lower(constants.alphas[look]) > 0 and found.mean >= floor:
        claim = Claim(found.mean, interval, floor, sifted, proof)
        return _check_candidate(case, claim, used)
    if found.upper(constants.futility_alpha) < floor and found.mean < constants.floor:
        return close(case, VerdictWord.NO_GAIN, "below_floor", f"no gain: {sentence}", found=found, floor=floor)
    if look == len(constants.looks) - 1:
        text = f"undecided after the last look: {sentence}"
        return close(case, VerdictWord.INCONCLUSIVE, "looks_spent", text, found=found, floor=floor)
    return None


def _check_candidate(case: Case, claim: Claim, used: Sequence[Evidence]) -> Claim | Closed:
    """What can kill a candidate before anything is spent on refuting it."""
    constants = case.plan.constants
    unsteady = judge_steadiness(claim.discovery, constants)
    if unsteady:
        veto = vetoes.loud(VetoName.HARM, unsteady)
        return close(case, VerdictWord.VETOED, "unsteady", f"vetoed by harm: {unsteady}", claim=claim, vetoes=(veto,))
    kept, least = mean([block.effect for block in claim.discovery.measured]), constants.with_void_share * claim.floor
    if kept < least:
        sentence = f"no gain: with void blocks counted it saves {percent(kept)}, {percent(least)} is needed"
        return close(case, VerdictWord.NO_GAIN, "void_blocks_disagree", sentence, claim=claim)
    return stop_for_guards(case, claim, used) or claim


def _find_shifted_phase(plan: Plan, used: Sequence[Evidence]) -> str:
    """The phase whose share in the trial's baseline differs too much from the job's; launches are left out of both.

    Saves are forced where a cadence is judged, so their share says nothing there.
    """
    if not plan.baseline_shares_ppk:
        return ""
    left_out = _LAUNCH_PHASES | ({Phase.CHECKPOINT} if judged_by(plan.hypothesis) == "cadence" else set())
    windows = [window for block in used for window in block.arm_windows(Arm.BASELINE)]
    trial = [mean([float(window.phases_ppk[i]) for window in windows]) for i in range(len(PHASES))]
    seen = [i for i, phase in enumerate(PHASES) if phase not in left_out]
    trial_sum, job_sum = sum(trial[i] for i in seen), sum(plan.baseline_shares_ppk[i] for i in seen)
    if trial_sum <= 0 or job_sum <= 0:
        return "no steady time was reported, in the trial or in the job"
    for i in seen:
        in_trial, in_job = trial[i] / trial_sum, plan.baseline_shares_ppk[i] / job_sum
        if abs(in_trial - in_job) > SHARE_SHIFT:
            return (
                f"the trial does not resemble the job: {PHASES[i]} takes {100 * in_trial:.0f} % of the baseline's time "
                f"in the trial, {100 * in_job:.0f} % in the job"
            )
    return ""


def _find_fragile_rate(plan: Plan, used: Sequence[Evidence]) -> str:
    """Why a cadence's win hangs on the interruption rate, or nothing: it must hold over the rate's 90 % interval."""
    if judged_by(plan.hypothesis) != "cadence":
        return ""
    belief = cadence.planned_rate(plan)
    for rate in (belief.low, belief.high):
        effect = mean([effect_at(plan, block, rate) for block in used])
        if effect <= 0:
            return (
                f"saves {percent(effect)} if the job is interrupted every {1 / rate / 3600:.1f} h, which 90 % of the "
                f"belief (prior and {plan.interruptions_seen} seen) includes: observe longer"
            )
    return ""

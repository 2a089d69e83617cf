"""Do both arms do the same work?

From one start, over the same first steps, baseline and variant must consume the same samples and show the same losses,
before a single window is timed (design, section 6). Bit-equal losses pass. Where the variant's arithmetic is reordered
(another number of devices, passes of another size, a compiled model), a relative tolerance holds, as wide as the type
that matrices are multiplied in makes it; where data are augmented at random, the spread of the baseline's own seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from amdahl_loop.domain.blocks import BlockSpec
from amdahl_loop.domain.evidence import Evidence
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.knobs import KnobKind, kind_of
from amdahl_loop.domain.stats import estimate, mean
from amdahl_loop.domain.telemetry import Arm, Window, WindowOutcome
from amdahl_loop.domain.verdicts import VerdictWord, Veto, VetoName

MIN_SEEDS = 3
"""Baseline seeds that show a spread of losses; fewer show none."""

SEED_SPREADS = 2.0
"""The variant's mean loss may lie this many standard deviations of the baseline's seeds away."""


TOLERANCE_OF_DTYPE: Mapping[str, float] = {"bfloat16": 1e-3}
"""Relative difference of mean losses that rounding may cause in types shorter than float32, which the plan's tolerance
is meant for. Larger passes moved a small model's loss by 4.5e-8 in float32 and by 2.9e-6 in bfloat16, 65 times as much;
a hundred times float32's tolerance is allowed."""


@dataclass(frozen=True, slots=True)
class NeedProof:
    """More windows from one start are needed."""

    specs: tuple[BlockSpec, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Proven:
    """The work is the same; the vetoes say by which proof."""

    vetoes: tuple[Veto, ...]


@dataclass(frozen=True, slots=True)
class Unproven:
    """The experiment ends here."""

    word: VerdictWord
    reason: str
    sentence: str
    vetoes: tuple[Veto, ...] = ()


Proof = NeedProof | Proven | Unproven


def prove_same_work(plan: Plan, specs: Sequence[BlockSpec], blocks: Sequence[Evidence]) -> Proof:
    """Walk the proof: the first pair of windows, and the further seeds only where the losses differ."""
    if not blocks and not specs:
        return _inconclusive("no_proof", "the plan holds no proof of equal work")
    if not blocks:
        return NeedProof(tuple(specs[:1]), f"compare the arms over {plan.constants.proof_steps} steps from one start")
    pairs = [pair for block in blocks for pair in _pairs(block)]
    refused = (_find_refusal(plan, block) for block in blocks)
    failures = [*map(_find_failure, blocks), *refused, *(_find_difference(*pair) for pair in pairs)]
    failed = next((failure for failure in failures if failure), None)
    if failed:
        return failed
    steps = plan.constants.proof_steps
    if all(baseline.losses == variant.losses for baseline, variant in pairs):
        return _proven(f"equal sample ids over {steps} steps", f"bit-equal losses over {steps} steps from one start")
    if kind_of(plan.hypothesis.changes) is KnobKind.S1:
        return _compare_within_tolerance(plan, pairs)
    if len(blocks) < len(specs):
        return NeedProof(
            tuple(specs[len(blocks) :]), "losses differ from one start: compare with the baseline's own seeds"
        )
    return _compare_with_seeds(plan, pairs)


def _find_failure(block: Evidence) -> Unproven | None:
    if block.fault is not None and block.culprit is Arm.VARIANT:
        sentence = f"{block.problem} in the proof, where the baseline ran"
        return _vetoed(VetoName.HARM, f"variant_{block.fault}", sentence)
    if block.problem:
        stopped = any(window.outcome is WindowOutcome.SIGNAL for window in block.windows)
        if stopped:
            return _inconclusive("interrupted", "the proof was stopped from outside")
        if block.culprit is Arm.VARIANT:
            return _inconclusive("variant_missing", f"{block.problem} in the proof, where the baseline reported")
        sentence = f"TrialCannotRun: {block.problem}; the baseline must run in a trial before anything is compared"
        return Unproven(VerdictWord.ERROR, "TrialCannotRun", sentence)
    return None


def _find_refusal(plan: Plan, block: Evidence) -> Unproven | None:
    """The program says that it cannot take the variant's value: there is nothing to compare."""
    told = {name for window in block.arm_windows(Arm.VARIANT) for name in window.ignored}
    refused = [str(change) for change in plan.hypothesis.changes if change.knob in told]
    if not refused:
        return None
    sentence = f"no gain: the program does not take {' and '.join(refused)}; its `knob` record says why"
    return Unproven(VerdictWord.NO_GAIN, "knob_ignored", sentence)


def _pairs(block: Evidence) -> list[tuple[Window, Window]]:
    """Windows of one start: A and B beside each other share seed and offset."""
    return [pair for position, pair in enumerate(pairwise(block.windows)) if position % 2 == 0]


def _find_difference(baseline: Window, variant: Window) -> Unproven | None:
    difference = _different_work(baseline, variant)
    if difference:
        return _vetoed(VetoName.WORK, "work", difference)
    if baseline.losses is None or variant.losses is None:
        return _inconclusive("no_losses", "losses were not reported, so equal work cannot be proven")
    return None


def _different_work(baseline: Window, variant: Window) -> str:
    """What differs between two runs of the same first steps, or nothing."""
    if baseline.steps != variant.steps or baseline.samples != variant.samples:
        return (
            f"the variant consumed {variant.samples} samples in {variant.steps} steps, "
            f"the baseline {baseline.samples} in {baseline.steps}"
        )
    if baseline.dtype != variant.dtype:
        first, second = (window.dtype or "a type that it does not tell" for window in (baseline, variant))
        return f"the variant multiplies matrices in {second}, the baseline in {first}"
    if baseline.sample_ids is None or baseline.sample_ids != variant.sample_ids:
        return (
            f"sample ids differ over the first {baseline.steps} steps: {baseline.sample_ids} and {variant.sample_ids}"
        )
    if baseline.shape != variant.shape or baseline.elements_per_sample != variant.elements_per_sample:
        return (
            f"batches differ in shape: {baseline.shape} with {baseline.elements_per_sample} elements a sample, "
            f"{variant.shape} with {variant.elements_per_sample}"
        )
    return ""


def _compare_within_tolerance(plan: Plan, pairs: Sequence[tuple[Window, Window]]) -> Proof:
    tolerance = max(plan.constants.loss_tolerance, TOLERANCE_OF_DTYPE.get(pairs[0][0].dtype or "", 0.0))
    means = _loss_means(pairs)
    if means is None:
        return _inconclusive("no_losses", "mean losses were not reported, so equal work cannot be proven")
    off = max(abs(b - a) / max(abs(a), 1e-12) for a, b in zip(*means, strict=True))
    if off > tolerance:
        return _vetoed(
            VetoName.QUALITY, "quality", f"mean loss differs by {off:.1e} of itself, {tolerance:.0e} is allowed"
        )
    steps = plan.constants.proof_steps
    return _proven(
        f"equal sample ids over {steps} steps", f"mean loss equal within {off:.1e} (allowed {tolerance:.0e})"
    )


def _compare_with_seeds(plan: Plan, pairs: Sequence[tuple[Window, Window]]) -> Proof:
    means = _loss_means(pairs)
    if means is None or len(means[0]) < MIN_SEEDS:
        seeds = 0 if means is None else len(means[0])
        return _inconclusive(
            "few_seeds", f"losses differ and only {seeds} baseline seeds are known, {MIN_SEEDS} are needed"
        )
    baseline, variant = means
    spread = estimate(baseline).se * math.sqrt(len(baseline))
    off = abs(mean(variant) - mean(baseline))
    allowed = max(SEED_SPREADS * spread, plan.constants.loss_tolerance * abs(mean(baseline)))
    sentence = (
        f"mean loss {mean(variant):.4g} against {mean(baseline):.4g} over {len(baseline)} seeds: "
        f"{off:.2g} apart, {allowed:.2g} is allowed"
    )
    if off > allowed:
        return _vetoed(VetoName.QUALITY, "quality", sentence)
    return _proven(f"equal sample ids over {plan.constants.proof_steps} steps", sentence)


def _loss_means(pairs: Sequence[tuple[Window, Window]]) -> tuple[list[float], list[float]] | None:
    baseline = [a.loss_mean for a, _ in pairs if a.loss_mean is not None]
    variant = [b.loss_mean for _, b in pairs if b.loss_mean is not None]
    return (baseline, variant) if len(baseline) == len(variant) == len(pairs) else None


def _proven(work: str, quality: str) -> Proven:
    return Proven(
        (
            Veto(name=VetoName.WORK, silent=True, sentence=work),
            Veto(name=VetoName.QUALITY, silent=True, sentence=quality),
        )
    )


def _vetoed(name: VetoName, reason: str, sentence: str) -> Unproven:
    veto = Veto(name=name, silent=False, sentence=sentence[:300])
    return Unproven(VerdictWord.VETOED, reason, f"vetoed by {name}: {sentence}", (veto,))


def _inconclusive(reason: str, sentence: str) -> Unproven:
    return Unproven(VerdictWord.INCONCLUSIVE, reason, sentence)

"""Does a win in force still stand?

After a win was applied, one block an interval asks the experiment's own question again: the plan's baseline against its
variant, with order, seeds and offsets drawn from the plan's seed. A cumulative sum of shortfalls (CUSUM, Page 1954)
takes the win back once its saving is gone; a win of which something is left stays. docs/judge.md says how often that is
wrong and when it notices; `benchmarks/judge/holdout.py` measures it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import expm1

from amdahl_loop.domain import vetoes
from amdahl_loop.domain.applying import chain_of
from amdahl_loop.domain.assessment import Case, open_case, percent
from amdahl_loop.domain.blocks import BlockSpec, Stage, holdout_block
from amdahl_loop.domain.evidence import Evidence, Sifted, read_block, sift, void_gate
from amdahl_loop.domain.experiments import Experiment, Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.stats import Estimate, estimate, mean, pooled_sd
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.verdicts import Verdict, Veto

BLOCKS_TO_FADE = 3
"""Bad blocks in a row that it takes at least: a neighbour's visit may spoil one or two, and goes away again."""

LEAST_BLOCK_SD = 0.01
"""An experiment on a quiet day underrates the noise of a month."""

LESS_ALPHA = 0.05
"""One-sided error of saying that less is left than was claimed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A win in force, and the application that put it there."""

    win: Experiment
    application: Application

    def next_block(self, now_s: float) -> BlockSpec | None:
        """The block that tests the win on, once it is due; None before, and when all have run."""
        records, constants = self.win.stage_records(Stage.HOLDOUT), self.win.plan.constants
        if constants.holdout_interval_s <= 0 or len(records) >= constants.holdout_blocks:
            return None
        since_s = records[-1].started_at_s if records else self.application.at_s
        is_early = abs(now_s - since_s) < interval_s(self.win)  # a clock that was set back is not waited for
        return None if is_early else holdout_block(self.win.plan.seed, len(records))

    def undo(self, knobs: Knobs) -> Knobs:
        """The values in force without this win."""
        before = {c.knob: c.before for c in self.win.plan.hypothesis.changes if c.before is not None}
        return knobs.with_values(before)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a win in force stands; effects and sums in log cost.

    `blocks` are those that count, `effect` their mean, None before the first. `shortfalls` is the cumulative sum after
    each block: the win is taken back once it has reached `alarm`, or when a guard has spoken (`broken`).
    """

    claim: float
    alarm: float
    blocks: int = 0
    effect: float | None = None
    shortfalls: tuple[float, ...] = ()
    broken: Veto | None = None

    @property
    def has_faded(self) -> bool:
        """Whether the win is to be taken back."""
        return self.broken is not None or any(shortfall >= self.alarm for shortfall in self.shortfalls)

    @property
    def sentence(self) -> str:
        """How it stands, in words."""
        if self.broken is not None:
            return f"vetoed by {self.broken.name} since it was applied: {self.broken.sentence}"
        if self.effect is None:
            return f"claims {percent(self.claim)}, no block has tested it since it was applied"
        found = f"saves {percent(self.effect)} over {self.blocks} blocks since it was applied"
        sums = f"it fell short by {percent(self.shortfalls[-1])}, {percent(self.alarm)} takes it back"
        return f"{'faded' if self.has_faded else 'stands'}: {found}, claims {percent(self.claim)}; {sums}"


def find_kept(experiments: Iterable[Experiment], applications: Sequence[Application], knobs: Knobs) -> tuple[Kept, ...]:
    """Wins in force, oldest first: applied since the owner last spoke, not rolled back, every knob still as proven.

    A win whose field its owner put back runs on as an overlay, and is tested as one in the spec is.
    A win whose knob a later one has moved on is not among them: the later one is tested in its place.
    """
    newest = {application.experiment: application for application in chain_of(applications)}
    return tuple(
        Kept(experiment, newest[experiment.name])
        for experiment in experiments
        if experiment.is_won
        and experiment.name in newest
        and newest[experiment.name].kind is not ApplicationKind.ROLLED_BACK
        and all(knobs.get(knob) == value for knob, value in experiment.plan.hypothesis.values().items())
    )


def interval_s(win: Experiment) -> float:
    """Seconds between two blocks: the profile's, or more where a block costs much of what the win saves.

    What a block holds is taken from the experiment's own checks, what the win saves from its verdict.
    """
    constants = win.plan.constants
    held_s = [record.held_device_s for record in win.stage_records(Stage.REFUTE)]
    saved_per_s = _devices(win.plan) * expm1(_verdict(win).effect or 0.0)
    if not held_s or saved_per_s <= 0:
        return constants.holdout_interval_s
    return max(constants.holdout_interval_s, mean(held_s) / (constants.holdout_cost_share * saved_per_s))


def assess(win: Experiment) -> Standing:
    """How a won experiment stands after its holdout blocks; without any, it stands."""
    verdict, constants = _verdict(win), win.plan.constants
    claim = verdict.effect or 0.0
    if not win.stage_records(Stage.HOLDOUT):
        return Standing(claim, constants.holdout_least_alarm)
    case = open_case(win)
    blocks = _read_holdout(case)
    reference = min(claim / 2, constants.floor)
    alarm = max(constants.holdout_least_alarm, constants.holdout_alarm * _block_sd(case) ** 2 / (2 * reference))
    effects = [block.effect for block in blocks.kept]
    return Standing(
        claim,
        alarm,
        blocks=len(effects),
        effect=mean(effects) if effects else None,
        shortfalls=_add_up(case, blocks.blocks, reference, alarm),
        broken=vetoes.check_block(blocks.blocks[-1]),  # an earlier one would have ended it
    )


def find_effect(win: Experiment) -> Estimate | None:
    """What a win is credited with: the mean of its checks, or of the holdout blocks where these show that less is left.

    None for a win whose error is not known.
    """
    verdict = _verdict(win)
    if verdict.effect is None or verdict.effect_se is None:
        return None
    claimed = Estimate(verdict.effect, verdict.effect_se, max(1, len(verdict.votes) - 1))
    if not win.stage_records(Stage.HOLDOUT):
        return claimed
    effects = [block.effect for block in _read_holdout(open_case(win)).kept]
    found = estimate(effects) if len(effects) >= BLOCKS_TO_FADE else claimed
    return found if found.upper(LESS_ALPHA) < claimed.mean else claimed


def _add_up(case: Case, blocks: Sequence[Evidence], reference: float, alarm: float) -> tuple[float, ...]:
    """Page's sum of what the blocks fall short of the reference by, never below 0, after each of them.

    A variant that crashed, hung or ran out of memory is the worst that a block can say. A block that only the variant
    spoilt counts with its effect; all other void blocks say nothing. No later block changes what was said before it.
    """
    total, worst, sums = 0.0, alarm / BLOCKS_TO_FADE, []
    gaps = [block.widest_gap for block in case.scored if block.is_measured]
    for block in blocks:
        gaps += [block.widest_gap] if block.is_measured else []
        gate = void_gate(gaps, case.plan.constants)
        if block.fault is not None and block.culprit is Arm.VARIANT:
            total += worst
        elif block.is_measured and block.gap(Arm.BASELINE) <= gate:
            total = max(0.0, total + min(worst, reference - block.effect))
        sums.append(total)
    return tuple(sums)


def _read_holdout(case: Case) -> Sifted:
    """The holdout blocks in order; their void gate knows how far arms usually disagree, from the whole experiment."""
    plan = case.plan
    records = case.experiment.stage_records(Stage.HOLDOUT)
    return sift((read_block(plan, record) for record in records), plan.constants, reference=case.scored)


def _block_sd(case: Case) -> float:
    """Standard deviation of a block as the experiment saw it: discovery, checks and null, each about its own mean."""
    constants = case.plan.constants
    discovery = sift(case.finished(Stage.DISCOVERY), constants)
    checks = tuple(block for check in range(constants.checks) for block in case.finished(Stage.REFUTE, check))
    groups: tuple[tuple[Evidence, ...], ...] = (discovery.blocks, checks, case.finished(Stage.NULL))
    valid = [sift(blocks, constants, reference=discovery.blocks).valid for blocks in groups]
    sd, df = pooled_sd([[block.effect for block in blocks] for blocks in valid])
    return max(LEAST_BLOCK_SD, sd) if df else LEAST_BLOCK_SD


def _devices(plan: Plan) -> int:
    return max(1, plan.variant.gpus_per_replica or 1) * plan.replicas


def _verdict(win: Experiment) -> Verdict:
    assert win.verdict is not None, f"{win.name} is open: only a closed experiment holds a win"
    return win.verdict

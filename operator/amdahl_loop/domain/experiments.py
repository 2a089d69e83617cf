"""What is one experiment: its hypothesis, its plan, its blocks and its verdict?

A plan is complete before the first block runs: every block that may be needed, with its order, seeds and data offsets,
is enumerated from one recorded seed. The same inputs give the same plan, letter for letter, which is what makes a
cold restart and a replay exact (design, sections 8 and 9).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from amdahl_loop.domain.knob_values import KnobName, Knobs, KnobValue
from amdahl_loop.domain.telemetry import Arm, BlockReport, Phase, Seconds
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.values import Frozen

JUDGE_VERSION = "2"


class Source(StrEnum):
    """Who proposed a hypothesis."""

    RULE = "rule"
    PRIOR = "prior"
    CLAUDE = "claude"


class Change(Frozen):
    """One knob from a value to another; `before` is None where the job left the choice to its script."""

    knob: KnobName
    before: int | bool | None
    after: int | bool

    def __str__(self) -> str:
        """Text for sentences: `dataloaderWorkers 0 -> 2`."""
        return f"{self.knob} {self.before} -> {self.after}"


class Hypothesis(Frozen):
    """Change these knobs, because of this phase, and expect this relative saving of cost."""

    changes: Annotated[tuple[Change, ...], Field(min_length=1, max_length=4)]
    phase: Phase
    expected_gain: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    source: Source
    rationale: Annotated[str, Field(max_length=500)]

    @property
    def knob(self) -> KnobName:
        """The knob that names the hypothesis: the first one changed."""
        return self.changes[0].knob

    @property
    def key(self) -> str:
        """The verdict key's part that is the hypothesis's own: every change, in order."""
        return ";".join(f"{change.knob}:{change.before}>{change.after}" for change in self.changes)

    def values(self) -> dict[KnobName, KnobValue]:
        """The variant's values of the changed knobs."""
        return {change.knob: change.after for change in self.changes}


class Stage(StrEnum):
    """What a block is for."""

    PROOF = "proof"
    DISCOVERY = "discovery"
    REFUTE = "refute"
    SOAK = "soak"
    NULL = "null"
    HOLDOUT = "holdout"
    """After the verdict: does the win in force still stand? No part of the plan's blocks, and none of the verdict."""


class Constants(Frozen):
    """Everything the judge may use, per profile; written into the plan before the first block."""

    judge_version: Annotated[str, Field(max_length=16)] = JUDGE_VERSION
    """Version of the judge that these constants were made for."""
    profile: ProfileName
    """Profile that the constants come from."""
    launch_warmup_s: Seconds
    """Seconds after a launch that are not measured."""
    switch_warmup_s: Seconds
    """Seconds after a live switch of knobs that are not measured."""
    warmup_steps: int
    """Optimizer steps after a launch or switch that are not measured, at least."""
    window_s: Seconds
    """Seconds that one window measures, at least."""
    min_steps: int
    """Optimizer steps that one window measures, at least."""
    proof_steps: int
    """Optimizer steps over which both arms must do the same work, from one start."""
    looks: Annotated[tuple[int, ...], Field(min_length=1, max_length=16)] = (4, 6, 8, 12)
    """Counts of valid blocks at which discovery is looked at."""
    alphas: Annotated[tuple[float, ...], Field(min_length=1, max_length=16)] = (0.0056, 0.0069, 0.0097, 0.0278)
    """One-sided error that each look may spend."""
    futility_alpha: float = 0.10
    """One-sided level of the upper bound below which discovery ends without a gain."""
    floor: float = 0.03
    """Smallest effect that counts, as a difference of log cost."""
    noise_floor_factor: float = 1.5
    """The floor is at least this many times the standard deviation of blocks."""
    max_block_sd: float = 0.10
    """Standard deviation of blocks above which no experiment is worth its cost."""
    void_gate: float = 0.04
    """Disagreement of an arm with itself that voids a block, as a difference of log cost, at least."""
    void_factor: float = 3.0
    """The gate is at least this many times the usual disagreement."""
    spare_share: float = 0.5
    """Spare blocks that the plan holds for void ones, as a share of those needed."""
    steady_alpha: float = 0.13
    """Error of the test that asks whether the variant spoils more blocks than the baseline."""
    with_void_share: float = 2 / 3
    """Share of the floor that the mean with void blocks counted must reach."""
    checks: int
    """Refute checks; more than half must agree."""
    blocks_per_check: int
    """Valid blocks of each refute check."""
    check_spacing_s: Seconds = 0.0
    """Seconds that a check keeps from all other evidence, so that it sees another time of day."""
    agree_share: float = 0.5
    """Share of the claim, and of the floor, that a check's effect must reach to agree."""
    null_blocks: int
    """Blocks in which both arms run the baseline, at most."""
    soak_blocks: int
    """Blocks after a long warm-up, at most."""
    soak_warmup_s: Seconds
    """Seconds that a soak block's windows warm up."""
    soak_window_s: Seconds
    """Seconds that a soak block's windows measure."""
    soak_share: float = 0.4
    """Share of the claim that must be left after the long warm-up."""
    transfer_alpha: float = 0.005
    """One-sided error of the bound that a win carried over from another job must pass."""
    holdout_interval_s: Seconds = 0.0
    """Seconds between two blocks that test an applied win on, at least; 0: it is not tested on."""
    holdout_blocks: int = 0
    """Blocks that test an applied win on, at most."""
    holdout_cost_share: float = 0.1
    """Share of what a win saves that testing it on may cost: small wins are tested less often."""
    holdout_alarm: float = 12.0
    """Odds against a win at which it counts as gone, as a natural logarithm."""
    holdout_least_alarm: float = 0.04
    """Sum of shortfalls below which no win counts as gone, as a difference of log cost."""
    loss_tolerance: float = 1e-5
    """Relative difference of losses that rounding may cause; 0 where the arms must compute the same."""


class BlockSpec(Frozen):
    """One block of the plan: four windows (or the proof's), their arms, and what is the same for both arms.

    `order` holds a letter a window: A or B is the arm that is *run*. `labels` differ from it in null blocks only.
    """

    stage: Stage
    check: int = 0
    index: int
    order: Annotated[str, Field(pattern=r"^[AB]{2,4}$")]
    labels: Annotated[str, Field(pattern=r"^[AB]{2,4}$")]
    seeds: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def name(self) -> str:
        """Short name, unique within the experiment."""
        return (
            f"{self.stage.value[0]}{self.check}-{self.index}"
            if self.stage is Stage.REFUTE
            else f"{self.stage.value[0]}{self.index}"
        )


class Plan(Frozen):
    """The immutable intent of one experiment."""

    name: str
    job: str
    job_uid: str
    fingerprint: str
    family: str
    attempt: int = 0
    hypothesis: Hypothesis
    baseline: Knobs
    variant: Knobs
    objective: Objective
    max_slowdown: float
    constants: Constants
    live: bool
    replicas: int = 1
    skip_discovery: bool = False
    interruption_interval_s: Seconds
    interruptions_seen: int = 0
    exposure_s: Seconds = 0.0
    max_lost_work_s: Seconds
    restart_s: Seconds = 0.0
    device_hours_ahead: Seconds
    baseline_shares_ppk: tuple[int, ...] = ()
    mem_limit_mib: int | None = None
    seed: int
    blocks: tuple[BlockSpec, ...]

    @property
    def hash(self) -> str:
        """Content hash, 16 hex digits: a block is adopted only under the plan that launched it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def run_name(self, spec: BlockSpec, attempt: int = 0) -> str:
        """Deterministic name of a block's run: `worker_run_id`, known before anything is launched."""
        return f"{self.name}-{spec.name}" + (f"-t{attempt}" if attempt else "")

    def stage_blocks(self, stage: Stage, check: int | None = None) -> tuple[BlockSpec, ...]:
        """The planned blocks of a stage (of one check of it), in order."""
        return tuple(spec for spec in self.blocks if spec.stage is stage and (check is None or spec.check == check))


class BlockRecord(Frozen):
    """A finished block: what was planned, where and when it ran, what it reported. Never changed once written."""

    spec: BlockSpec
    node: str = ""
    started_at_s: float
    held_device_s: Seconds
    report: BlockReport | None
    failure: Annotated[str, Field(max_length=200)] = ""


class Loss(Frozen):
    """A run that was stopped before its end: what it had held is charged, though it brought no evidence."""

    run: str
    """Name of the run."""
    started_at_s: float
    """When it began, in seconds since the epoch."""
    held_device_s: Seconds
    """Device-seconds that it had held; 0 where it had not begun."""


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


class Experiment(Frozen):
    """A plan, the blocks that have finished, what was stopped in between, and the verdict once there is one."""

    plan: Plan
    blocks: tuple[BlockRecord, ...] = ()
    losses: tuple[Loss, ...] = ()
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.plan.name

    @property
    def held_device_s(self) -> float:
        """Device-seconds that the experiment has held: what the budget and the bank are charged."""
        recorded_s = sum(block.held_device_s for block in self.blocks)
        return recorded_s + sum(loss.held_device_s for loss in self.losses)

    def stage_records(self, stage: Stage, check: int | None = None) -> tuple[BlockRecord, ...]:
        """Finished blocks of a stage (of one check of it), in plan order."""
        found = [r for r in self.blocks if r.spec.stage is stage and (check is None or r.spec.check == check)]
        return tuple(sorted(found, key=lambda record: (record.spec.check, record.spec.index)))

    def with_block(self, record: BlockRecord) -> "Experiment":
        """The experiment with one more finished block."""
        return self.model_copy(update={"blocks": (*self.blocks, record)})

    def with_loss(self, loss: Loss) -> "Experiment":
        """The experiment with one more run that was stopped."""
        return self.model_copy(update={"losses": (*self.losses, loss)})

    def with_verdict(self, verdict: Verdict) -> "Experiment":
        """The experiment, closed."""
        return self.model_copy(update={"verdict": verdict})


def find_owner(run: str, experiments: Iterable[Experiment]) -> Experiment | None:
    """The experiment that must pay for a stopped run; None for observations, and for blocks that are recorded."""
    owners = [e for e in experiments if run.startswith(f"{e.name}-")]
    owner = max(owners, key=lambda experiment: len(experiment.name), default=None)
    if owner is None or any(owner.plan.run_name(record.spec) == run for record in owner.blocks):
        return None
    return owner


def hash_text(*parts: str) -> str:
    """SHA-256 in hex of the parts, unambiguously joined."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def name_experiment(job: str, job_uid: str, fingerprint: str, hypothesis: Hypothesis, attempt: int) -> str:
    """Deterministic name, at most 52 characters so that block suffixes fit into 63."""
    digest = hash_text(job_uid, fingerprint, hypothesis.key, str(attempt))[:10]
    return f"{job[:41].rstrip('-')}-{digest}"


def enumerate_blocks(seed: int, constants: Constants, skip_discovery: bool = False) -> tuple[BlockSpec, ...]:
    """Every block that the experiment may need, from one seed: coins, seeds and offsets are fixed before anything runs.

    Discovery and checks hold spare blocks for those that are voided. Check i reverses the coin of check i-1, so that a
    majority cannot share one order. Offsets are spread by hashing, so no two windows of a plan share their first page.
    """
    coins = _Coins(seed)
    spare = 1 + constants.spare_share
    discovery = 0 if skip_discovery else round(constants.looks[-1] * spare)
    per_check = constants.blocks_per_check + max(1, round(constants.blocks_per_check * constants.spare_share))
    blocks = [coins.proof_block(0, "AB", same_seed=True), coins.proof_block(1, "ABAB", same_seed=False)]
    blocks += [coins.block(Stage.DISCOVERY, 0, index) for index in range(discovery)]
    for check in range(constants.checks):
        blocks += [
            coins.block(Stage.REFUTE, check, index, reverse=bool((check + index) % 2)) for index in range(per_check)
        ]
    blocks += [coins.block(Stage.SOAK, 0, index) for index in range(constants.soak_blocks)]
    blocks += [coins.null_block(index) for index in range(constants.null_blocks)]
    return tuple(blocks)


def holdout_block(plan: Plan, index: int) -> BlockSpec:
    """Block `index` that tests an applied win on: from the plan's seed, too, but drawn by its own number.

    Nobody knows at the start how many there will be, so they are no part of the plan's blocks.
    """
    return _Coins(int(hash_text(str(plan.seed), "holdout", str(index))[:12], 16)).block(Stage.HOLDOUT, 0, index)


class _Coins:
    """Reproducible draws by hashing a counter: independent of any library's generator and of its version."""

    def __init__(self, seed: int) -> None:
        self._draws = self._stream(seed)
        self._first = next(self._draws) & 1

    @staticmethod
    def _stream(seed: int) -> Iterator[int]:
        counter = 0
        while True:
            yield int.from_bytes(hashlib.sha256(f"{seed}:{counter}".encode()).digest()[:8], "big")
            counter += 1

    def _windows(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        seeds = tuple(next(self._draws) % 2**31 for _ in range(count))
        offsets = tuple(next(self._draws) % 2**31 for _ in range(count))
        return seeds, offsets

    def block(self, stage: Stage, check: int, index: int, reverse: bool | None = None) -> BlockSpec:
        """ABBA or BAAB: by a fresh coin, or alternating from the plan's first coin where `reverse` says so."""
        coin = (next(self._draws) & 1) if reverse is None else self._first ^ int(reverse)
        order = "BAAB" if coin else "ABBA"
        seeds, offsets = self._windows(4)
        return BlockSpec(stage=stage, check=check, index=index, order=order, labels=order, seeds=seeds, offsets=offsets)

    def null_block(self, index: int) -> BlockSpec:
        """Both arms run the baseline; only the labels differ, so whatever is found is the harness."""
        block = self.block(Stage.NULL, 0, index)
        return block.model_copy(update={"order": "AAAA"})

    def proof_block(self, index: int, order: str, same_seed: bool) -> BlockSpec:
        """Windows from one start: pairs of A and B share seed and offset 0."""
        first = next(self._draws) % 2**31
        seeds = [first if same_seed else (first + position // 2 + 1) % 2**31 for position in range(len(order))]
        return BlockSpec(
            stage=Stage.PROOF, index=index, order=order, labels=order, seeds=tuple(seeds), offsets=(0,) * len(order)
        )


Judged = Literal["windows", "cadence"]


def judged_by(hypothesis: Hypothesis) -> Judged:
    """Cadence knobs are judged by expected cost per useful sample, never by raw speed."""
    cadence = {KnobName.CHECKPOINT_EVERY_STEPS, KnobName.ASYNC_CHECKPOINT}
    return "cadence" if any(change.knob in cadence for change in hypothesis.changes) else "windows"


def arm_knobs(plan: Plan, arm: Arm) -> Knobs:
    """The knob values that an arm runs with."""
    return plan.baseline if arm is Arm.BASELINE else plan.variant


def knob_environment(values: Mapping[KnobName, KnobValue]) -> dict[str, str]:
    """Environment variables of knob values: `AMDAHL_DATALOADER_WORKERS=2`, booleans as 0 and 1."""
    return {environment_name(knob): str(int(value)) for knob, value in values.items()}


def environment_name(knob: KnobName) -> str:
    """`dataloaderWorkers` becomes `AMDAHL_DATALOADER_WORKERS`."""
    return "AMDAHL_" + "".join("_" + letter if letter.isupper() else letter.upper() for letter in knob.value)

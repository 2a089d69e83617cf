"""What may the judge use: which lengths, levels, bars and counts, all of them written down before the first block?

Their values per profile are the table in `profiles.py`.
"""

from typing import Annotated

from pydantic import Field

from amdahl_loop.domain.telemetry import Seconds
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.values import Frozen

JUDGE_VERSION = "3"


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
    """Standard deviation of blocks above which no experiment is worth its cost, but for one whose gain stands out."""
    noisy_margin: float = 0.0
    """A gain stands out above that where the lower bound of a look is so many floors above 0; 0: none ever does."""
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

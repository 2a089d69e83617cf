"""What every profile must hold, whatever its numbers are tuned to."""

import pytest

from amdahl_loop.domain.blocks import Stage, enumerate_blocks
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.tuning import ProfileName

ALL = pytest.mark.parametrize("constants", PROFILES.values(), ids=[name.value for name in PROFILES])


def test_every_profile_is_there() -> None:
    """Each name has one row, under its own name."""
    assert set(PROFILES) == set(ProfileName)
    assert all(constants.profile is name for name, constants in PROFILES.items())


@ALL
def test_alpha_is_spent_once(constants: Constants) -> None:
    """One alpha a look, looks rise, and all alphas together are 5 %."""
    assert len(constants.alphas) == len(constants.looks)
    assert list(constants.looks) == sorted(set(constants.looks))
    assert sum(constants.alphas) == pytest.approx(0.05, abs=1e-4)


@ALL
def test_a_majority_exists(constants: Constants) -> None:
    """An odd number of checks, three at least."""
    assert constants.checks >= 3
    assert constants.checks % 2 == 1


@ALL
def test_the_soak_outlasts_a_window(constants: Constants) -> None:
    """The soak's warm-up ends after a discovery window has ended, or it would look at the same time again."""
    assert constants.soak_warmup_s > constants.launch_warmup_s + constants.window_s
    assert constants.soak_window_s >= constants.window_s


@ALL
def test_the_plan_holds_enough_blocks(constants: Constants) -> None:
    """Discovery and each check have spare blocks; soak and null have what their limits say."""
    blocks = enumerate_blocks(3, constants)
    counts = {stage: sum(spec.stage is stage for spec in blocks) for stage in Stage}
    assert counts[Stage.DISCOVERY] > constants.looks[-1]
    assert counts[Stage.REFUTE] > constants.checks * constants.blocks_per_check
    assert counts[Stage.SOAK] == constants.soak_blocks
    assert counts[Stage.NULL] == constants.null_blocks


def test_quick_is_quick() -> None:
    """A live win at the least number of blocks takes under three minutes of windows."""
    quick = PROFILES[ProfileName.QUICK]
    block_s = quick.launch_warmup_s + 3 * quick.switch_warmup_s + 4 * quick.window_s
    soak_s = 4 * (quick.soak_warmup_s + quick.soak_window_s)
    assert (quick.looks[0] + quick.checks + 2) * block_s + soak_s < 180

"""How much evidence does each profile buy?

One table: window lengths, looks, refute checks, floor. The operating characteristics of each row are measured by
`benchmarks/judge` and printed in docs/judge.md; a change here is a new `JUDGE_VERSION`.

`soak_blocks` and `null_blocks` are upper limits: both stages stop as soon as their outcome is clear, so a large win
spends one or two blocks on each and a small one spends them all.

`check_spacing_s` spreads the checks over the day (five checks, four hours apart, the last one twenty hours after
discovery): a win that exists half the day passes checks that follow discovery at once. Waiting holds no device.

`holdout_interval_s` tests an applied win on once a day, for a month of days: 0.7 % of a day's device-hours (`thorough`:
1.4 %), and never more than a tenth of what the win saves. `quick` is for one machine whose loop ends: it tests nothing
on. The alarm is set for one false one in ten thousand blocks of a 5 % win (`benchmarks/judge/holdout.py`).
"""

from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.tuning import ProfileName

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

PROFILES: dict[ProfileName, Constants] = {
    ProfileName.QUICK: Constants(
        profile=ProfileName.QUICK,
        launch_warmup_s=1.5,
        switch_warmup_s=0.7,
        warmup_steps=3,
        window_s=2.5,
        min_steps=10,
        proof_steps=8,
        checks=3,
        blocks_per_check=1,
        null_blocks=6,
        soak_blocks=2,
        soak_warmup_s=6.0,
        soak_window_s=3.0,
        noisy_margin=1.0,
    ),
    ProfileName.STANDARD: Constants(
        profile=ProfileName.STANDARD,
        launch_warmup_s=30.0,
        switch_warmup_s=5.0,
        warmup_steps=5,
        window_s=120.0,
        min_steps=20,
        proof_steps=16,
        checks=5,
        blocks_per_check=1,
        check_spacing_s=4 * HOUR_S,
        null_blocks=16,
        soak_blocks=6,
        soak_warmup_s=600.0,
        soak_window_s=120.0,
        noisy_margin=1.0,
        holdout_interval_s=DAY_S,
        holdout_blocks=30,
    ),
    ProfileName.THOROUGH: Constants(
        profile=ProfileName.THOROUGH,
        launch_warmup_s=60.0,
        switch_warmup_s=20.0,
        warmup_steps=10,
        window_s=240.0,
        min_steps=40,
        proof_steps=32,
        checks=5,
        blocks_per_check=2,
        check_spacing_s=4 * HOUR_S,
        null_blocks=16,
        soak_blocks=4,
        soak_warmup_s=900.0,
        soak_window_s=480.0,
        noisy_margin=1.0,
        holdout_interval_s=DAY_S,
        holdout_blocks=30,
    ),
}

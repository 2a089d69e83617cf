"""How often is a sound win taken back, and how soon is one that is gone?

Wins experiments on modelled machines against the production judge, then tests each one on, a block a day, against the
production rule (`domain/keep.py`): each block at another time of day, on another node unless `--one-node`. A change of
the true effect is added to the blocks of the same series, so that every row sees the same noise. Takes about five
minutes on one core: `python benchmarks/judge/holdout.py --wins 400`.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from noise import DAY_S, DEFAULT, HARSH, QUIET, Noise, Place
from run import upper_bound
from world import PLANS, Setting, Variant, World, make_plan

from amdahl_loop.domain import judge, keep
from amdahl_loop.domain.blocks import Stage, holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Experiment
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import Arm, BlockReport, Window
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import VerdictWord

BLOCKS = 60
"""Blocks of a series: twice what a profile runs, so that a late alarm is seen as late and not as none."""

STANDARD = PROFILES[ProfileName.STANDARD]
SETTINGS: dict[str, tuple[Noise, float]] = {
    "default noise, 5 %": (DEFAULT, 0.05),
    "default noise, 10 %": (DEFAULT, 0.10),
    "default noise, 30 %": (DEFAULT, 0.30),
    "quiet noise, 5 %": (QUIET, 0.05),
    "harsh noise, 10 %": (HARSH, 0.10),
}
FATES = ("stays", "half is left", "gone", "5 % worse")


@dataclass(frozen=True)
class Row:
    """What became of the wins of one setting under one fate; `blocks` counts those that ran until each alarm."""

    setting: str
    fate: str
    wins: int
    blocks: int
    alarms: int
    per_100_blocks: float
    per_100_blocks_upper: float
    within_planned: float
    median_blocks: float | None
    p95_blocks: float | None


def win_one(rng: np.random.Generator, setting: Setting, gain: float) -> tuple[World, Experiment]:
    """An experiment that won, with its machines."""
    while True:
        plan = make_plan(setting.constants, setting.live, int(rng.integers(PLANS)))
        world, experiment = World(rng, setting, Variant(gain), plan), Experiment(plan=plan)
        while not isinstance(said := judge.assess(experiment), judge.Closed):
            experiment = experiment.with_block(world.run(experiment, said.specs[0]))
        if said.verdict.word is VerdictWord.WON:
            return world, experiment.with_verdict(said.verdict)


def test_on(rng: np.random.Generator, world: World, win: Experiment, one_node: bool) -> Experiment:
    """The same win with `BLOCKS` holdout blocks, while its effect stays."""
    plan, home = win.plan, world.places["home"]
    for index in range(BLOCKS):
        spec, time_of_day_s = holdout_block(plan.seed, index), rng.uniform(0, DAY_S)
        place = home.later(time_of_day_s) if one_node else Place(rng, world.setting.noise, time_of_day_s, "elsewhere")
        report = BlockReport(run=plan.run_name(spec), state="done", windows=world.run_windows(spec, place))
        at_s = DAY_S * (index + 2)
        win = win.with_block(BlockRecord(spec=spec, node=place.node, started_at_s=at_s, held_device_s=0, report=report))
    return win


def change_effect(win: Experiment, lost: float) -> Experiment:
    """The same blocks, had the variant lost this much of its effect (log cost)."""
    return win.model_copy(update={"blocks": tuple(_slow_down(record, lost) for record in win.blocks)})


def _slow_down(record: BlockRecord, lost: float) -> BlockRecord:
    if record.spec.stage is not Stage.HOLDOUT or record.report is None:
        return record
    windows = tuple(_stretch(window, lost) for window in record.report.windows)
    return record.model_copy(update={"report": record.report.model_copy(update={"windows": windows})})


def _stretch(window: Window, lost: float) -> Window:
    if window.arm is Arm.BASELINE:
        return window
    return window.model_copy(update={"wall_s": window.wall_s * math.exp(lost)})


def find_alarm(win: Experiment) -> int | None:
    """After which holdout block the win was taken back; None where it never was."""
    standing = keep.assess(win)
    assert standing.broken is None, "the model lets nothing but time differ"
    late = (count for count, sum_ in enumerate(standing.shortfalls, start=1) if sum_ >= standing.alarm)
    return next(late, None)


def lost_effect(fate: str, gain: float) -> float:
    """What a fate takes of an effect in log cost."""
    left = {"stays": gain, "half is left": gain / 2, "gone": 0.0, "5 % worse": -0.05}[fate]
    return math.log1p(-left) - math.log1p(-gain)


def tell(setting: str, fate: str, wins: Sequence[Experiment], gain: float) -> Row:
    """One row."""
    alarms = [find_alarm(change_effect(win, lost_effect(fate, gain))) for win in wins]
    found = [alarm for alarm in alarms if alarm is not None]
    blocks = sum(alarm or BLOCKS for alarm in alarms)
    late = sorted(alarm or math.inf for alarm in alarms)
    row = Row(
        setting=setting,
        fate=fate,
        wins=len(wins),
        blocks=blocks,
        alarms=len(found),
        per_100_blocks=100 * len(found) / blocks,
        per_100_blocks_upper=100 * upper_bound(len(found), blocks),
        within_planned=sum(alarm <= STANDARD.holdout_blocks for alarm in found) / len(wins),
        median_blocks=_finite(late[len(late) // 2]),
        p95_blocks=_finite(late[math.ceil(0.95 * len(late)) - 1]),
    )
    planned, rate = (
        STANDARD.holdout_blocks,
        f"{row.per_100_blocks:.3f} per 100 blocks (<= {row.per_100_blocks_upper:.3f})",
    )
    line = (
        f"{row.setting:20s} | {row.fate:12s} | taken back {row.alarms}/{row.wins}, within {planned} blocks "
        f"{row.within_planned:.1%} | {rate} | median {row.median_blocks} blocks, 95 % within {row.p95_blocks}"
    )
    print(line, file=sys.stderr, flush=True)
    return row


def _finite(blocks: float) -> float | None:
    return None if math.isinf(blocks) else blocks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wins", type=int, default=400, help="wins in each setting (400)")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--one-node", action="store_true", help="every block on the node of the experiment")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON on standard output")
    arguments = parser.parse_args()
    start_s, rows = time.monotonic(), []
    for name, (noise, gain) in SETTINGS.items():
        if arguments.only in name:
            rng, setting = np.random.default_rng(7), Setting(noise, STANDARD, other_nodes=not arguments.one_node)
            pairs = [win_one(rng, setting, gain) for _ in range(arguments.wins)]
            wins = [test_on(rng, world, win, arguments.one_node) for world, win in pairs]
            rows += [tell(name, fate, wins, gain) for fate in FATES]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
    print(f"{time.monotonic() - start_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

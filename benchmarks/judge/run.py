"""How often is the judge wrong, how often does it find a true gain, and what does that cost?

Plays thousands of experiments on modelled machines against the production judge and prints its operating
characteristics per profile. `--reps` is the number of null trials in the table's first row; the other rows scale with
it. The full mode takes about ten minutes on one core: `python benchmarks/judge/run.py --reps 20000`.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from noise import DEFAULT, HARSH, LIVE, QUIET, node_lottery
from scipy.stats import beta
from world import Outcome, Setting, Variant, run_experiment

from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import VerdictWord

FRESH = Setting(DEFAULT, PROFILES[ProfileName.STANDARD])
SETTINGS = {
    "standard, default noise": FRESH,
    "standard, quiet noise": Setting(QUIET, PROFILES[ProfileName.STANDARD]),
    "standard, harsh noise": Setting(HARSH, PROFILES[ProfileName.STANDARD]),
    "thorough, default noise": Setting(DEFAULT, PROFILES[ProfileName.THOROUGH]),
    "quick, live on two cores": Setting(LIVE, PROFILES[ProfileName.QUICK], live=True, other_nodes=False, horizon_s=5.0),
}
GAINS = (0.02, 0.05, 0.10, 0.20, 0.30)
DECEITS = ("node", "horizon", "day", "shard", "harness", "flaky")


@dataclass(frozen=True)
class Row:
    """Operating characteristics of one variant in one setting; rates are shares of trials."""

    setting: str
    variant: str
    trials: int
    won: int
    won_upper: float
    voted: int
    claimed_over_true: float | None
    blocks: float
    hours: float
    hours_if_won: float | None
    ends: dict[str, int]


def measure(name: str, setting: Setting, variant: Variant, trials: int, seed: int) -> Row:
    """Run `trials` experiments of one variant."""
    rng = np.random.default_rng(seed)
    outcomes = [run_experiment(rng, setting, variant) for _ in range(trials)]
    wins = [outcome for outcome in outcomes if outcome.verdict.word is VerdictWord.WON]
    claims = [-math.expm1(-(win.verdict.effect or 0.0)) for win in wins]
    ends = Counter(f"{outcome.verdict.word}({outcome.verdict.reason})" for outcome in outcomes)
    return Row(
        setting=name,
        variant=variant.kind if variant.kind != "plain" else f"true {variant.gain:.0%}",
        trials=trials,
        won=len(wins),
        won_upper=upper_bound(len(wins), trials),
        voted=sum(_is_voted(outcome, setting) for outcome in outcomes),
        claimed_over_true=sum(claims) / len(claims) / variant.gain if claims and variant.gain else None,
        blocks=float(np.mean([outcome.blocks for outcome in outcomes])),
        hours=float(np.mean([outcome.held_s for outcome in outcomes])) / 3600,
        hours_if_won=float(np.mean([win.held_s for win in wins])) / 3600 if wins else None,
        ends=dict(ends.most_common(5)),
    )


def upper_bound(hits: int, trials: int) -> float:
    """Exact one-sided 95 % upper bound of a share (Clopper and Pearson)."""
    return 1.0 if hits == trials else float(beta.ppf(0.95, hits + 1, trials - hits))


def _is_voted(outcome: Outcome, setting: Setting) -> bool:
    """True where the checks alone would have made it a win: what the vetoes then removed is the difference."""
    votes = outcome.verdict.votes
    return len(votes) == setting.constants.checks and 2 * sum(vote.agree for vote in votes) > len(votes)


def measure_all(reps: int, only: str, deceits: tuple[str, ...]) -> list[Row]:
    """Every row of every chosen setting; the main settings' null gets `reps` trials, the others a share of them."""
    rows = []
    for name, setting in SETTINGS.items():
        if only not in name:
            continue
        main = name in ("standard, default noise", "quick, live on two cores")
        rows.append(show(measure(name, setting, Variant(), max(20, reps if main else reps // 10), 1)))
        share = 25 if main else 100
        gains = [measure_one(name, setting, Variant(gain), reps // share, 2) for gain in GAINS]
        rows.extend(gains)
        if main:
            for kind in deceits:
                where = node_setting(setting) if kind == "node" else setting
                rows.append(measure_one(name, where, Variant(0.0, kind), reps // 50, 3))
            if setting.other_nodes and "day" in deceits:
                one_node = Setting(setting.noise, setting.constants, other_nodes=False)
                rows.append(measure_one(f"{name}, one node", one_node, Variant(0.0, "day"), reps // 50, 3))
    return rows


def measure_one(name: str, setting: Setting, variant: Variant, trials: int, seed: int) -> Row:
    """One row, shown as soon as it is there."""
    return show(measure(name, setting, variant, max(20, trials), seed))


def node_setting(setting: Setting) -> Setting:
    """The node lottery: no gain on average, a gain or a loss of a few percent on each node."""
    return Setting(node_lottery(setting.noise), setting.constants, setting.live, setting.other_nodes, setting.horizon_s)


def show(row: Row) -> Row:
    """Print one row."""
    ratio = "" if row.claimed_over_true is None else f" claimed/true {row.claimed_over_true:.2f}"
    cost = f"{row.blocks:5.1f} blocks {row.hours:6.3f} h"
    won_cost = "" if row.hours_if_won is None else f" ({row.hours_if_won:.2f} h if won)"
    line = (
        f"{row.setting:26s} | {row.variant:9s} | won {row.won}/{row.trials} = {row.won / row.trials:.2%} "
        f"(<= {row.won_upper:.2%}), by votes alone {row.voted / row.trials:.2%} |{ratio} {cost}{won_cost} | {row.ends}"
    )
    print(line, file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=20_000, help="null trials of the main settings (20000)")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON on standard output")
    parser.add_argument("--deceits", default=",".join(DECEITS), help="false wins to play, with commas (all)")
    arguments = parser.parse_args()
    start_s = time.monotonic()
    rows = measure_all(arguments.reps, arguments.only, tuple(arguments.deceits.split(",")))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
    print(f"{time.monotonic() - start_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

"""How often does the judge see a win where nothing was changed? Records real unchanged training, and judges it.

    python benchmarks/null/run.py [--blocks 330] [--resume] [--judge-only] [--data FILE]

Recording takes about a quarter of a minute a block on an otherwise quiet machine, and can be cut short and resumed.
Recorded blocks are dealt out in the order in which they ran: an experiment is opened, the production judge asks for
blocks, each gets the next one on record, until it closes; then the next experiment is opened with the next block. No
block is used twice. Both arms of a recorded block are equal, so that labels are free: each experiment labels windows
by the coins of its own plan, whose seed is fixed by its number. Exit code 0 when there is no win among 60 or more.
"""

import argparse
import sys
from collections import Counter
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import make_plan, read_breakdown, read_job, read_lines, read_report, record
from scipy.stats import beta  # type: ignore[import-untyped]  # scipy ships no types

from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.evidence import read_block
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.judge import Closed, assess
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.verdicts import Verdict, VerdictWord

DATA = Path(__file__).resolve().parent / "data" / "live.jsonl"
ENOUGH_SETS = 60
CONFIDENCE = 0.95


def main() -> int:
    """Record what is missing, judge what is there, print the bound."""
    options = read_arguments()
    if not options.judge_only:
        if options.data.exists() and not options.resume:
            sys.exit(f"{options.data} is there already; give --resume to go on with it, --judge-only, or move it away")
        record(options.data, options.blocks)
    verdicts, used, left = judge_sets(read_lines(options.data))
    print(describe_blocks(read_lines(options.data)))
    print(report(verdicts, used, left))
    wins = sum(verdict.word is VerdictWord.WON for verdict in verdicts)
    return 0 if wins == 0 and len(verdicts) >= ENOUGH_SETS else 1


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=330, help="blocks that are to be on record in the end")
    parser.add_argument("--resume", action="store_true", help="go on with a recording that was cut short")
    parser.add_argument("--judge-only", action="store_true", help="record nothing")
    parser.add_argument("--data", type=Path, default=DATA, help="default: benchmarks/null/data/live.jsonl")
    return parser.parse_args()


def judge_sets(lines: list[dict[str, Any]]) -> tuple[list[Verdict], int, int]:
    """Verdicts of disjoint experiments over the record, the blocks they used, and those of the last, unfinished one."""
    _, job = read_job()
    breakdown = read_breakdown(lines[0], job)
    proof = next(line for line in lines if line["kind"] == "proof")
    blocks = [line for line in lines if line["kind"] == "block"]
    verdicts: list[Verdict] = []
    at = 0
    while True:
        plan = make_plan(job, breakdown, "judging", len(verdicts))
        closed = judge_set(plan, proof, blocks[at:])
        if closed is None:
            return verdicts, at, len(blocks) - at
        verdict, used = closed
        if used == 0:
            raise ValueError(f"closed before a single block: {verdict.sentence}")
        verdicts.append(verdict)
        at += used


def describe_blocks(lines: list[dict[str, Any]]) -> str:
    """How far equal arms were apart, block by block, under the coins of one plan."""
    _, job = read_job()
    plan = make_plan(job, read_breakdown(lines[0], job), "recording", 0)
    blocks = [line for line in lines if line["kind"] == "block"]
    coins = cycle(plan.stage_blocks(Stage.DISCOVERY))
    seen = [read_block(plan, relabel(line, plan, spec)) for line, spec in zip(blocks, coins, strict=False)]
    effects = [block.effect for block in seen if block.is_measured]
    hours = (blocks[-1]["started_at_s"] - blocks[0]["started_at_s"]) / 3600
    return (
        f"{len(blocks)} blocks in {hours:.1f} h, {len(effects)} of them measured whole: "
        f"mean difference {100 * mean(effects):+.2f} %, standard deviation {100 * stdev(effects):.2f} % a block."
    )


def judge_set(plan: Plan, proof: dict[str, Any], blocks: list[dict[str, Any]]) -> tuple[Verdict, int] | None:
    """One experiment on the next blocks: its verdict and how many it took; None where the record ends before it."""
    experiment, used = Experiment(plan=plan), 0
    while True:
        assessment = assess(experiment)
        if isinstance(assessment, Closed):
            return assessment.verdict, used
        spec = assessment.specs[0]
        if spec.stage is Stage.PROOF:
            experiment = experiment.with_block(relabel(proof, plan, spec))
        elif used == len(blocks):
            return None
        else:
            experiment = experiment.with_block(relabel(blocks[used], plan, spec))
            used += 1


def relabel(line: dict[str, Any], plan: Plan, spec: BlockSpec) -> BlockRecord:
    """A recorded block under the labels of a planned one."""
    report = read_report(line)
    if report is not None:
        windows = [
            window.model_copy(update={"arm": Arm(label)})
            for window, label in zip(report.windows, spec.labels, strict=False)
        ]
        report = report.model_copy(update={"run": plan.run_name(spec), "windows": tuple(windows)})
    return BlockRecord(
        spec=spec,
        node=line["node"],
        started_at_s=line["started_at_s"],
        held_device_s=line["held_device_s"],
        report=report,
        failure=line["failure"],
    )


def upper_limit(wins: int, sets: int) -> float:
    """One-sided upper limit of the share of wins (Clopper and Pearson 1934)."""
    return 1.0 if wins >= sets else float(beta.ppf(CONFIDENCE, wins + 1, sets - wins))


def report(verdicts: list[Verdict], used: int, left: int) -> str:
    """What was found, in a few lines."""
    words = Counter(f"{verdict.word} ({verdict.reason})" for verdict in verdicts)
    wins = sum(verdict.word is VerdictWord.WON for verdict in verdicts)
    candidates = sum(bool(verdict.votes) for verdict in verdicts)
    lines = [f"{len(verdicts)} disjoint experiments on {used} recorded blocks ({left} left over):"]
    lines += [f"  {count:4d}  {word}" for word, count in words.most_common()]
    lines.append(f"{candidates} reached the refute checks, {wins} won.")
    if verdicts:
        bound = upper_limit(wins, len(verdicts))
        lines.append(f"At most {100 * bound:.1f} % of such experiments win falsely ({100 * CONFIDENCE:.0f} % limit).")
    if len(verdicts) < ENOUGH_SETS:
        lines.append(f"Fewer than {ENOUGH_SETS}: record more with --blocks {used + left + 60} --resume.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

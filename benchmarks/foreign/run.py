"""Do the probe's phases agree with a profiler's on scripts that others wrote? Prints one table.

    python benchmarks/foreign/run.py --scripts DIR [--only NAME ...] [--out DIR] [--markdown]

DIR holds clones of the repositories named in `catalog.py`, as they are; each is copied to the output folder and run
there twice, on the CPU: once under probe and profiler together, which then judge the same seconds, and once bare, for
what it prints and saves. About two minutes a script on a quiet machine. Runs that are already there are kept: delete a
script's folder to run it anew. Exit code 0 when every script agrees.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from catalog import SCRIPTS, Script
from compare import BAR, JUDGED_SHARE, STANDARD_ERRORS, Phase, Told, compare, read_told
from prepare import install_packages
from runs import RATE_HZ, Pair, run_both
from stacks import Reader, Sampled, read_stacks

from amdahl_probe import bundle

ROOT = Path(__file__).resolve().parents[2]
#: A profiler that is late more often than this samples when the script lets it, not when it is due.
LEAST_TAKEN = 0.95

HEADER = ("script", "commit", "steps", "phase", "probe", "profiler", "points", "relative", "sampling error", "verdict")


class Result(NamedTuple):
    """Everything that is said of one script."""

    script: Script
    pair: Pair
    told: Told
    sampled: Sampled
    phases: list[Phase]

    @property
    def taken(self) -> float:
        """Samples taken over samples due."""
        return self.sampled.total / (RATE_HZ * self.told.wall_ns / 1e9)

    @property
    def faults(self) -> list[str]:
        """Every way in which it fails."""
        faults = [f"{phase.name} disagrees" for phase in self.phases if phase.is_judged and not phase.is_within]
        if self.taken < LEAST_TAKEN:
            faults.append("the profiler got too little CPU time: run it again on a quieter machine")
        return faults if self.pair.is_same else [*faults, "losses or checkpoint differ from the bare run"]


def main() -> int:
    """Run what was asked for, and print it."""
    options = read_arguments()
    out: Path = options.out.resolve()
    packages = out / "packages"
    install_packages(packages)
    sys.path.append(str(packages))
    probe = bundle.build(out)
    results = []
    for script in SCRIPTS:
        if options.only and script.name not in options.only:
            continue
        print(f"==> {script.name}", file=sys.stderr, flush=True)
        pair = run_both(script, options.scripts.resolve() / script.clone, out / script.name, packages, probe)
        told = read_told(pair.records)
        sampled = Reader(script, pair.work).count(read_stacks(pair.stacks, script))
        results.append(Result(script, pair, told, sampled, compare(told, sampled)))
    print(f"{describe_machine()}; {time.strftime('%Y-%m-%d', time.gmtime())}\n")
    print("\n".join(render(results, options.markdown)) + "\n")
    print("\n".join(summarize(result) for result in results))
    print(
        f"\nBar: phases above {100 * JUDGED_SHARE:.0f} % of the time differ by at most {100 * BAR:.0f} % of the "
        f"profiler's seconds plus {STANDARD_ERRORS:.0f} standard errors."
    )
    return 0 if all(not result.faults for result in results) else 1


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scripts", type=Path, required=True, metavar="DIR", help="folder of the clones")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[script.name for script in SCRIPTS])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "foreign", help="default: build/foreign")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/benchmarks.md")
    return parser.parse_args()


def render(results: list[Result], is_markdown: bool) -> list[str]:
    """The table: a line a phase."""
    rows: list[tuple[str, ...]] = [HEADER]
    for result in results:
        named = (result.script.name, result.pair.commit[:10], str(result.told.steps))
        rows += [named + describe(phase) for phase in result.phases]
    if is_markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return [lines[0], "|---" * len(HEADER) + "|", *lines[1:]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def describe(phase: Phase) -> tuple[str, ...]:
    """The cells of one phase."""
    return (
        phase.name,
        f"{100 * phase.probe:.2f} %",
        f"{100 * phase.profiler:.2f} %",
        f"{100 * (phase.probe - phase.profiler):+.2f}",
        f"{100 * phase.relative:+.1f} %",
        f"±{100 * phase.error:.2f}",
        judge(phase),
    )


def judge(phase: Phase) -> str:
    """The verdict on a phase. One that needs the allowance says so: it may hide a bias as large as itself."""
    if not phase.is_judged:
        return "not judged"
    if phase.is_outright:
        return "agrees"
    return "only within sampling error" if phase.is_within else "DISAGREES"


def summarize(result: Result) -> str:
    """The verdict on a script, and what it rests on."""
    stretch_s, total, pair = result.told.wall_ns / 1e9, result.sampled.total, result.pair
    late = f"up to {pair.watched.lag_s:.1f} s late" if pair.watched.lag_s else "never late"
    return (
        f"{result.script.name}: {'; '.join(result.faults) or 'agrees'}. {stretch_s:.1f} s between the first and the "
        f"last step, {total} samples ({100 * result.taken:.1f} % of those due, {late}), "
        f"{100 * result.sampled.counts.get('probe', 0) / total:.2f} % of them in the probe itself; "
        f"{len(pair.bare.losses)} printed losses and the checkpoint "
        f"{'equal' if pair.is_same else 'DIFFER FROM'} the bare run's; {pair.probe}"
    )


def describe_machine() -> str:
    """CPUs, Python, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    asked = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return f"{os.cpu_count()} CPUs of {name}, Python {platform.python_version()}, torch {torch}"


if __name__ == "__main__":
    sys.exit(main())

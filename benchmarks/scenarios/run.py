"""Does the loop find what is true? Runs every scenario and trap through the command line and prints one table.

    python benchmarks/scenarios/run.py [--only NAME ...] [--out DIR] [--profile quick] [--write]

About two hours on two cores. Everything is kept in DIR (one ledger, one sweep and one result for each line), and a run
that was cut short goes on where it was; delete a line's folder to run it anew. `--write` puts the table into
docs/benchmarks.md. Exit code 0 when every line is right.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from catalog import CPUS, HERE, SCENARIOS, TRAPS, Scenario, Trap
from loop import prepare, run_loop
from sweep import measure
from table import Row, is_passed, judge_scenario, judge_trap, render_markdown, render_text, summarize

ROOT = HERE.parents[1]
DOC = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- scenarios: written by `make bench` -->", "<!-- end of scenarios -->"


def main() -> int:
    """Run what was asked for, print the table, and say whether all of it is right."""
    options = read_arguments()
    signal.signal(signal.SIGTERM, stop)  # so that the loop of the moment ends with this process
    hold_to_cpus()
    out: Path = options.out.resolve()
    work = out / "work"
    prepare(work)
    rows = []
    for line in (*SCENARIOS, *TRAPS):
        if options.only and line.name not in options.only:
            continue
        print(f"==> {line.name}", file=sys.stderr, flush=True)
        try:
            rows.append(run_line(line, work, out / line.name, options.profile, options.rounds))
        except (RuntimeError, subprocess.TimeoutExpired) as error:  # the other lines can still be told
            rows.append(Row(line.name, "a finished loop", str(error), 0, 0, 0.0, ("did not finish",)))
        (out / line.name / "result.json").write_text(json.dumps(asdict(rows[-1]), indent=1) + "\n")
        print("    " + " | ".join(rows[-1].cells()), file=sys.stderr, flush=True)
    print(render_text(rows))
    print(summarize(rows))
    if options.write:
        write_doc(rows, options.profile, options.rounds)
    return 0 if is_passed(rows) else 1


def stop(_number: int, _frame: FrameType | None) -> None:
    """End as on an interruption; what has finished is kept."""
    sys.exit(143)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [line.name for line in (*SCENARIOS, *TRAPS)]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="default: build/bench")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each value in a sweep; 0: no sweep")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args()


def hold_to_cpus() -> None:
    """Keep this process and all it starts on the first CPUs: crowding is meant for this number of them."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < CPUS:
        sys.exit(f"the scenarios need {CPUS} CPUs, {len(allowed)} may be used here")
    os.sched_setaffinity(0, allowed[:CPUS])


def run_line(line: Scenario | Trap, work: Path, out: Path, profile: str, rounds: int) -> Row:
    """One line of the table."""
    if isinstance(line, Trap):
        return judge_trap(line, run_loop(line.name, line.manifest, work, out, profile, line.neighbour))
    found = run_loop(line.name, line.manifest, work, out, profile)
    swept = None
    if line.sweep is not None and line.knob is not None and rounds:
        swept = measure(line.sweep, line.manifest, found.knobs[line.knob], work, out / "sweep.jsonl", rounds)
    return judge_scenario(line, found, swept)


def write_doc(rows: list[Row], profile: str, rounds: int) -> None:
    """Replace this part of docs/benchmarks.md; the rest of the page is others'."""
    text = DOC.read_text() if DOC.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    part = (
        f"## Scenarios and traps\n\n`make bench`, profile `{profile}`, sweeps of {rounds} interleaved runs a value; "
        f"{describe_machine()}; {time.strftime('%Y-%m-%d', time.gmtime())}.\n\n{render_markdown(rows)}\n\n"
        f"{summarize(rows)}\n"
    )
    DOC.write_text(f"{before}{BEGIN}\n\n{part}\n{END}{after}")


def describe_machine() -> str:
    """CPU, how many of them were used, Python and torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    asked = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return f"{CPUS} CPUs of {name}, Python {platform.python_version()}, torch {torch}"


if __name__ == "__main__":
    sys.exit(main())

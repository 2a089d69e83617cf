"""Is what `make demo` claimed true? Trains the demo job under both settings and times it from outside.

    python benchmarks/demo_verify.py --ledger build/demo/ledger.sqlite [--runs 5]

The claim is read from the demo's ledger. Both settings then train in turn, five times each, the order swapped from pair
to pair, without probe and supervisor; this process stamps the trainer's progress lines with its own clock. Exit code 0
only if claim and measurement are within ten points. A cadence is judged by the work it saves from interruptions,
which no such run can see: it stays as declared in both settings.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from amdahl_loop.adapters.manifests import read_manifest
from amdahl_loop.domain.knob_values import KnobName, Knobs, knob_environment

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "examples" / "pydocs" / "job.yaml"
TOLERANCE = 0.10
WARM_STEP, LAST_STEP, LOG_EVERY = 60, 300, 20
STEP = re.compile(r"\bstep\W+(\d+)")
CADENCE = {KnobName.CHECKPOINT_EVERY_STEPS.value, KnobName.ASYNC_CHECKPOINT.value}


class Claim(NamedTuple):
    """What the demo says: the values it proved, and the share of cost they save together."""

    values: dict[KnobName, int | bool]
    saving: float
    left_out: tuple[str, ...]


def main() -> int:
    """Measure, compare, say so."""
    options = read_arguments()
    claim = read_claim(options.ledger)
    declared = read_manifest(JOB).job.spec.knobs
    if not claim.values:
        print("The demo won nothing that a run can show: nothing to verify.")
        return 1
    tuned = declared.with_values(claim.values)
    print(f"declared: {tell(declared)}\ntuned:    {tell(tuned)}")
    for text in claim.left_out:
        print(f"left out: {text}")
    pairs = [measure_pair(declared, tuned, number, options.runs) for number in range(options.runs)]
    effects = [math.log(before / after) for before, after in pairs]
    measured = -math.expm1(-fmean(effects))
    spread = stdev(effects) / math.sqrt(len(effects)) if len(effects) > 1 else 0.0
    before_s, after_s = (fmean(pair[at] for pair in pairs) for at in (0, 1))
    off = abs(measured - claim.saving)
    print(f"measured: {1000 * before_s:.1f} ms a step before, {1000 * after_s:.1f} ms after, {options.runs} pairs")
    print(f"claim:    {100 * claim.saving:.1f} % of the cost saved ({1 / (1 - claim.saving):.2f} x)")
    print(f"outside:  {100 * measured:.1f} % ± {100 * spread * (1 - measured):.1f} ({1 / (1 - measured):.2f} x)")
    print(
        f"{'agrees' if off <= TOLERANCE else 'DISAGREES'}: {100 * off:.1f} points apart, {100 * TOLERANCE:.0f} allowed"
    )
    return 0 if off <= TOLERANCE else 1


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ledger", type=Path, default=ROOT / "build" / "demo" / "ledger.sqlite")
    parser.add_argument("--runs", type=int, default=5, help="runs of each setting")
    return parser.parse_args()


def read_claim(ledger: Path) -> Claim:
    """The wins on the demo's ledger, in the words of the command line."""
    if not ledger.exists():
        sys.exit(f"{ledger} is not there; run `make demo` first")
    program = Path(sys.executable).with_name("amdahl-loop")
    told = subprocess.run(
        [program, "ledger", "--ledger", str(ledger), "-o", "json"], capture_output=True, text=True, check=True
    )
    values: dict[KnobName, int | bool] = {}
    log_cost, left_out = 0.0, []
    for experiment in json.loads(told.stdout)["experiments"]:
        if experiment["verdict"] != "Won":
            continue
        changes: list[dict[str, Any]] = [experiment, *experiment["with"]]
        if any(change["knob"] in CADENCE for change in changes):
            left_out.append(experiment["sentence"])
            continue
        values |= {KnobName(change["knob"]): change["to"] for change in changes}
        log_cost += math.log1p(-experiment["effect"])
    return Claim(values, -math.expm1(log_cost), tuple(left_out))


def tell(knobs: Knobs) -> str:
    """Knob values in one line."""
    return ", ".join(f"{knob} {value}" for knob, value in knobs.declared().items())


def measure_pair(declared: Knobs, tuned: Knobs, number: int, of: int) -> tuple[float, float]:
    """Seconds a step of both settings, run one after the other; every other pair begins with the tuned one."""
    settings = [declared, tuned] if number % 2 == 0 else [tuned, declared]
    taken = [time_run(knobs) for knobs in settings]
    before_s, after_s = taken if number % 2 == 0 else taken[::-1]
    print(f"pair {number + 1}/{of}: {1000 * before_s:.1f} ms and {1000 * after_s:.1f} ms a step", flush=True)
    return before_s, after_s


def time_run(knobs: Knobs) -> float:
    """Train once, from scratch, and stamp the lines of the first and the last measured step."""
    trainer = read_manifest(JOB).job.spec.template.trainer
    with tempfile.TemporaryDirectory(prefix="demo-verify-") as folder:
        options = ["--run.out_dir", folder, "--run.max_steps", str(LAST_STEP), "--metrics.log_every", str(LOG_EVERY)]
        process = subprocess.Popen(
            [sys.executable, *trainer.command[1:], *trainer.args, *options],
            cwd=JOB.parent / trainer.working_dir,
            env={**os.environ, **knob_environment(knobs.declared())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        stamps, said = {}, []
        for line in process.stdout:
            now_s = time.monotonic()
            said.append(line)
            if found := STEP.search(line):
                stamps[int(found[1])] = now_s
        if process.wait() != 0 or WARM_STEP not in stamps or LAST_STEP not in stamps:
            sys.exit(f"the trainer ended with {process.returncode}; its last lines:\n{''.join(said[-20:])}")
    return (stamps[LAST_STEP] - stamps[WARM_STEP]) / (LAST_STEP - WARM_STEP)


if __name__ == "__main__":
    sys.exit(main())

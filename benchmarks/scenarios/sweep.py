"""What could be won at most? Measures every value of a knob from outside, by an own clock, without the loop.

A run is the job's own command for a fixed number of steps. The script prints a line every ten steps; this process
stamps the lines as they arrive. The probe places loader knobs, since a foreign script would not know them, and records
nothing. Rounds are interleaved: every round measures each value once, each time in another order.

Cost is that of the judge, derived here anew: device-seconds per sample, and for a cadence the expected seconds per
useful step from a quiet run, a run with saves, and the interruptions between them.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from catalog import HERE, Sweep
from loop import environment
from ruamel.yaml import YAML

WARM_STEPS, LAST_STEP = 30, 150
"""120 measured steps: a multiple of what repeats in the scripts (saves every 5, shards of 5 and 8 batches)."""
STEP_LINE = re.compile(r"step +([0-9]+)[ /]")
"""A line of progress: `step 10 loss ...`, or our trainer's `step 10/150 ...`. What it says of a step's size is none."""
NEVER = 10**8
SAVE_EVERY = 5
RUN_LIMIT_S = 180.0
TRAINER_IMAGE = HERE.parents[1] / "trainer_image"


class Timed(NamedTuple):
    """One run: seconds a step, and seconds from launch until steps were being made."""

    step_s: float
    launch_s: float


class Swept(NamedTuple):
    """Log cost of each value, and what each one gains over the first."""

    costs: dict[int | str, float]

    def gain(self, value: int | str) -> float:
        """Share of the first value's cost that this one saves."""
        base = next(iter(self.costs.values()))
        return -math.expm1(self.costs[value] - base)

    @property
    def best(self) -> int | str:
        """The cheapest value."""
        return min(self.costs, key=lambda value: self.costs[value])


def measure(sweep: Sweep, manifest: str, found: int | str, work: Path, raw: Path, rounds: int) -> Swept:
    """Measure all values (and the one the loop found); runs that are on record in `raw` are not run again."""
    values = list(dict.fromkeys((*sweep.values, found)))
    settings: list[int | str] = values if sweep.interval_s is None else [NEVER, SAVE_EVERY]
    known = [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []
    job = YAML(typ="safe").load(manifest)
    for number in range(rounds):
        for value in settings[number % len(settings) :] + settings[: number % len(settings)]:
            if any(run["round"] == number and run["value"] == value for run in known):
                continue
            timed = time_run(job, sweep, value, work)
            known.append({"round": number, "value": value, **timed._asdict()})
            with raw.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
    mean_s: dict[int | str, float] = {
        value: fmean(run["step_s"] for run in known if run["value"] == value) for value in settings
    }
    if sweep.interval_s is None:
        processes = {v: int(v) if sweep.variable == "AMDAHL_GPUS_PER_REPLICA" else 1 for v in values}
        return Swept({value: math.log(processes[value] * mean_s[value]) for value in values})
    launch_s = fmean(run["launch_s"] for run in known)
    save_s = SAVE_EVERY * max(0.0, mean_s[SAVE_EVERY] - mean_s[NEVER])
    return Swept({v: log_useful_step_s(int(v), mean_s[NEVER], save_s, launch_s, sweep.interval_s) for v in values})


def log_useful_step_s(every: int, step_s: float, save_s: float, restart_s: float, interval_s: float) -> float:
    """Log of expected seconds per useful step when the job is interrupted every `interval_s`, exponentially.

    Renewal: a cycle of mean `interval_s` and one restart keeps `every` steps for each stretch that was survived whole.
    """
    stretch = (every * step_s + save_s) / interval_s
    kept_steps = every / math.expm1(stretch) if stretch < 700 else every * math.exp(-stretch)
    return math.log(interval_s + restart_s) - math.log(kept_steps)


def time_run(job: dict[str, Any], sweep: Sweep, value: int | str, work: Path) -> Timed:
    """Run the job once and stamp the lines of its first and its last measured step."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = {item["name"]: item["value"] for item in container.get("env", [])} | {sweep.variable: str(value)}
    for knob, setting in job["spec"]["knobs"].items():
        name = "AMDAHL_" + "".join("_" + c if c.isupper() else c.upper() for c in knob)
        variables.setdefault(name, setting if isinstance(setting, str) else str(int(setting)))
    command = [expand(word, variables) for word in container["command"]] + [sweep.steps, str(LAST_STEP)]
    entry = os.pathsep.join((str(TRAINER_IMAGE / "amdahl_probe" / "entry"), str(TRAINER_IMAGE)))
    begun_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command[1:]],
        cwd=work,
        env={**environment(), **variables, "PYTHONPATH": entry, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    stamps = _stamp(process)
    if process.wait(timeout=RUN_LIMIT_S) != 0 or LAST_STEP not in stamps:
        raise RuntimeError(f"{' '.join(command)} with {sweep.variable}={value} ended with {process.returncode}")
    step_s = (stamps[LAST_STEP] - stamps[WARM_STEPS]) / (LAST_STEP - WARM_STEPS)
    return Timed(step_s, max(0.0, stamps[10] - begun_s - 10 * step_s))


def _stamp(process: "subprocess.Popen[str]") -> dict[int, float]:
    assert process.stdout is not None
    stamps: dict[int, float] = {}
    for line in process.stdout:
        said = STEP_LINE.match(line)
        if said:
            stamps[int(said.group(1))] = time.monotonic()
    return stamps


def expand(word: str, variables: dict[str, str]) -> str:
    """`$(NAME)` as Kubernetes replaces it; the manifests here need no escape."""
    for name, text in variables.items():
        word = word.replace(f"$({name})", text)
    return word

"""What does unchanged training look like through the real harness? Records live blocks whose arms are equal.

Every block is planned, sized, supervised and switched as a block of the `quick` profile on the demo job; only the
variant's values are the baseline's. One line of JSON a block, the supervisor's own summary in it, untouched.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amdahl_loop.adapters.local.machine import read_machine
from amdahl_loop.adapters.local.runner import LocalRunner, default_state_dir
from amdahl_loop.adapters.manifests import Manifest, read_manifest
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.design import design_plan
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.phases import Breakdown, Unobservable, account
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, Running, RunRequest, block_request, observation_request
from amdahl_loop.domain.telemetry import BlockReport, Phase, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName

JOB = Path(__file__).resolve().parents[2] / "examples" / "pydocs" / "job.yaml"
SCOPE = "null-benchmark"
POLL_S = 0.25
FINGERPRINT, FAMILY = "null-benchmark", "null-benchmark"


def read_job() -> tuple[Manifest, TrainingJob]:
    """The demo job under the `quick` profile, whatever its manifest says."""
    manifest = read_manifest(JOB)
    tuning = manifest.job.spec.tuning.model_copy(update={"profile": ProfileName.QUICK})
    return manifest, manifest.job.model_copy(update={"spec": manifest.job.spec.model_copy(update={"tuning": tuning})})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What is on record; a last line that a crash cut short is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise
    return found


def record(path: Path, wanted: int) -> None:
    """Record until `wanted` blocks are there: first the observation and the proof that a plan needs, then blocks."""
    asyncio.run(_record(path, wanted))


async def _record(path: Path, wanted: int) -> None:
    manifest, job = read_job()
    runner = LocalRunner(default_state_dir(), manifest.path.parent, SCOPE)
    known = read_lines(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in known))
    try:
        if not known:
            request = observation_request("null-observation", job.spec.knobs, PROFILES[ProfileName.QUICK], 1)
            known.append(await _run(runner, job, request, "observation", path))
        breakdown = read_breakdown(known[0], job)
        done = {line["run"] for line in known}
        for spec, plan in _plan_runs(job, breakdown):
            if sum(line["kind"] == "block" for line in known) >= wanted:
                return
            if plan.run_name(spec) not in done:
                request = block_request(plan, spec, breakdown.startup_s, breakdown.step_s)
                kind = "proof" if spec.stage is Stage.PROOF else "block"
                known.append(await _run(runner, job, request, kind, path) | {"spec": spec.model_dump(mode="json")})
    finally:
        await runner.sweep(keep=())


def _plan_runs(job: TrainingJob, breakdown: Breakdown) -> Iterator[tuple[BlockSpec, Plan]]:
    """One proof, then discovery blocks without end: the plans of attempt 0, 1, 2, ... with both arms equal."""
    attempt = 0
    while True:
        plan = make_plan(job, breakdown, "recording", attempt)
        equal = plan.model_copy(update={"variant": plan.baseline})
        if attempt == 0:
            yield plan.stage_blocks(Stage.PROOF)[0], equal
        for spec in plan.stage_blocks(Stage.DISCOVERY):
            yield spec, equal
        attempt += 1


def make_plan(job: TrainingJob, breakdown: Breakdown, uid: str, attempt: int) -> Plan:
    """The plan of an experiment on loader workers, as the loop would write it."""
    change = Change(knob=KnobName.DATALOADER_WORKERS, before=job.spec.knobs.dataloader_workers, after=1)
    hypothesis = Hypothesis(
        changes=(change,), phase=Phase.INPUT, expected_gain=0.2, source=Source.RULE, rationale="both arms are equal"
    )
    return design_plan(job, uid, FINGERPRINT, FAMILY, hypothesis, breakdown, attempt)


async def _run(runner: LocalRunner, job: TrainingJob, request: RunRequest, kind: str, path: Path) -> dict[str, Any]:
    """Run to the end and append what came of it."""
    await runner.submit(job, request)
    state = await runner.find(request.run)
    while isinstance(state, Running):
        await asyncio.sleep(POLL_S)
        state = await runner.find(request.run)
    if not isinstance(state, Finished):
        raise TypeError(f"run {request.run} left no trace")
    await runner.stop(request.run)
    line = {
        "kind": kind,
        "run": request.run,
        "node": state.node,
        "started_at_s": round(state.started_at_s, 3),
        "held_device_s": round(state.held_device_s, 3),
        "failure": state.failure,
        "summary": state.summary,
    }
    with path.open("a") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")
    print(f"{request.run}: {state.failure or 'done'} in {state.held_device_s:.0f} s", flush=True)
    return line


def read_report(line: dict[str, Any]) -> BlockReport | None:
    """The believed report of a recorded run; None where there is none."""
    report = parse_block_summary(line["summary"], line["run"]) if line["summary"] else None
    return report if isinstance(report, BlockReport) else None


def read_breakdown(line: dict[str, Any], job: TrainingJob) -> Breakdown:
    """What the recorded observation says of the job."""
    report = read_report(line)
    if line["kind"] != "observation" or report is None:
        raise ValueError(f"the first line is {line['kind']} {line['run']} without a report; record anew")
    observation = Observation(
        run=line["run"],
        at_s=line["started_at_s"],
        fingerprint=FINGERPRINT,
        job=job,
        knobs=job.spec.knobs,
        report=report,
        held_device_s=line["held_device_s"],
    )
    breakdown = account(observation, job.expected_device_hours[0], job.spec.tuning.checkpoint)
    if isinstance(breakdown, Unobservable):
        raise TypeError(f"{breakdown.sentence} The demo job must run before it can be recorded")
    return breakdown


def machine_line() -> str:
    """Where this was recorded."""
    return read_machine().device_type

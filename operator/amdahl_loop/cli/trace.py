"""The `trace` command: what does a short run of the job look like on a time line?

One observed window in the sandbox, with the probe's spans kept as a Chrome trace; Perfetto (ui.perfetto.dev) opens it.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from rich.text import Text

from amdahl_loop.adapters.local.runner import default_state_dir
from amdahl_loop.adapters.local.traces import read_events
from amdahl_loop.adapters.manifests import read_manifest
from amdahl_loop.cli.drive import POLL_S, stop_on_signals
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.cli.output import emit
from amdahl_loop.cli.session import World, with_profile
from amdahl_loop.cli.shapes import TraceShape
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, Running, RunRequest, observation_request
from amdahl_loop.ports import Runner

SCOPE = "trace"
TRACE_SEED = 1


def trace(arguments: argparse.Namespace, world: World) -> int:
    """Run one window, gather the ranks' traces, write them as one file."""
    manifest = read_manifest(arguments.manifest)
    job = with_profile(manifest.job, arguments.profile)
    file = arguments.file or Path(f"{job.metadata.name}.trace.json")
    state_dir = default_state_dir(world.environment)
    runner = world.make_runner(state_dir, manifest.path.parent, SCOPE)
    request = _request(job, arguments.seconds)
    run_dir = state_dir / SCOPE / request.run
    events = asyncio.run(_record(runner, job, request, run_dir))
    file.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}), encoding="utf-8")
    result = TraceShape(job=job.metadata.name, file=str(file), events=len(events))
    told = Text(f"{len(events)} events written to {file}; open it at https://ui.perfetto.dev")
    emit(result, told, arguments.output, world)
    return Exit.DONE


def _request(job: TrainingJob, seconds: int) -> RunRequest:
    """One window that outlasts the trace: the run ends when its time is up, as any run does."""
    constants = PROFILES[job.spec.tuning.profile].model_copy(update={"window_s": 2.0 * seconds})
    request = observation_request(f"{job.metadata.name[:41].rstrip('-')}-trace", job.spec.knobs, constants, TRACE_SEED)
    return request.model_copy(
        update={
            "trace": True,
            "windows": request.windows[:1],
            "startup_timeout_s": 2.0 * seconds,
            "step_timeout_s": 2.0 * seconds,
            "deadline_s": float(seconds),
        }
    )


async def _record(runner: Runner, job: TrainingJob, request: RunRequest, run_dir: Path) -> list[dict[str, Any]]:
    """Run to the end and read what the ranks left, before the run's traces are dropped."""
    with stop_on_signals() as stop:
        try:
            await runner.stop(request.run)  # what an earlier trace was killed over
            await runner.submit(job, request)
            while isinstance(state := await runner.find(request.run), Running):
                if stop.is_set():
                    raise Stop(Exit.INTERRUPTED, "interrupted; nothing is left running")
                await asyncio.sleep(POLL_S)
            events = read_events(run_dir)
        finally:
            await runner.stop(request.run)
    if not events:
        why = state.failure if isinstance(state, Finished) and state.failure else "the program left no trace"
        raise Stop(Exit.NOT_OBSERVED, f"Not traced: {why}; `amdahl-loop explain` says whether the job can be observed.")
    return events

"""How does a run of the past look to the loop today?

A `Runner` that starts nothing: it serves the runs that a ledger holds, so that a replay asks for them as the loop once
did. A recorded report goes back through the telemetry contract's own form, so that a replay parses it anew.
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from amdahl_loop.domain.experiments import BlockRecord, Loss
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, RunRequest, RunState
from amdahl_loop.domain.telemetry import SUMMARY_VERSION, BlockReport, Window, checksum


class NotRecordedError(LookupError):
    """The loop asked for a run that the record does not hold."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run} is not recorded")
        self.run = run


class RecordedRunner:
    """The `Runner` port over finished runs by name; submitting anything else raises NotRecordedError."""

    def __init__(self, runs: Mapping[str, Finished]) -> None:
        self._runs = runs

    async def find(self, run: str) -> RunState:
        """The recorded end of a run, or Absent."""
        return self._runs.get(run) or Absent()

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Refuse: what was not recorded cannot be had."""
        del job
        raise NotRecordedError(request.run)

    async def stop(self, run: str) -> Loss | None:
        """Nothing runs."""
        del run
        return None

    async def sweep(self, keep: Collection[str]) -> tuple[Loss, ...]:
        """Nothing runs, so nothing is stopped."""
        del keep
        return ()


def finished_block(record: BlockRecord) -> Finished:
    """The end of a block's run, as it was."""
    return Finished(
        summary=encode_report(record.report) if record.report else "",
        failure=record.failure,
        node=record.node,
        started_at_s=record.started_at_s,
        held_device_s=record.held_device_s,
    )


def finished_observation(observation: Observation) -> Finished:
    """The end of an observation's run; the loop notes an observation when it has ended."""
    return Finished(
        summary=encode_report(observation.report),
        started_at_s=observation.at_s,
        held_device_s=observation.held_device_s,
    )


def encode_report(report: BlockReport) -> str:
    """The summary text (docs/telemetry.md, section 4) that parses to this report; parse and encode are inverse."""
    content = _drop_absent(
        {
            "v": SUMMARY_VERSION,
            "run": report.run,
            "state": report.state,
            "why": report.why or None,
            "at": [report.running_arm, report.running_index] if report.running_arm else None,
            "live": int(report.live) or None,
            "cpus": report.cpus,
            "w": [_encode_window(window) for window in report.windows],
        }
    )
    return json.dumps(content | {"crc": checksum(content)}, separators=(",", ":"))


def _encode_window(window: Window) -> dict[str, Any]:
    saves, loader = window.saves, window.loader
    return _drop_absent(
        {
            "a": window.arm,
            "i": window.index,
            "x": window.outcome,
            "why": window.why or None,
            "xc": window.exit_code,
            "n": window.steps,
            "s": window.samples,
            "d": window.devices,
            "us": _unscale(window.wall_s, 1e6),
            "ph": window.phases_ppk,
            "sh": window.shape,
            "el": window.elements_per_sample,
            "di": window.distinct_ppk,
            "id": window.sample_ids,
            "ls": window.losses,
            "lm": window.loss_mean,
            "sv": [saves.count, _unscale(saves.block_s, 1e6), _unscale(saves.interference_s, 1e6)],
            "st": None if window.quiet_step_s is None else _unscale(window.quiet_step_s, 1e6),
            "sd": None if window.quiet_step_sd_s is None else _unscale(window.quiet_step_sd_s, 1e6),
            "su": _unscale(window.startup_s, 1e3),
            "lb": [_unscale(loader.batch_s, 1e6), _unscale(loader.cv, 1e3)] if loader else None,
            "mem": window.peak_mem_mib,
            "ck": window.clock_ppk,
            "sk": window.straggler,
            "of": int(window.offset_applied),
            "ig": window.ignored or None,
            "dt": window.dtype,
        }
    )


def _unscale(value: float, unit: float) -> float:
    """The number that a parser divided by `unit` to get exactly `value`: whole in almost every report."""
    product = value * unit
    neighbours = (round(product), product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    return next((number for number in neighbours if number / unit == value), product)


def _drop_absent(content: dict[str, Any]) -> dict[str, Any]:
    """Numbers that do not exist are left out, as the contract asks."""
    return {key: value for key, value in content.items() if value is not None}

"""How is a report that was believed written down again?

The inverse of the parser in `telemetry.py`: a summary as docs/telemetry.md describes it, which reads back as the very
same report. Objects in a cluster keep measurements in this one form, checksum included.
"""

import json
import math
from typing import Any

from amdahl_loop.domain.telemetry import (
    MAX_SUMMARY_BYTES,
    SUMMARY_VERSION,
    BlockReport,
    Saves,
    Window,
    checksum,
)

MICRO, MILLI = 1e6, 1e3


def render_block_summary(report: BlockReport) -> str | None:
    """The report as checksummed JSON of at most 1,500 bytes; None where it does not fit."""
    content: dict[str, Any] = {"v": SUMMARY_VERSION, "run": report.run, "state": report.state, "cpus": report.cpus}
    if report.why:
        content["why"] = report.why
    if report.running_arm is not None or report.running_index is not None:
        content["at"] = [report.running_arm, report.running_index]
    if report.live:
        content["live"] = 1
    content["w"] = [_render_window(window) for window in report.windows]
    text = json.dumps(content | {"crc": checksum(content)}, separators=(",", ":"))
    return text if len(text) <= MAX_SUMMARY_BYTES else None


def _render_window(window: Window) -> dict[str, Any]:
    """The compact keys of the contract; what is absent or the default is left out."""
    saves, loader = window.saves, window.loader
    fields: dict[str, Any] = {
        "why": window.why or None,
        "xc": window.exit_code,
        "n": window.steps or None,
        "s": window.samples or None,
        "d": window.devices or None,
        "us": _unscaled(window.wall_s, MICRO) or None,
        "ph": list(window.phases_ppk) if any(window.phases_ppk) else None,
        "sh": window.shape,
        "el": _short(window.elements_per_sample),
        "di": window.distinct_ppk,
        "id": window.sample_ids,
        "ls": window.losses,
        "lm": _short(window.loss_mean),
        "sv": [saves.count, _unscaled(saves.block_s, MICRO), _unscaled(saves.interference_s, MICRO)]
        if saves != Saves()
        else None,
        "st": _unscaled(window.quiet_step_s, MICRO),
        "sd": _unscaled(window.quiet_step_sd_s, MICRO),
        "su": _unscaled(window.startup_s, MILLI) or None,
        "lb": [_unscaled(loader.batch_s, MICRO), _unscaled(loader.cv, MILLI)] if loader else None,
        "mem": window.peak_mem_mib or None,
        "ck": window.clock_ppk or None,
        "sk": list(window.straggler) if window.straggler else None,
        "of": 1 if window.offset_applied else None,
        "ig": list(window.ignored) or None,
        "dt": window.dtype,
    }
    return {"a": window.arm, "i": window.index, "x": window.outcome} | {
        k: v for k, v in fields.items() if v is not None
    }


def _unscaled(value: float | None, factor: float) -> int | float | None:
    """The number that the parser divides by `factor` to get the value: a whole one, unless none does."""
    if value is None:
        return None
    near = value * factor
    for candidate in (float(round(near)), near, math.nextafter(near, 0), math.nextafter(near, math.inf)):
        if candidate / factor == value:
            return _short(candidate)
    return near


def _short(value: float | None) -> int | float | None:
    """Whole numbers without a fraction: the parser reads both alike."""
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else value

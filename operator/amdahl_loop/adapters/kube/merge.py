"""What did a block of several pods measure? Every pod's supervisor saw its own ranks only.

Ranks wait for each other, so a block is as fast as its slowest pod: its wall time and phases are judged, the samples of
the others are counted at its pace. A pod without a believable report voids the block.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import (
    BlockReport,
    Loader,
    Malformed,
    Phase,
    Window,
    WindowOutcome,
    parse_block_summary,
)

MAX_NAMES = 8
"""Ignored knobs that one window may name (telemetry contract, section 4)."""


@dataclass(frozen=True, slots=True)
class Merged:
    """One summary for the block, or why there is none."""

    text: str = ""
    failure: str = ""


def merge_summaries(texts: Sequence[str], run: str) -> Merged:
    """One summary of the pods' own, in the order of their ranks. A single pod's goes through word for word."""
    if not all(texts):
        silent = ", ".join(str(rank) for rank, text in enumerate(texts) if not text)
        return Merged(
            failure=f"no_summary: pod {silent} left no termination message" if len(texts) > 1 else "no_summary"
        )
    if len(texts) == 1:
        return Merged(text=texts[0])
    reports: list[BlockReport] = []
    for rank, text in enumerate(texts):
        report = parse_block_summary(text, run)
        if isinstance(report, Malformed):
            return Merged(failure=f"no_summary: pod {rank}: {report.reason}"[:200])
        if report.state != "done":
            return Merged(text=text)
        reports.append(report)
    merged = _merge_reports(reports)
    if isinstance(merged, str):
        return Merged(failure=merged)
    whole = render_block_summary(merged)
    return Merged(text=whole) if whole is not None else Merged(failure="no_summary: the pods' reports do not fit")


def _merge_reports(reports: Sequence[BlockReport]) -> BlockReport | str:
    plans = {tuple((window.arm, window.index) for window in report.windows) for report in reports}
    if len(plans) > 1:
        return "no_summary: the pods report different windows"
    windows = zip(*(report.windows for report in reports), strict=True)
    return BlockReport(
        run=reports[0].run,
        state="done",
        live=all(report.live for report in reports),
        cpus=min(report.cpus for report in reports),
        windows=tuple(_merge_windows(same) for same in windows),
    )


_WORST_FIRST = tuple(outcome for outcome in WindowOutcome if outcome.is_own_fault) + tuple(
    outcome for outcome in WindowOutcome if not outcome.is_own_fault and outcome is not WindowOutcome.OK
)


def _merge_windows(parts: Sequence[Window]) -> Window:
    """One window from all pods: the worst outcome, else the slowest pod's time with everybody's samples."""
    failed = [part for part in parts if part.outcome is not WindowOutcome.OK]
    if failed:
        return min(failed, key=lambda part: _WORST_FIRST.index(part.outcome))
    slowest = max(parts, key=lambda part: part.wall_s / part.steps)
    same_steps = len({part.steps for part in parts}) == 1
    return slowest.model_copy(
        update={
            "samples": round(sum(part.samples * slowest.steps / part.steps for part in parts)),
            "devices": sum(part.devices for part in parts),
            "shape": _join({part.shape for part in parts}),
            "elements_per_sample": _mean_per_sample(parts),
            "distinct_ppk": min((p.distinct_ppk for p in parts if p.distinct_ppk is not None), default=None),
            "sample_ids": _add_digests(parts) if same_steps else None,
            "losses": _chain([part.losses for part in parts]) if same_steps else None,
            "loss_mean": _mean_loss(parts),
            "startup_s": max(part.startup_s for part in parts),
            "loader": _mean_loader(parts),
            "peak_mem_mib": max(part.peak_mem_mib for part in parts),
            "clock_ppk": max((part.clock_ppk for part in parts), key=abs),
            "straggler": _find_straggler(parts),
            "offset_applied": all(part.offset_applied for part in parts),
            "ignored": tuple(sorted({name for part in parts for name in part.ignored}))[:MAX_NAMES],
            "dtype": slowest.dtype if all(part.dtype == slowest.dtype for part in parts) else None,
        }
    )


def _join(values: set[str | None]) -> str | None:
    """One digest of distinct ones, as a supervisor joins those of its ranks; None where one is missing."""
    known = sorted(value for value in values if value is not None)
    if len(known) != len(values):
        return None
    return known[0] if len(known) == 1 else f"{zlib.crc32(' '.join(known).encode()):08x}"


def _chain(values: Sequence[str | None]) -> str | None:
    """One digest of all, in the order of the ranks; None where one is missing."""
    known = [value for value in values if value is not None]
    return f"{zlib.crc32(' '.join(known).encode()):08x}" if len(known) == len(values) else None


def _add_digests(parts: Sequence[Window]) -> str | None:
    """Digest of all sample ids: those of the ranks add up, whatever their order."""
    known = [int(part.sample_ids, 16) for part in parts if part.sample_ids is not None]
    return f"{sum(known) & 0xFFFFFFFF:08x}" if len(known) == len(parts) else None


def _mean_per_sample(parts: Sequence[Window]) -> float | None:
    known = [(part.elements_per_sample, part.samples) for part in parts if part.elements_per_sample is not None]
    if len(known) != len(parts):
        return None
    return round(sum(elements * samples for elements, samples in known) / sum(samples for _, samples in known), 3)


def _mean_loss(parts: Sequence[Window]) -> float | None:
    """Mean over ranks: each device computes one loss a step."""
    known = [(part.loss_mean, part.devices) for part in parts if part.loss_mean is not None]
    if len(known) != len(parts):
        return None
    return sum(loss * devices for loss, devices in known) / sum(devices for _, devices in known)


def _mean_loader(parts: Sequence[Window]) -> Loader | None:
    known = [part.loader for part in parts if part.loader is not None]
    if not known:
        return None
    batch_s = sum(loader.batch_s for loader in known) / len(known)
    return Loader(batch_s=round(batch_s, 6), cv=max(loader.cv for loader in known))


def _find_straggler(parts: Sequence[Window]) -> tuple[int, int] | None:
    """The slowest rank and how much longer than the median pod it works: ranks of one pod share its fate."""
    busy_s = [part.wall_s * (1 - part.share(Phase.COMM)) for part in parts]
    worst = max(range(len(parts)), key=lambda at: busy_s[at])
    own = parts[worst].straggler
    excess_ppk = round(1000 * (busy_s[worst] - median_low(busy_s)) / parts[worst].wall_s)
    rank = own[0] if own else worst
    return rank, max(0, excess_ppk, own[1] if own else 0)

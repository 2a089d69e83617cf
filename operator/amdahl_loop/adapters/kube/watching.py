"""What do two looks at a running job's counters measure?

The difference between them is one window of an observation, in the telemetry contract's own form, so that it is parsed
and doubted like any other report. Nothing is changed in the job: its saves are counted, not forced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amdahl_loop.adapters.kube.scrape import Counters
from amdahl_loop.domain.runs import RunRequest, WindowRequest
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import (
    PHASES,
    Arm,
    BlockReport,
    Loader,
    Malformed,
    Phase,
    Saves,
    Window,
    WindowOutcome,
)

SILENCE_LIMIT_S = 600.0
"""Without readable counters for so long after the pod has started, the job cannot be observed."""
STARTUP_LIMIT_S = 3600.0
"""A first step may take this long: compilation, caches of data sets, restoring a large checkpoint."""
STALL_LIMIT_S = 1800.0
"""Without a step for so long, nothing is being measured any more."""
SAVES_WANTED = 3
SAVES_PATIENCE = 10
"""Where saving is a knob, a window is stretched up to so many times, to see `SAVES_WANTED` saves."""
CLOCK_SLACK_S = 5.0
"""Counters move a step at a time and a scrape takes a moment; beyond this a process that counts more time than has
passed is not believed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters, and when they were read."""

    at_s: float
    counters: Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """An observation under way: where it looks, what it saw first, and when it last saw anything new."""

    request: RunRequest
    since_s: float
    pod: str = ""
    address: str = ""
    node: str = ""
    began_s: float | None = None
    first: Reading | None = None
    last: Reading | None = None
    moved_s: float | None = None
    silence: str = ""

    @property
    def window(self) -> WindowRequest:
        """What is measured: the job as it is. Further windows would need a run of their own."""
        return self.request.windows[0]

    def aim(self, pod: str, address: str, node: str, began_s: float) -> "Watch":
        """The same observation of a pod; of another one than before it begins anew."""
        if pod == self.pod:
            return replace(self, address=address)
        fresh = Watch(request=self.request, since_s=self.since_s)
        return replace(fresh, pod=pod, address=address, node=node, began_s=began_s)

    def lose_address(self) -> "Watch":
        """The same observation, which has to find its pod again."""
        return replace(self, address="")


@dataclass(frozen=True, slots=True)
class Unwatchable:
    """An observation that came to nothing, and why."""

    why: str


def note_silence(watch: Watch, why: str, now_s: float) -> Watch | Unwatchable:
    """The counters could not be read this time."""
    heard_s = watch.last.at_s if watch.last else (watch.began_s or watch.since_s)
    if now_s - heard_s < SILENCE_LIMIT_S:
        return replace(watch, silence=why)
    return Unwatchable(f"no counters for {SILENCE_LIMIT_S / 60:.0f} min: {why}")


def note_reading(watch: Watch, reading: Reading, cpus: int) -> Watch | BlockReport | Unwatchable:
    """The observation with one more look: still under way, done, or given up."""
    counters, last = reading.counters, watch.last
    if last is not None and counters.steps < last.counters.steps:
        watch, last = replace(watch, first=None, last=None, moved_s=None), None  # the program was started again
    has_moved = last is None or counters.steps > last.counters.steps
    watch = replace(watch, last=reading, silence="", moved_s=reading.at_s if has_moved else watch.moved_s)
    began_s = watch.began_s or watch.since_s
    if counters.steps == 0:
        late = reading.at_s - began_s >= STARTUP_LIMIT_S
        return Unwatchable("the program runs, and no optimizer step was seen") if late else watch
    if watch.moved_s is not None and reading.at_s - watch.moved_s >= STALL_LIMIT_S:
        return Unwatchable(f"the program has made no step for {STALL_LIMIT_S / 60:.0f} min")
    if watch.first is None:
        is_warm = counters.steps > watch.window.warmup_steps and counters.step_s >= watch.window.warmup_s
        return replace(watch, first=reading) if is_warm else watch
    if not _is_long_enough(watch, watch.first.counters, counters):
        return watch
    window = measure(watch.first, reading)
    if isinstance(window, Malformed):
        return Unwatchable(window.reason)
    return BlockReport(run=watch.request.run, state="done", live=counters.is_live, cpus=cpus, windows=(window,))


def _is_long_enough(watch: Watch, first: Counters, last: Counters) -> bool:
    wall_s, wanted = last.step_s - first.step_s, watch.window
    if wall_s < wanted.measure_s or last.steps - first.steps < wanted.min_steps:
        return False
    has_cadence = wanted.knobs.checkpoint_every_steps is not None
    is_saved = last.saves - first.saves >= SAVES_WANTED
    return not has_cadence or is_saved or wall_s >= SAVES_PATIENCE * wanted.measure_s


def measure(first: Reading, last: Reading) -> Window | Malformed:
    """The window between two readings of one rank, for all ranks; or why it cannot be believed.

    Ranks of a job take their steps together, so this rank's wall time is everybody's, and its samples are a fair share.
    """
    a, b = first.counters, last.counters
    steps, samples, wall_s = b.steps - a.steps, b.samples - a.samples, b.step_s - a.step_s
    spent = [after - before for before, after in zip(a.phases_s, b.phases_s, strict=True)]
    spent[PHASES.index(Phase.STARTUP)] = 0.0
    if steps <= 0 or samples <= 0 or wall_s <= 0 or min(spent) < 0 or sum(spent) <= 0 or b.world != a.world:
        return Malformed(reason=f"counters went backwards or stood still: {steps} steps, {samples} samples, {wall_s} s")
    passed_s = last.at_s - first.at_s
    if wall_s > passed_s + CLOCK_SLACK_S + wall_s / steps:
        return Malformed(reason=f"counters say {wall_s:.1f} s of steps within {passed_s:.1f} s")
    saves, batches = b.saves - a.saves, b.batches - a.batches
    blocked_s = min(max(0.0, b.blocked_s - a.blocked_s), wall_s)
    return Window(
        arm=Arm.BASELINE,
        index=0,
        outcome=WindowOutcome.OK,
        steps=steps,
        samples=samples * b.world,
        devices=b.world,
        wall_s=round(wall_s, 6),
        phases_ppk=_shares(spent),
        saves=Saves(count=saves, block_s=round(blocked_s / saves, 6)) if saves > 0 else Saves(),
        quiet_step_s=round((wall_s - blocked_s) / steps, 6),
        startup_s=round(b.startup_s, 3),
        loader=Loader(batch_s=round((b.batch_s - a.batch_s) / batches, 6), cv=0.0)
        if batches > 0 and b.batch_s >= a.batch_s
        else None,
        ignored=b.ignored,
    )


def _shares(spent_s: Sequence[float]) -> tuple[int, ...]:
    """Parts per thousand that sum to 1000: the largest remainders are rounded up."""
    total = sum(spent_s)
    exact = [1000 * seconds / total for seconds in spent_s]
    shares = [int(share) for share in exact]
    for at in sorted(range(len(exact)), key=lambda at: shares[at] - exact[at])[: 1000 - sum(shares)]:
        shares[at] += 1
    return tuple(shares)


def render_report(report: BlockReport) -> str:
    """The report as a summary's text; one window always fits."""
    text = render_block_summary(report)
    assert text is not None, report
    return text

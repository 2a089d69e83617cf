"""Where did the time of an observed job go?

Turns the report of an observation into one frozen `Breakdown`: steady shares on the slowest rank, the cost of a save,
the loader's own time per batch, and the share of the whole job that starting up takes. Reads, never decides.
"""

from collections.abc import Mapping

from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.telemetry import PHASES, BlockReport, Loader, Phase, Saves, Seconds, Window, WindowOutcome
from amdahl_loop.domain.tuning import CheckpointPolicy
from amdahl_loop.domain.values import Frozen


class Unobservable(Frozen):
    """An observation that gave no usable window, and why."""

    sentence: str


class Breakdown(Frozen):
    """Where an observed job's time goes, and what the rules need to know about it.

    `shares` are of steady wall time on the slowest rank and sum to 1. `startup_share` is of the whole job: the launch,
    spread over the work ahead, and once more for every expected interruption.
    """

    knobs: Knobs
    steps: int
    wall_s: Seconds
    step_s: Seconds
    samples_per_s: Seconds
    devices: int
    shares: Mapping[Phase, float]
    startup_s: Seconds
    startup_share: float
    quiet_step_s: Seconds
    saves: Saves | None
    loader: Loader | None
    straggler: tuple[int, int] | None
    cpus: int
    peak_mem_mib: int
    live: bool
    ignored: tuple[str, ...] = ()
    """Knobs that the program said it cannot take, or not with any other value."""

    @property
    def busy_step_s(self) -> float:
        """Seconds a step without waiting for data and without saves: the loader law's `t_step`."""
        idle = self.shares[Phase.INPUT] + self.shares[Phase.CHECKPOINT]
        return self.step_s * max(1e-9, 1 - idle)

    @property
    def shares_ppk(self) -> tuple[int, ...]:
        """Steady shares in parts per thousand, in the contract's order."""
        return tuple(round(1000 * self.shares[phase]) for phase in PHASES)


def account(
    observation: Observation, expected_device_hours: float, policy: CheckpointPolicy
) -> Breakdown | Unobservable:
    """The breakdown of an observation, or why there is none."""
    report = observation.report
    plain = next((w for w in report.windows if w.index == 0 and w.is_measured), None)
    if plain is None:
        return Unobservable(sentence=_explain(report))
    forced = next((w for w in report.windows if w.index > 0 and w.is_measured), None)
    return Breakdown(
        knobs=observation.knobs,
        steps=plain.steps,
        wall_s=plain.wall_s,
        step_s=plain.wall_s / plain.steps,
        samples_per_s=plain.samples / plain.wall_s,
        devices=plain.devices,
        shares={phase: plain.share(phase) for phase in PHASES},
        startup_s=plain.startup_s,
        startup_share=_startup_share(plain, expected_device_hours, policy),
        quiet_step_s=plain.quiet_step_s or plain.wall_s / plain.steps,
        saves=_saves(plain, forced),
        loader=plain.loader,
        straggler=plain.straggler if plain.devices > 1 else None,
        cpus=report.cpus,
        peak_mem_mib=plain.peak_mem_mib,
        live=report.live,
        ignored=plain.ignored,
    )


def _saves(plain: Window, forced: Window | None) -> Saves | None:
    """Cost of a save: from the window that saw most of them; None when none was seen."""
    seen = [window.saves for window in (plain, forced) if window is not None and window.saves.count > 0]
    return max(seen, key=lambda saves: saves.count, default=None)


def _startup_share(window: Window, expected_device_hours: float, policy: CheckpointPolicy) -> float:
    """Share of the job's life spent starting: once, and again after every expected interruption."""
    ahead_s = expected_device_hours * 3600 / max(window.devices, 1)
    starts = 1 + ahead_s / policy.interruption_interval_s
    starting_s = starts * window.startup_s
    return starting_s / (starting_s + ahead_s) if ahead_s > 0 else 1.0


_WORDS = {
    WindowOutcome.CRASH: "the training process failed",
    WindowOutcome.OOM: "the training process ran out of memory",
    WindowOutcome.HANG: "the training process stopped making steps",
    WindowOutcome.NO_STEPS: "no optimizer step was seen",
    WindowOutcome.NO_REPORT: "the process ran without reporting",
    WindowOutcome.VOID: "a rank never reported",
    WindowOutcome.SIGNAL: "the run was stopped from outside",
}


def _explain(report: BlockReport) -> str:
    """One sentence for an observation without a measured window."""
    if not report.windows:
        return f"Not observed: {report.why or 'the run left no window'}."
    window = report.windows[0]
    what = _WORDS.get(window.outcome, "nothing was measured")
    code = f", exit code {window.exit_code}" if window.exit_code is not None else ""
    detail = f" ({window.why})" if window.why else ""
    return f"Not observed: {what}{code}{detail}."

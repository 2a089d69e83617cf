"""What does the live view show at one moment?

A pure picture of the latest tick and of the run in progress: phases, class, the experiment under way, its current block
and window, the checks so far, the bank, and a rough estimate of the time left.
"""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.bars import PhaseBar
from amdahl_loop.cli.report import (
    breakdown_of,
    diagnosis_of,
    first_observation,
    own_experiments,
    shape_bank,
    shape_blocks,
    shape_diagnosis,
    shape_experiment,
    shape_observation,
)
from amdahl_loop.cli.screens import changes_text, show_diagnosis, verdict_text
from amdahl_loop.cli.words import block_title, changes_of, clean, device_hours, duration, moment, percent, saved, signed
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.plan import Challenge, Launch, Observe, Snapshot, Wait
from amdahl_loop.domain.runs import Running, RunRequest, RunState
from amdahl_loop.domain.stats import mean
from amdahl_loop.reconcile import Tick

BAR_CELLS = 24


def draw(tick: Tick, state: RunState | None, elapsed_s: float, running_s: float) -> RenderableType:
    """The whole view. `elapsed_s` is since the loop began, `running_s` since the current run was submitted."""
    snapshot, action = tick.snapshot, tick.action
    parts: list[RenderableType] = [_title(snapshot, elapsed_s), *_show_observation(snapshot)]
    closed = [e for e in own_experiments(snapshot) if e.verdict is not None]
    if closed:
        parts += [Text(), *map(_show_closed, closed)]
    if isinstance(action, Launch | Challenge):
        parts += [Text(), *_show_open(action, state, running_s, snapshot)]
    elif isinstance(action, Wait):
        parts += [Text(), *_show_wait(action)]
    elif isinstance(action, Observe):
        parts += [Text(), Text("Observing", "bold"), _show_windows(action.request, state)]
    parts += [Text(), _show_bank(snapshot)]
    return Group(*parts)


def _title(snapshot: Snapshot, elapsed_s: float) -> RenderableType:
    tuning = snapshot.job.spec.tuning
    title = f"{snapshot.job.metadata.name}: {tuning.profile}, {tuning.objective}, {duration(elapsed_s)}"
    return Rule(Text(title, "bold"), align="left", style="dim")


def _show_observation(snapshot: Snapshot) -> list[RenderableType]:
    """Phases and class under the values in force, or the first ones until those are observed."""
    breakdown = breakdown_of(snapshot, snapshot.observation or first_observation(snapshot))
    if breakdown is None:
        return []
    return [
        PhaseBar(shape_observation(breakdown).phases),
        show_diagnosis(shape_diagnosis(diagnosis_of(snapshot, breakdown))),
    ]


def _show_closed(experiment: Experiment) -> RenderableType:
    shaped = shape_experiment(experiment)
    figures = f"  {saved(shaped.effect)}" if shaped.effect is not None else ""
    return Text.assemble(verdict_text(shaped.verdict), f"  {changes_text(shaped)}{figures}")


def _show_open(
    action: Launch | Challenge, state: RunState | None, running_s: float, snapshot: Snapshot
) -> list[RenderableType]:
    plan = action.experiment.plan
    expected = percent(plan.hypothesis.expected_gain)
    hope = f"  expected to save {expected} ({plan.hypothesis.source})"
    what = Text.assemble((changes_of(plan.hypothesis), "bold"), hope)
    block = f"{block_title(plan, action.spec)}, {action.spec.order}"
    left_s = estimate_left_s(action.experiment, action.request, running_s, _startup_s(snapshot))
    is_closed = action.spec.stage is Stage.HOLDOUT
    left = "" if is_closed else f"; about {duration(left_s)} left if it wins"
    return [
        what,
        Text(block),
        _show_windows(action.request, state),
        *_show_effects(action.experiment),
        Text(f"{clean(action.sentence)}{left}", "dim"),
    ]


def _show_wait(action: Wait) -> list[RenderableType]:
    return [
        Text(changes_of(action.experiment.plan.hypothesis), "bold"),
        *_show_effects(action.experiment),
        Text(f"{action.sentence}; next at {moment(action.until_s)}, stop and start again as you like", "dim"),
    ]


def _show_effects(experiment: Experiment) -> list[RenderableType]:
    """What each finished block found, by stage; blocks that do not count are in brackets."""
    found: dict[str, list[str]] = {}
    for block in shape_blocks(experiment):
        if block.stage != Stage.PROOF:
            told = signed(block.effect) if block.effect is not None else "missing"
            found.setdefault(block.stage, []).append(told if block.valid else f"({told})")
    return [Text(f"{stage:<10}{'  '.join(effects)}") for stage, effects in found.items()]


def _show_windows(request: RunRequest, state: RunState | None) -> RenderableType:
    """A bar of finished windows, and which one is measured now once the supervisor has said so."""
    report = state.report if isinstance(state, Running) else None
    told, done = "starting", 0
    if report is not None and report.running_arm is not None and report.running_index is not None:
        told = f"window {report.running_index + 1} of {len(request.windows)} (arm {report.running_arm})"
        done = report.running_index
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=len(request.windows), completed=done, width=BAR_CELLS), Text(told))
    return row


def _show_bank(snapshot: Snapshot) -> RenderableType:
    bank, budget = shape_bank(snapshot), device_hours(snapshot.job.budget_device_hours[0])
    told = f"bank: gross {device_hours(bank.gross)}, spent {device_hours(bank.spent)} (of at most {budget}), "
    return Text(f"{told}net {device_hours(bank.net)} device-hours", "dim")


def _startup_s(snapshot: Snapshot) -> float:
    breakdown = breakdown_of(snapshot, snapshot.observation)
    return breakdown.startup_s if breakdown else 0.0


def estimate_left_s(experiment: Experiment, request: RunRequest, running_s: float, startup_s: float) -> float:
    """Seconds left if the hypothesis wins at the next look: blocks still needed times what one has taken so far."""
    constants = experiment.plan.constants
    finished = [record for record in experiment.blocks if record.spec.stage is not Stage.PROOF]
    counts = {stage: len(experiment.stage_records(stage)) for stage in Stage}
    look = next((n for n in constants.looks if n > counts[Stage.DISCOVERY]), constants.looks[-1])
    is_found = counts[Stage.REFUTE] > 0 or experiment.plan.skip_discovery
    needed = {
        Stage.PROOF: 1 - min(1, counts[Stage.PROOF]),
        Stage.DISCOVERY: 0 if is_found else look - counts[Stage.DISCOVERY],
        Stage.REFUTE: constants.checks * constants.blocks_per_check - counts[Stage.REFUTE],
        Stage.SOAK: constants.soak_blocks - counts[Stage.SOAK],
        Stage.NULL: constants.null_blocks - counts[Stage.NULL],
    }
    launches = 1 if request.live else len(request.windows)
    planned_s = launches * startup_s + sum(window.warmup_s + window.measure_s for window in request.windows)
    typical_s = mean([r.held_device_s for r in finished]) / request.max_devices if finished else planned_s
    begun = {record.spec.check for record in experiment.stage_records(Stage.REFUTE)}
    waits_s = (constants.checks - len(begun)) * constants.check_spacing_s
    return waits_s + max(0.0, sum(max(0, count) for count in needed.values()) * typical_s - running_s)

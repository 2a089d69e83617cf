"""What has just happened, in one line each? The log of a loop, for people without a terminal and for CI.

Derived from successive ticks: a fact is told when the ledger first shows it, so that nothing is told that was not kept.
"""

from amdahl_loop.cli.report import breakdown_of, diagnosis_of, saving
from amdahl_loop.cli.words import block_title, changes_of, clean, moment, percent, saved, step_time
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.evidence import read_block
from amdahl_loop.domain.experiments import BlockRecord, Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.plan import Apply, Challenge, Judge, Launch, Observe, Propose, Rollback, Snapshot, Wait
from amdahl_loop.domain.runs import Running
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.reconcile import Tick


class Chronicle:
    """Turns ticks into lines, each told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._is_resumed: bool | None = None

    def tell(self, tick: Tick) -> tuple[str, ...]:
        """The lines that this tick adds."""
        snapshot = tick.snapshot
        if self._is_resumed is None:
            self._skip_the_past(snapshot)
        lines = [*self._tell_blocks(snapshot), *self._tell_observation(snapshot), *self._tell_action(tick)]
        return tuple(clean(line) for line in lines)

    def _skip_the_past(self, snapshot: Snapshot) -> None:
        """Blocks of an earlier loop are not told again."""
        self._is_resumed = bool(snapshot.experiments)
        for experiment in snapshot.experiments:
            self._told |= {_block_key(experiment.name, record) for record in experiment.blocks}

    def _once(self, key: str) -> bool:
        is_new = key not in self._told
        self._told.add(key)
        return is_new

    def _tell_observation(self, snapshot: Snapshot) -> list[str]:
        observation = snapshot.observation
        if observation is None or not self._once(observation.run):
            return []
        breakdown = breakdown_of(snapshot, observation)
        if breakdown is None:
            return []
        diagnosis = diagnosis_of(snapshot, breakdown)
        return [f"observed {_facts(breakdown, observation)}", f"{diagnosis.bottleneck}: {diagnosis.sentence}"]

    def _tell_blocks(self, snapshot: Snapshot) -> list[str]:
        return [
            f"  {block_title(experiment.plan, record.spec)}: {_finding(experiment.plan, record)}"
            for experiment in snapshot.experiments
            for record in experiment.blocks
            if self._once(_block_key(experiment.name, record))
        ]

    def _tell_action(self, tick: Tick) -> list[str]:
        action, snapshot = tick.action, tick.snapshot
        match action:
            case Observe() if isinstance(tick.run, Running) and self._once(f"run {action.request.run}"):
                return [f"observing {snapshot.job.metadata.name} with {_knobs(snapshot.knobs)}"]
            case Propose():
                rationale = action.plan.hypothesis.rationale
                return [f"trying {changes_of(action.plan.hypothesis)}: {rationale}", f"  {action.worth.sentence}"]
            case Launch() | Challenge() if isinstance(tick.run, Running) and self._once(f"run {action.request.run}"):
                title = block_title(action.experiment.plan, action.spec)
                return [f"  {title} ({action.spec.order}): {action.sentence}"]
            case Wait() if self._once(f"wait {action.until_s}"):
                return [f"  {action.sentence}; next at {moment(action.until_s)}, stop and start again as you like"]
            case Judge():
                question = changes_of(action.experiment.plan.hypothesis)
                return [f"{action.verdict.word}: {question}: {action.verdict.sentence}"]
            case Apply():
                return [f"in force: {_knobs(action.knobs)}"]
            case Rollback():
                return [f"taken back: {_knobs(action.knobs)} again; {action.sentence}"]
            case _:
                return []


def _block_key(experiment: str, record: BlockRecord) -> str:
    return f"block {experiment}/{record.spec.name}"


def _finding(plan: Plan, record: BlockRecord) -> str:
    evidence = read_block(plan, record)
    if evidence.is_measured:
        return saved(saving(evidence.effect))
    if record.spec.stage is Stage.PROOF and not evidence.problem:
        return "ran"
    return f"not measured: {evidence.problem or 'no report'}"


def _facts(breakdown: Breakdown, observation: Observation) -> str:
    parts = [f"{phase} {percent(share)}" for phase, share in breakdown.shares.items() if share >= 0.005]
    parts.sort(key=lambda part: not part.startswith(Phase.COMPUTE))
    return f"{_knobs(observation.knobs)}: {step_time(breakdown.step_s)} a step; {', '.join(parts)}"


def _knobs(knobs: Knobs) -> str:
    return ", ".join(f"{knob} {str(value).lower()}" for knob, value in knobs.declared().items()) or "no knob"

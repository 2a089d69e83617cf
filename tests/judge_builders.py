"""Builders of plans, windows, blocks and whole experiments for tests of the judge.

`Bench` answers every need of the judge with synthetic blocks, so a test says only what the arms cost and what goes wrong.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amdahl_loop.domain import judge
from amdahl_loop.domain.blocks import BlockSpec, Stage, enumerate_blocks
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName, Knobs, KnobValue
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import Arm, BlockReport, Phase, Window, WindowOutcome
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.verdicts import Verdict

SHARES_PPK = (0, 0, 0, 600, 380, 0, 0, 0, 20)


def make_constants(profile: ProfileName = ProfileName.QUICK, **changes: Any) -> Constants:
    """A profile's constants with some changed."""
    return PROFILES[profile].model_copy(update=changes)


def make_plan(
    constants: Constants | None = None,
    knob: KnobName = KnobName.DATALOADER_WORKERS,
    before: KnobValue = 0,
    after: KnobValue = 2,
    expected_gain: float = 0.2,
    others: dict[KnobName, KnobValue] | None = None,
    seed: int = 7,
    **changes: Any,
) -> Plan:
    """A plan that changes one knob; `others` are knobs that both arms share."""
    constants = constants or make_constants()
    baseline = Knobs().with_values({**(others or {}), knob: before})
    plan: dict[str, Any] = {
        "name": "job-e1",
        "job": "job",
        "job_uid": "uid",
        "fingerprint": "f" * 16,
        "family": "a" * 16,
        "hypothesis": Hypothesis(
            changes=(Change(knob=knob, before=before, after=after),),
            phase=Phase.INPUT,
            expected_gain=expected_gain,
            source=Source.RULE,
            rationale="the loop waits for data",
        ),
        "baseline": baseline,
        "variant": baseline.with_values({knob: after}),
        "objective": Objective.DEVICE_HOURS,
        "max_slowdown": 1.05,
        "constants": constants,
        "live": True,
        "interruption_interval_s": 86400.0,
        "max_lost_work_s": 1800.0,
        "device_hours_ahead": 200.0,
        "baseline_shares_ppk": SHARES_PPK,
        "seed": seed,
    } | changes
    plan.setdefault("blocks", enumerate_blocks(seed, constants, plan.get("skip_discovery", False)))
    return Plan(**plan)


def make_window(arm: Arm, index: int, step_s: float = 0.05, steps: int = 40, **changes: Any) -> Window:
    """A measured window of `steps` steps of 16 samples on one device."""
    window: dict[str, Any] = {
        "arm": arm,
        "index": index,
        "outcome": WindowOutcome.OK,
        "steps": steps,
        "samples": 16 * steps,
        "devices": 1,
        "wall_s": step_s * steps,
        "phases_ppk": SHARES_PPK,
        "shape": "0badf00d",
        "elements_per_sample": 64.0,
        "distinct_ppk": 1000,
        "sample_ids": "00000001",
        "losses": "00000002",
        "loss_mean": 2.5,
        "quiet_step_s": step_s,
        "peak_mem_mib": 800,
        "offset_applied": True,
    }
    return Window(**(window | changes))


def make_lost_window(arm: Arm, index: int, outcome: WindowOutcome) -> Window:
    """A window that ended without a measurement."""
    return Window(arm=arm, index=index, outcome=outcome)


def make_report(plan: Plan, spec: BlockSpec, windows: tuple[Window, ...], **changes: Any) -> BlockReport:
    """A finished report of a block."""
    return BlockReport(**({"run": plan.run_name(spec), "state": "done", "live": True, "windows": windows} | changes))


def make_record(
    plan: Plan, spec: BlockSpec, windows: tuple[Window, ...] = (), node: str = "n0", **changes: Any
) -> BlockRecord:
    """The record of a block; it starts by its place in the plan, checks at the plan's distance."""
    spacing_s = plan.constants.check_spacing_s
    waits = {Stage.REFUTE: spec.check + 1, Stage.SOAK: plan.constants.checks, Stage.NULL: plan.constants.checks}
    record: dict[str, Any] = {
        "spec": spec,
        "node": node,
        "started_at_s": 1000.0 + 60.0 * plan.blocks.index(spec) + waits.get(spec.stage, 0) * spacing_s,
        "held_device_s": 12.0,
        "report": make_report(plan, spec, windows) if windows else None,
    }
    return BlockRecord(**(record | changes))


Tweak = Callable[[BlockSpec, Window], Window]
Replace = Callable[[Plan, BlockSpec, BlockRecord], BlockRecord]


def untouched(_spec: BlockSpec, window: Window) -> Window:
    """The window as it is."""
    return window


def as_recorded(_plan: Plan, _spec: BlockSpec, record: BlockRecord) -> BlockRecord:
    """The record as it is."""
    return record


@dataclass
class Bench:
    """Plays the machine: runs whatever block the judge asks for.

    `gain` is the variant's true saving; `noise` the standard deviation of a window's log cost. `tweak` changes a window,
    `replace` a whole record, after they were built.
    """

    plan: Plan
    gain: float = 0.0
    noise: float = 0.01
    seed: int = 1
    tweak: Tweak = untouched
    replace: Replace = as_recorded
    label_gain: float = 0.0
    asked: list[str] = field(default_factory=list)

    def run(self, spec: BlockSpec) -> BlockRecord:
        """One finished block."""
        draws = random.Random(f"{self.seed}:{spec.name}")
        windows = []
        for index, (ran, label) in enumerate(zip(spec.order, spec.labels, strict=True)):
            log_step = math.log(0.05) + (0.0 if spec.stage is Stage.PROOF else draws.gauss(0, self.noise))
            log_step += math.log1p(-self.gain) * (ran == "B") + math.log1p(-self.label_gain) * (label == "B")
            windows.append(self.tweak(spec, make_window(Arm(label), index, step_s=math.exp(log_step))))
        return self.replace(self.plan, spec, make_record(self.plan, spec, tuple(windows)))

    def carry_through(self, most: int = 200) -> Verdict:
        """Ask, run, ask again until the judge has spoken."""
        verdict = self.close(most).verdict
        assert verdict is not None
        return verdict

    def close(self, most: int = 200) -> Experiment:
        """The experiment with all blocks that the judge has asked for, and its verdict."""
        experiment = Experiment(plan=self.plan)
        for _ in range(most):
            said = judge.assess(experiment)
            if isinstance(said, judge.Closed):
                return experiment.model_copy(update={"verdict": said.verdict})
            spec = said.specs[0]
            self.asked.append(spec.name)
            experiment = experiment.with_block(self.run(spec))
        raise AssertionError(f"no verdict after {most} blocks: {self.asked}")

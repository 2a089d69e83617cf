"""Which blocks does the judge get to see? Synthetic windows of true and of deceitful variants, on modelled machines.

`run_experiment` plays one experiment against the production judge: it runs whatever block `judge.assess` asks for.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from noise import DAY_S, Noise, Place, window_pool

from amdahl_loop.domain import judge, refute
from amdahl_loop.domain.blocks import BlockSpec, Stage, enumerate_blocks
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.telemetry import Arm, BlockReport, Phase, Window, WindowOutcome
from amdahl_loop.domain.tuning import Objective
from amdahl_loop.domain.verdicts import Verdict

BATCH = 16
PLANS = 400
"""Coins and seeds are drawn from this many plans; more would only cost time."""


@dataclass(frozen=True)
class Variant:
    """A true saving, or a false win of a named kind."""

    gain: float = 0.0
    kind: str = "plain"


@dataclass(frozen=True)
class Setting:
    """Where experiments run: noise, profile, live or fresh launches, and whether each check gets another node."""

    noise: Noise
    constants: Constants
    live: bool = False
    other_nodes: bool = True
    horizon_s: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """A verdict, the blocks that it took per stage, and the seconds of machine time."""

    verdict: Verdict
    blocks: int
    held_s: float


class World:
    """One experiment's machines. Where the plan spaces its checks, each check and the soak find a place anew."""

    def __init__(self, rng: np.random.Generator, setting: Setting, variant: Variant, plan: Plan) -> None:
        self.rng, self.setting, self.variant, self.plan = rng, setting, variant, plan
        self.held_s = 0.0
        self.places = {"home": Place(rng, setting.noise, rng.uniform(0, DAY_S), "home")}

    def run(self, experiment: Experiment, spec: BlockSpec) -> BlockRecord:
        """The finished block of an experiment."""
        if spec.stage is Stage.PROOF:
            return proof_record(self.plan, spec)
        name = self._place_name(spec)
        place = self.places[name] if name in self.places else self._take_place(name, experiment, spec)
        started_s, before_s = place.time_of_day_s + place.elapsed_s, place.elapsed_s
        windows = self.run_windows(spec, place)
        held_s = place.elapsed_s - before_s
        self.held_s += held_s
        report = BlockReport(run=self.plan.run_name(spec), state="done", live=self.setting.live, windows=windows)
        return BlockRecord(
            spec=spec, node=place.node, started_at_s=DAY_S + started_s, held_device_s=held_s, report=report
        )

    def _place_name(self, spec: BlockSpec) -> str:
        if not self.setting.constants.check_spacing_s or spec.stage in (Stage.DISCOVERY, Stage.NULL):
            return "home"
        return f"check{spec.check}" if spec.stage is Stage.REFUTE else "soak"

    def _take_place(self, name: str, experiment: Experiment, spec: BlockSpec) -> Place:
        """A check comes when the plan says; the soak follows the last of them, on the home node."""
        home = self.places["home"]
        due_s = refute.due_at_s(experiment, spec) or experiment.blocks[-1].started_at_s
        start_s = due_s - DAY_S + self.rng.uniform(0, 60)
        elsewhere = self.setting.other_nodes and spec.stage is Stage.REFUTE
        self.places[name] = Place(self.rng, self.setting.noise, start_s, name) if elsewhere else home.later(start_s)
        return self.places[name]

    def run_windows(self, spec: BlockSpec, place: Place) -> tuple[Window, ...]:
        """The four windows of a block on a node."""
        constants, noise = self.setting.constants, self.setting.noise
        soak = spec.stage is Stage.SOAK
        measured_s = constants.soak_window_s if soak else constants.window_s
        steps = max(constants.min_steps, round(measured_s / noise.step_s))
        pool = window_pool(noise, steps)
        launch = self.rng.standard_normal() * noise.launch_sd
        windows = []
        for index, (ran, label) in enumerate(zip(spec.order, spec.labels, strict=True)):
            relaunched = index == 0 or not self.setting.live
            warmup_s = constants.launch_warmup_s if relaunched else constants.switch_warmup_s
            warmup_s = constants.soak_warmup_s if soak else warmup_s
            if relaunched and index:
                launch = self.rng.standard_normal() * noise.launch_sd
            start_s, end_s = place.elapsed_s + warmup_s, place.elapsed_s + warmup_s + measured_s
            log_step = place.shift(start_s, end_s) + launch + pool[self.rng.integers(len(pool))]
            if relaunched:
                log_step += _mean_decay(*noise.launch, warmup_s, measured_s)
            log_step += self._effect(spec, place, ran == "B", label == "B", warmup_s, start_s)
            windows.append(make_window(label, index, steps, noise.step_s * math.exp(log_step)))
            place.elapsed_s = end_s
        return tuple(windows)

    def _effect(
        self, spec: BlockSpec, place: Place, is_variant: bool, is_labelled: bool, since_s: float, at_s: float
    ) -> float:
        kind = self.variant.kind
        flattery = math.log(0.96) if kind == "harness" and is_labelled else 0.0
        if not is_variant:
            return flattery
        effect = math.log1p(-self.variant.gain) + place.effect_shift + flattery
        if kind == "horizon":
            effect += -0.06 if since_s < self.setting.horizon_s else 0.01
        elif kind == "day":
            phase = math.sin(2 * math.pi * (place.time_of_day_s + at_s) / DAY_S + 1.0)
            effect += -0.06 if phase > 0 else 0.06
        elif kind == "flaky":
            effect += 0.26 if self.rng.random() < 0.2 else -0.06
        elif kind == "shard":
            effect += -0.06 if spec.stage in (Stage.DISCOVERY, Stage.SOAK) else 0.012
        return effect


def run_experiment(rng: np.random.Generator, setting: Setting, variant: Variant) -> Outcome:
    """Carry one experiment to its verdict."""
    plan = make_plan(setting.constants, setting.live, int(rng.integers(PLANS)))
    world = World(rng, setting, variant, plan)
    experiment = Experiment(plan=plan)
    while True:
        said = judge.assess(experiment)
        if isinstance(said, judge.Closed):
            return Outcome(said.verdict, len(experiment.blocks), world.held_s)
        specs = said.specs if isinstance(said, judge.NeedBlocks) and said.stage is Stage.DISCOVERY else said.specs[:1]
        for spec in specs:
            experiment = experiment.with_block(world.run(experiment, spec))


@lru_cache(maxsize=4 * PLANS)
def make_plan(constants: Constants, live: bool, seed: int) -> Plan:
    """A plan for a loader knob; only its seed differs from trial to trial."""
    return Plan(
        name="bench-e",
        job="bench",
        job_uid="bench",
        fingerprint="bench",
        family="bench",
        hypothesis=Hypothesis(
            changes=(Change(knob=KnobName.DATALOADER_WORKERS, before=0, after=2),),
            phase=Phase.INPUT,
            expected_gain=0.1,
            source=Source.RULE,
            rationale="simulated",
        ),
        baseline=Knobs(dataloader_workers=0),
        variant=Knobs(dataloader_workers=2),
        objective=Objective.DEVICE_HOURS,
        max_slowdown=1.05,
        constants=constants,
        live=live,
        interruption_interval_s=DAY_S,
        max_lost_work_s=1800.0,
        device_hours_ahead=200.0,
        seed=seed,
        blocks=enumerate_blocks(seed, constants),
    )


def make_window(arm: str, index: int, steps: int, step_s: float) -> Window:
    """A window in which everything but the time is as it should be."""
    return Window(
        arm=Arm(arm),
        index=index,
        outcome=WindowOutcome.OK,
        steps=steps,
        samples=BATCH * steps,
        devices=1,
        wall_s=steps * step_s,
        phases_ppk=(0, 0, 0, 500, 500, 0, 0, 0, 0),
        shape="00000000",
        elements_per_sample=64.0,
        distinct_ppk=1000,
        sample_ids="00000000",
        losses="00000000",
        loss_mean=1.0,
        peak_mem_mib=1000,
        offset_applied=True,
    )


def proof_record(plan: Plan, spec: BlockSpec) -> BlockRecord:
    """Both arms do the same work: this simulation is about time alone."""
    windows = tuple(make_window(arm, i, plan.constants.proof_steps, 0.1) for i, arm in enumerate(spec.labels))
    report = BlockReport(run=plan.run_name(spec), state="done", windows=windows)
    return BlockRecord(spec=spec, node="home", started_at_s=0.0, held_device_s=0.0, report=report)


def _mean_decay(size: float, memory_s: float, since_s: float, length_s: float) -> float:
    """Mean of size * exp(-t / memory) over a window that begins `since_s` after the launch."""
    return size * memory_s / length_s * (math.exp(-since_s / memory_s) - math.exp(-(since_s + length_s) / memory_s))

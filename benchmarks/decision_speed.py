"""How long does one decision take on a long memory? Run `python benchmarks/decision_speed.py [EXPERIMENTS]`.

One job remembers thousands of closed experiments with their blocks, all of its own fingerprint. `next_action` is timed
where it thinks most: nothing is open, so that it diagnoses, proposes, screens and finds every idea settled; and in the
middle of an experiment, where it judges afresh. Timed is the processor time of the deciding thread.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "judge"))

import numpy as np
from noise import LIVE
from world import Setting, Variant, World, make_plan, make_window

from amdahl_loop.domain import judge
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.hypotheses import Change
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.ledger import JobMemory, Observation
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.plan import Action, Snapshot, next_action
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import BlockReport, Loader
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord

CALLS = 40
BAR_MS = 10.0
BLOCKS_OPEN = 8
NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="no gain", reason="below_floor")


def main() -> int:
    """Build the memory, time both cases, print a line each."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    job = make_job()
    begun = play(BLOCKS_OPEN)
    closed = begun.with_verdict(NO_GAIN)
    memory = [settle(closed, number) for number in range(wanted)]
    observation = observe(job)
    idle = remember(job, observation, memory)
    busy = remember(job, observation, [*memory, begun])
    worst = max(
        report(f"{wanted:,} experiments, nothing open", lambda: next_action(idle)),
        report(f"{wanted:,} experiments and one open", lambda: next_action(busy)),
    )
    return 0 if worst <= BAR_MS else 1


def make_job() -> TrainingJob:
    """A job whose loader may be changed, with bounds that leave a handful of ideas."""
    container = {"name": "trainer", "command": ["python", "train.py"]}
    return parse_training_job(
        {
            "apiVersion": "amdahl-loop.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "bench", "uid": "bench"},
            "spec": {
                "knobs": {"dataloaderWorkers": 0},
                "template": {"spec": {"containers": [container]}},
                "tuning": {"profile": "quick", "budget": {"deviceHours": "1000000"}},
            },
        }
    )


def play(blocks: int) -> Experiment:
    """An experiment with so many blocks, still open."""
    plan = make_plan(PROFILES[ProfileName.QUICK], live=True, seed=0)
    world = World(np.random.default_rng(0), Setting(LIVE, plan.constants, live=True), Variant(0.2), plan)
    experiment = Experiment(plan=plan)
    while len(experiment.blocks) < blocks:
        said = judge.assess(experiment)
        if isinstance(said, judge.Closed):
            return experiment
        experiment = experiment.with_block(world.run(experiment, said.specs[0]))
    return experiment


def settle(experiment: Experiment, number: int) -> Experiment:
    """The same experiment under another name and question; the first ones ask what the rules would propose now."""
    plan = experiment.plan
    change = Change(knob=KnobName.DATALOADER_WORKERS, before=0, after=1 + number % 256)
    hypothesis = plan.hypothesis.model_copy(update={"changes": (change,)})
    renamed = plan.model_copy(update={"name": f"bench-{number}", "hypothesis": hypothesis})
    return experiment.model_copy(update={"plan": renamed})


def observe(job: TrainingJob) -> Observation:
    """The job waits for its loader."""
    window = make_window("A", 0, 40, 0.1).model_copy(
        update={"phases_ppk": (0, 0, 0, 500, 480, 0, 0, 0, 20), "loader": Loader(batch_s=0.09, cv=0.1)}
    )
    report = BlockReport(run="bench-o0", state="done", cpus=8, windows=(window,))
    return Observation(
        run="bench-o0", at_s=1.0, fingerprint="bench", job=job, knobs=job.spec.knobs, report=report, held_device_s=10.0
    )


def remember(job: TrainingJob, observation: Observation, experiments: list[Experiment]) -> Snapshot:
    """A snapshot with everything in memory."""
    closed_at_s = {experiment.name: 1.0 for experiment in experiments if experiment.verdict}
    memory = JobMemory(observations=(observation,), experiments=tuple(experiments), closed_at_s=closed_at_s)
    return Snapshot(job=job, job_uid="bench", fingerprint="bench", family="bench", memory=memory, now_s=2.0)


def report(what: str, decide: Callable[[], Action]) -> float:
    """Print the median and the worst of some calls; returns the median in milliseconds."""
    times_ms = []
    for _ in range(CALLS):
        begun_s = time.thread_time()
        action = decide()
        times_ms.append(1000 * (time.thread_time() - begun_s))
    median_ms = statistics.median(times_ms)
    print(f"{what}: {median_ms:.2f} ms median, {max(times_ms):.2f} ms worst of {CALLS}: {type(action).__name__}")
    return median_ms


if __name__ == "__main__":
    sys.exit(main())

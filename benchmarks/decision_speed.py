"""How long does one decision take on a long memory? Run `python benchmarks/decision_speed.py [EXPERIMENTS] [--ledger]`.

One job remembers thousands of closed experiments with their blocks, all of its own fingerprint. `next_action` is timed
where it thinks most: nothing is open, so that it diagnoses, proposes and screens, with every idea settled and with a
fresh one; and in the middle of an experiment, where it judges afresh. Each is timed on a memory that it has seen before
(nothing new), and on a new one (after a record). `--ledger` times whole passes on a ledger in a file: recall and
decision. Timed is the processor time of the deciding thread.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "judge"))

import numpy as np
from noise import LIVE
from world import Setting, Variant, World, make_plan, make_window

from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import EXPORT_VERSION, Body, Closed, Measured, Observed, entry_of
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

JOB = "bench"
"""UID, fingerprint and family."""
CALLS = 40
BAR_MS = 10.0
BLOCKS_OPEN = 8
NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="no gain", reason="below_floor")


def main() -> int:
    """Build the memories, time each case, print a line each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("experiments", type=int, nargs="?", default=10_000)
    arguments.add_argument("--ledger", action="store_true", help="time whole passes on a ledger in a file, too")
    options = arguments.parse_args()
    wanted: int = options.experiments
    job, begun = make_job(), play(BLOCKS_OPEN)
    closed = begun.with_verdict(NO_GAIN)
    settled = [settle(closed, number, KnobName.DATALOADER_WORKERS) for number in range(wanted)]
    others = [settle(closed, number, KnobName.PREFETCH_FACTOR) for number in range(wanted)]
    worst = 0.0
    for what, experiments in (
        (f"{wanted:,} experiments, every idea settled", settled),
        (f"{wanted:,} experiments, a fresh idea", others),
        (f"{wanted:,} experiments, one open", [*settled, begun]),
    ):
        memory = remember(job, experiments)
        worst = max(worst, report(f"{what}, nothing new", job, [memory] * CALLS))
        worst = max(worst, report(f"{what}, after a record", job, [memory.model_copy() for _ in range(CALLS)]))
    if options.ledger:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(time_passes(Path(folder) / "ledger.db", job, settled, begun))
    return 0 if worst <= BAR_MS else 1


async def time_passes(path: Path, job: TrainingJob, settled: list[Experiment], begun: Experiment) -> None:
    """Recall from a file and decide: when it was just opened, after each record, and when nothing is new.

    Of each closed experiment one block is in the file: it is read only when the file is opened.
    """
    with SqliteLedger.open(path) as ledger:
        ledger.import_lines(export(job, settled))
    begun_s = time.thread_time()
    with SqliteLedger.open(path) as ledger:
        print(f"a ledger of {len(settled):,} experiments: opened in {time.thread_time() - begun_s:.1f} s")

        async def measure() -> tuple[float, float]:
            begun_s = time.thread_time()
            memory = await ledger.recall(JOB, JOB, JOB)
            recalled_s = time.thread_time()
            decide(job, memory)
            return 1000 * (recalled_s - begun_s), 1000 * (time.thread_time() - recalled_s)

        print("first pass: recall {:.1f} ms, decision {:.1f} ms".format(*await measure()))
        await ledger.add_plan(begun.plan)
        fresh, idle = [], []
        for block in begun.blocks:
            await ledger.add_block(begun.name, block)
            fresh.append(await measure())
            idle.append(await measure())
        for what, times in (("after a record", fresh), ("nothing new", idle)):
            recall_ms, decision_ms = (statistics.median(part) for part in zip(*times, strict=True))
            print(f"pass {what}: recall {recall_ms:.1f} ms, decision {decision_ms:.1f} ms, medians of {len(times)}")


def export(job: TrainingJob, settled: list[Experiment]) -> list[str]:
    """The lines of an exported ledger."""
    bodies: list[Body] = [Observed(job_uid=JOB, observation=observe(job))]
    for experiment in settled:
        bodies += [experiment.plan, Measured(experiment=experiment.name, record=experiment.blocks[0])]
        bodies.append(Closed(experiment=experiment.name, at_s=1.0, verdict=NO_GAIN))
    head, lines = "", []
    for body in bodies:
        entry = entry_of(body)
        head = entry.hash_after(head)
        lines.append(json.dumps({"kind": entry.kind, "body": entry.body, "hash": head}))
    return [json.dumps({"v": EXPORT_VERSION, "entries": len(lines), "head": head}), *lines]


def make_job() -> TrainingJob:
    """A job whose loader may be changed, with bounds that leave a handful of ideas."""
    container = {"name": "trainer", "command": ["python", "train.py"]}
    return parse_training_job(
        {
            "apiVersion": "amdahl-loop.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "bench", "uid": JOB},
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


def settle(experiment: Experiment, number: int, knob: KnobName) -> Experiment:
    """The same experiment under another name and question; on loader workers, those of the rules."""
    plan = experiment.plan
    change = Change(knob=knob, before=0, after=1 + number % 256)
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
        run="bench-o0", at_s=1.0, fingerprint=JOB, job=job, knobs=job.spec.knobs, report=report, held_device_s=10.0
    )


def remember(job: TrainingJob, experiments: list[Experiment]) -> JobMemory:
    """A memory of all of them, and of an observation of the job."""
    closed_at_s = {experiment.name: 1.0 for experiment in experiments if experiment.verdict}
    return JobMemory(observations=(observe(job),), experiments=tuple(experiments), closed_at_s=closed_at_s)


def decide(job: TrainingJob, memory: JobMemory) -> Action:
    """The next action for the job."""
    return next_action(Snapshot(job=job, job_uid=JOB, fingerprint=JOB, family=JOB, memory=memory, now_s=2.0))


def report(what: str, job: TrainingJob, memories: list[JobMemory]) -> float:
    """Print the median and the worst decision on so many memories; returns the median in milliseconds."""
    times_ms = []
    for memory in memories:
        begun_s = time.thread_time()
        action = decide(job, memory)
        times_ms.append(1000 * (time.thread_time() - begun_s))
    median_ms = statistics.median(times_ms)
    print(f"{what}: {median_ms:.2f} ms median, {max(times_ms):.2f} ms worst of {CALLS}: {type(action).__name__}")
    return median_ms


if __name__ == "__main__":
    sys.exit(main())

"""What is true of each scenario and trap: its class, the right knob, the right way, the right verdict?

The truth is by construction of the script in `jobs/`; the sweep measures it once more from outside. Scenarios are made
for two CPUs; on a larger machine the runner holds everything to two of them.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOBS = HERE / "jobs"
CPUS = 2
"""CPUs that a scenario sees: crowding and contention are meant for this number."""


class Direction(StrEnum):
    """Which way the right knob goes."""

    UP = "more"
    DOWN = "fewer"
    OFF = "no"
    ON = "with"
    WHOLE = "whole"
    KEEP = "no change"


@dataclass(frozen=True)
class Sweep:
    """Values of one knob to be measured from outside; `interval_s` is the time between interruptions for a cadence.

    `steps` is the program's own option for the number of its steps.
    """

    variable: str
    values: tuple[int | str, ...]
    interval_s: float | None = None
    steps: str = "--steps"


@dataclass(frozen=True)
class Scenario:
    """A job with one bottleneck, and what the loop should make of it. No knob: nothing should change."""

    name: str
    bottleneck: str
    knob: str | None
    direction: Direction
    max_trials: int = 10
    sweep: Sweep | None = None

    @property
    def manifest(self) -> str:
        """The scenario's manifest in `jobs/`."""
        return (JOBS / f"{self.name}.yaml").read_text()


@dataclass(frozen=True)
class Trap:
    """A variant that only looks better (or, once, really is), with the verdicts that are right and their reasons.

    An experiment that was never opened cannot be won either: `may_stay_closed` says where that is right as well.
    """

    name: str
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    template: str = "trap"
    neighbour: bool = False
    may_stay_closed: bool = False

    @property
    def manifest(self) -> str:
        """The common manifest with the trap's name filled in."""
        return (JOBS / f"{self.template}.yaml").read_text().replace("TRAP", self.name)


SCENARIOS = (
    Scenario(
        "serial-loader",
        "InputBound",
        "dataloaderWorkers",
        Direction.UP,
        sweep=Sweep("AMDAHL_DATALOADER_WORKERS", (0, 1, 2)),
    ),
    Scenario(
        "heavy-tailed-loader",
        "InputBound",
        "prefetchFactor",
        Direction.UP,
        sweep=Sweep("AMDAHL_PREFETCH_FACTOR", (1, 4, 16, 32)),
    ),
    Scenario(
        "saving-too-often",
        "CheckpointBound",
        "checkpointEverySteps",
        Direction.UP,
        sweep=Sweep("AMDAHL_CHECKPOINT_EVERY_STEPS", (5, 50, 500, 2_000, 5_000, 20_000), interval_s=86_400),
    ),
    Scenario(
        "saving-too-rarely",
        "CheckpointBound",
        "checkpointEverySteps",
        Direction.DOWN,
        sweep=Sweep("AMDAHL_CHECKPOINT_EVERY_STEPS", (20_000, 5_000, 2_000, 1_000, 500, 250, 100), interval_s=600),
    ),
    Scenario("compute-bound", "ComputeBound", None, Direction.KEEP, max_trials=0),
    Scenario(
        "crowded-processes",
        "Oversized",
        "gpusPerReplica",
        Direction.DOWN,
        sweep=Sweep("AMDAHL_GPUS_PER_REPLICA", (4, 3, 2)),
    ),
    Scenario("scaling-processes", "ComputeBound", None, Direction.KEEP),
    Scenario(
        "too-many-workers",
        "InputBound",
        "dataloaderWorkers",
        Direction.DOWN,
        sweep=Sweep("AMDAHL_DATALOADER_WORKERS", (8, 4, 2, 1)),
    ),
    Scenario("rank-straggler", "Straggler", None, Direction.KEEP),
    Scenario("startup-bound", "StartupBound", None, Direction.KEEP, max_trials=0),
    Scenario(
        "short-passes",
        "ComputeBound",
        "microBatch",
        Direction.UP,
        sweep=Sweep("AMDAHL_MICRO_BATCH", (1, 2, 4, 8, 16), steps="--run.max_steps"),
    ),
    Scenario(
        "crowded-ranks",
        "Oversized",
        "gpusPerReplica",
        Direction.DOWN,
        sweep=Sweep("AMDAHL_GPUS_PER_REPLICA", (4, 2, 1), steps="--run.max_steps"),
    ),
    Scenario(
        "computed-twice",
        "ComputeBound",
        "activationCheckpointing",
        Direction.OFF,
        sweep=Sweep("AMDAHL_ACTIVATION_CHECKPOINTING", ("block", "selective", "none"), steps="--run.max_steps"),
    ),
    Scenario(
        "small-kernels",
        "ComputeBound",
        "compile",
        Direction.ON,
        sweep=Sweep("AMDAHL_COMPILE", (0, 1), steps="--run.max_steps"),
    ),
    Scenario(
        "held-in-pieces",
        "CommBound",
        "dataParallel",
        Direction.WHOLE,
        sweep=Sweep("AMDAHL_DATA_PARALLEL", ("fsdp", "ddp"), steps="--run.max_steps"),
    ),
    Scenario(
        "small-messages",
        "CommBound",
        "bucketMb",
        Direction.UP,
        sweep=Sweep("AMDAHL_BUCKET_MB", (1, 25, 100), steps="--run.max_steps"),
    ),
)

TRAPS = (
    Trap("no-op", ("NoGain",)),
    Trap("no-op-cadence", ("Inconclusive", "Vetoed", "NoGain"), template="trap-cadence"),
    Trap("cold-cache", ("NoGain", "Inconclusive"), may_stay_closed=True),
    Trap("neighbour-load", ("Refuted", "Inconclusive"), neighbour=True),
    Trap("smaller-batch", ("Vetoed",), ("work",)),
    Trap("repeated-samples", ("Vetoed",), ("work", "quality")),
    Trap("shortened-samples", ("Vetoed",), ("work",)),
    Trap("one-shard", ("Inconclusive", "NoGain"), ("not_representative", "below_floor")),
    Trap("crash", ("Vetoed",), ("variant_crash",)),
    Trap("out-of-memory", ("Vetoed",), ("variant_oom",)),
    Trap("slow-clock", ("Vetoed",), ("meter",)),
    Trap("counts-twice", ("Vetoed",), ("work", "meter")),
    Trap("forged-records", ("Vetoed", "Inconclusive"), ("meter", "work", "variant_missing")),
    Trap("lost-metrics", ("Vetoed", "Inconclusive"), ("variant_missing", "meter")),
    Trap("augmentation", ("Won",)),
)

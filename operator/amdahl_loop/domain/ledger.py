"""What is remembered, and what follows from it?

Observations, experiments and applications are facts; everything else here is derived from them by folding, so that a
cold restart and a replay see the same truth. Verdicts are keyed by (fingerprint, change): never paid for twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.hypotheses import Hypothesis
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import BlockReport, Seconds
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import VerdictWord

INCONCLUSIVE_RETRY_S = 14 * 86400.0
"""An inconclusive question may be asked again after this long (research 1.4)."""

MAX_FAILING = 500


class Observation(Frozen):
    """One observed run of the job itself."""

    run: str
    at_s: float
    fingerprint: str
    job: TrainingJob
    """The job as declared, without the values of its environment: what a replay needs, and no secret."""
    knobs: Knobs
    report: BlockReport
    held_device_s: Seconds

    @property
    def is_usable(self) -> bool:
        """Whether the job itself was measured."""
        return any(window.index == 0 and window.is_measured for window in self.report.windows)


class ApplicationKind(StrEnum):
    """What happened to knob values outside an experiment."""

    APPLIED = "applied"
    ROLLED_BACK = "rolledBack"
    REVERTED = "reverted"


class Application(Frozen):
    """Knob values that took effect, and why."""

    job: str
    job_uid: str
    fingerprint: str
    at_s: float
    kind: ApplicationKind
    experiment: str
    declared: Knobs
    """What the manifest said at the time: another value later is its owner's word, and counts."""
    knobs: Knobs
    failing: Annotated[str, Field(max_length=MAX_FAILING)] = ""
    """What was reported of the job itself, where that is why the values were taken back."""


class JobMemory(Frozen):
    """Everything that the ledger knows and that may matter to one job."""

    observations: tuple[Observation, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    """Of this job or of its fingerprint, oldest first."""
    closed_at_s: Mapping[str, float] = Field(default_factory=dict)
    applications: tuple[Application, ...] = ()
    family: tuple[Experiment, ...] = ()
    """Closed experiments of the same family under other fingerprints: past wins and failed transfers."""


def fingerprint_job(job: TrainingJob, device_type: str, code: str = "") -> str:
    """Identity of the work: image, command, non-knob environment, device type, world shape; 16 hex digits.

    `code` is a digest of the program where no image holds it: locally, files may change under the same command.
    """
    trainer = job.spec.template.trainer
    environment = sorted(f"{variable.name}={variable.value}" for variable in trainer.env)
    shape = f"{job.spec.replicas}"
    command = [*trainer.command, *trainer.args]
    return hash_text(trainer.image, *command, "env", *environment, "device", device_type, shape, code)[:16]


def family_of(job: TrainingJob) -> str:
    """Looser kin for transfer: image repository and the command without its options' values; 16 hex digits."""
    trainer = job.spec.template.trainer
    name = trainer.image.split("@")[0]
    repository = name.rsplit(":", 1)[0] if ":" in name.rsplit("/", 1)[-1] else name
    words = [word.split("=")[0] for word in (*trainer.command, *trainer.args) if word.startswith("-")]
    program = [word for word in trainer.command[:3] if not word.startswith("-")]
    return hash_text(repository, *program, *sorted(words))[:16]


def open_experiment(experiments: Iterable[Experiment]) -> Experiment | None:
    """The experiment without a verdict; there is at most one per job."""
    return next((experiment for experiment in experiments if experiment.verdict is None), None)


def is_settled(
    hypothesis: Hypothesis, job_uid: str, fingerprint: str, memory: JobMemory, now_s: float
) -> Experiment | None:
    """The experiment that has answered this question already; an inconclusive answer expires after 14 days.

    Another job's win does not settle it: it is a past win, which has to be proven here before it is applied here.
    """
    for experiment in reversed(memory.experiments):
        verdict, plan = experiment.verdict, experiment.plan
        asked = plan.fingerprint == fingerprint and plan.hypothesis.key == hypothesis.key
        if not asked or verdict is None:
            continue
        if verdict.word is VerdictWord.WON and plan.job_uid != job_uid:
            continue
        age_s = now_s - memory.closed_at_s.get(experiment.name, now_s)
        if verdict.word is VerdictWord.INCONCLUSIVE and age_s >= INCONCLUSIVE_RETRY_S:
            continue
        return experiment
    return None


def count_attempts(hypothesis: Hypothesis, fingerprint: str, memory: JobMemory) -> int:
    """How often this very question was asked before: the next experiment's attempt number."""
    return sum(
        1
        for experiment in memory.experiments
        if experiment.plan.fingerprint == fingerprint and experiment.plan.hypothesis.key == hypothesis.key
    )


def effective_knobs(declared: Knobs, applications: Sequence[Application]) -> Knobs:
    """Declared values overlaid by the newest application (they are given oldest first).

    The overlay holds while the manifest says what it said then, or what was applied; a third value is a new baseline.
    """
    newest = applications[-1] if applications else None
    if newest is None or declared not in (newest.declared, newest.knobs):
        return declared
    return newest.knobs


def newest_observation(memory: JobMemory, fingerprint: str, knobs: Knobs, since_s: float = 0.0) -> Observation | None:
    """The latest observation of this very work under these values; a failed one counts only since this loop began."""
    return max(
        (
            observation
            for observation in memory.observations
            if observation.fingerprint == fingerprint
            and observation.knobs == knobs
            and (observation.is_usable or observation.at_s >= since_s)
        ),
        key=lambda observation: observation.at_s,
        default=None,
    )

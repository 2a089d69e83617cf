"""What is remembered, and what follows from it?

Observations, experiments and applications are facts; everything else here is derived from them by folding, so that a
cold restart and a replay see the same truth. Verdicts are keyed by (fingerprint, change): never paid for twice.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field

from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import Experiment, Question
from amdahl_loop.domain.hypotheses import Hypothesis
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import BlockReport, Seconds
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import CANCELLED, VerdictWord

INCONCLUSIVE_RETRY_S = 14 * 86400.0
"""An inconclusive question may be asked again after this long (research 1.4)."""

MAX_FAILING = 500

Outcomes = Mapping[tuple[KnobName, bool], int]
"""How many closed experiments on a knob won (True), and how many did not."""


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


@dataclass(frozen=True)
class History:
    """One job's own experiments, oldest first, and what every decision asks of them.

    `running` is the one without a verdict, of which there is at most one; `wins` are those that won, applied or not;
    `spent_h` are the device-hours that all have held.
    """

    experiments: tuple[Experiment, ...] = ()
    running: Experiment | None = None
    wins: tuple[Experiment, ...] = ()
    spent_h: float = 0.0


class Asked:
    """Experiments on one question, oldest first, and how many of them have ended how."""

    def __init__(self) -> None:
        self.experiments: list[Experiment] = []
        self.won = self.closed = 0


class JobMemory(Frozen):
    """Everything that the ledger knows and that may matter to one job."""

    observations: tuple[Observation, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    """Of this job or of its fingerprint, oldest first."""
    closed_at_s: Mapping[str, float] = Field(default_factory=dict)
    applications: tuple[Application, ...] = ()
    disowned: tuple[str, ...] = ()
    """What is on record as applied and is not believed, a sentence each (`believing.py`)."""
    family: tuple[Experiment, ...] = ()
    """Closed experiments of the same family under other fingerprints: past wins and failed transfers."""

    def of_job(self, job_uid: str) -> History:
        """A job's own experiments."""
        return self._digest.by_job.get(job_uid, History())

    def of_others(self, job_uid: str) -> tuple[Experiment, ...]:
        """Other jobs' experiments on the same work, oldest first."""
        if self._digest.by_job.keys() <= {job_uid}:
            return ()
        return tuple(experiment for experiment in self.experiments if experiment.plan.job_uid != job_uid)

    def that_asked(self, question: Question) -> Sequence[Experiment]:
        """Experiments on this very question about this very work, oldest first."""
        asked = self._digest.by_question.get(question)
        return asked.experiments if asked else ()

    @cached_property
    def outcomes(self) -> Outcomes:
        """How experiments on each knob ended, on this work and in its family."""
        found = Counter((e.plan.hypothesis.knob, e.is_won) for e in self.family)
        for asked in self._digest.by_question.values():
            knob = asked.experiments[0].plan.hypothesis.knob
            found[knob, True] += asked.won
            found[knob, False] += asked.closed - asked.won
        return found

    @cached_property
    def _digest(self) -> "_Digest":
        """Found out once for a memory, in one pass: after a record it is what a decision on thousands waits for."""
        drafts = defaultdict[str, _Draft](_Draft)
        questions = defaultdict[Question, Asked](Asked)
        for experiment in self.experiments:
            job_uid, question, is_open, is_won, held_device_s = experiment.abstract
            draft, asked = drafts[job_uid], questions[question]
            draft.experiments.append(experiment)
            asked.experiments.append(experiment)
            draft.held_device_s += held_device_s
            if is_open:
                draft.running = draft.running or experiment
                continue
            asked.closed += 1
            if is_won:
                asked.won += 1
                draft.wins.append(experiment)
        return _Digest({job_uid: draft.finish() for job_uid, draft in drafts.items()}, questions)


class _Draft:
    """A job's history while it is being read."""

    def __init__(self) -> None:
        self.experiments: list[Experiment] = []
        self.wins: list[Experiment] = []
        self.running: Experiment | None = None
        self.held_device_s = 0.0

    def finish(self) -> History:
        return History(tuple(self.experiments), self.running, tuple(self.wins), self.held_device_s / 3600)


class _Digest(NamedTuple):
    """The experiments of a memory by whom they are of, and by what they asked."""

    by_job: Mapping[str, History]
    by_question: Mapping[Question, Asked]


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


def is_settled(
    hypothesis: Hypothesis, job_uid: str, fingerprint: str, memory: JobMemory, now_s: float
) -> Experiment | None:
    """The experiment that has answered this question already; an inconclusive answer expires after 14 days.

    One that was cancelled has answered nothing. Another job's win does not settle it: it is a past win, which has to be
    proven here before it is applied here.
    """
    for experiment in reversed(memory.that_asked(Question(fingerprint, hypothesis.key))):
        verdict = experiment.verdict
        if verdict is None or verdict.reason == CANCELLED:
            continue
        if verdict.word is VerdictWord.WON and experiment.plan.job_uid != job_uid:
            continue
        age_s = now_s - memory.closed_at_s.get(experiment.name, now_s)
        if verdict.word is VerdictWord.INCONCLUSIVE and age_s >= INCONCLUSIVE_RETRY_S:
            continue
        return experiment
    return None


def count_attempts(hypothesis: Hypothesis, fingerprint: str, memory: JobMemory) -> int:
    """How often this very question was asked before: the next experiment's attempt number."""
    return len(memory.that_asked(Question(fingerprint, hypothesis.key)))


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

"""What is the next thing to do?

`next_action` is the heart of the loop: one pure function of a snapshot. Locally and in a cluster the same function
decides, and the whole loop can be replayed from a ledger.
"""

from functools import cached_property

from amdahl_loop.domain import judge, keep, refute, room
from amdahl_loop.domain.actions import (
    Action,
    Admission,
    Apply,
    Challenge,
    Halt,
    Judge,
    Launch,
    Observe,
    Propose,
    Rollback,
    Wait,
)
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.children import observation_number
from amdahl_loop.domain.design import design_plan
from amdahl_loop.domain.diagnosis import Diagnosis, diagnose, weigh_cadence
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import (
    ApplicationKind,
    History,
    JobMemory,
    Observation,
    count_attempts,
    effective_knobs,
    is_settled,
    newest_observation,
)
from amdahl_loop.domain.phases import Breakdown, Unobservable, account
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.proposals import propose, transfer_wins
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import RunRequest, block_request, observation_request
from amdahl_loop.domain.screening import Rejected, find_breach, screen
from amdahl_loop.domain.spending import Worth, weigh
from amdahl_loop.domain.tuning import APPLYING, Mode
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import CANCELLED, Verdict, VerdictWord

__all__ = [
    "Action",
    "Admission",
    "Apply",
    "Challenge",
    "Halt",
    "Judge",
    "Launch",
    "Observe",
    "Propose",
    "Review",
    "Rollback",
    "Snapshot",
    "Wait",
    "look",
    "next_action",
]

OBSERVATION_SEED = 1

YIELD_S = 15.0
"""How long a trial that may not run waits before it asks again."""


class Snapshot(Frozen):
    """Everything that one decision may look at."""

    job: TrainingJob
    """As declared; the values in force are the declared ones under the ledger's overlay."""
    job_uid: str
    fingerprint: str
    family: str
    memory: JobMemory
    now_s: float
    since_s: float = 0.0
    """When this loop began: an observation that failed before then is tried again."""
    paused: bool = False
    ended: bool = False
    """The job has run to its end."""
    failing: str = ""
    """Why the job itself cannot run with the values in force (it crashes again and again); empty where it can."""
    admission: Admission = Admission()
    withheld: bool = False
    """Proven values run from the spec or not at all: what it does not hold is not in force."""

    @property
    def knobs(self) -> Knobs:
        """Knob values in force."""
        declared = self.job.spec.knobs
        return declared if self.withheld else effective_knobs(declared, self.memory.applications)

    @property
    def present(self) -> TrainingJob:
        """The job with the values in force."""
        return self.job.with_knobs(self.knobs)

    @property
    def history(self) -> History:
        """This job's own experiments, and what follows from them."""
        return self.memory.of_job(self.job_uid)

    @property
    def observation(self) -> Observation | None:
        """The observation of the values in force."""
        return newest_observation(self.memory, self.fingerprint, self.knobs, self.since_s)

    @cached_property
    def review(self) -> "Review | Unobservable | None":
        """What was seen of the values in force and what is worth trying, thought over once; None: nothing was seen."""
        return None if self.observation is None else look(self, self.observation)

    def under(self, admission: Admission) -> "Snapshot":
        """The same under another word of the fleet's, which no review depends on."""
        copied = self.model_copy(update={"admission": admission})
        if "review" in self.__dict__:
            copied.__dict__["review"] = self.review
        return copied

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """This job's own experiments, oldest first."""
        return self.history.experiments

    @property
    def spent_h(self) -> float:
        """Device-hours that this job's experiments have held."""
        return self.history.spent_h

    @property
    def left_device_s(self) -> float:
        """Device-seconds that its budget still carries."""
        return 3600 * (self.job.budget_device_hours[0] - self.spent_h)


class Review(Frozen):
    """What was seen and what is worth trying next; the whole content of `explain`."""

    breakdown: Breakdown
    diagnosis: Diagnosis
    worths: tuple[Worth, ...]
    rejected: tuple[Rejected, ...]
    settled: tuple[str, ...]

    @property
    def best(self) -> Worth | None:
        """The hypothesis to try next: the first whose expected bank is positive."""
        return next((worth for worth in self.worths if worth.expected_bank_h > 0), None)


def next_action(snapshot: Snapshot) -> Action:
    """The next thing to do for one job: continue what is open, apply what is proven, keep it true, else look on."""
    running = snapshot.history.running
    if snapshot.ended:
        return (
            Halt(sentence="The job has run to its end.") if running is None else _cancel(running, "the job has ended")
        )
    if snapshot.paused or snapshot.job.is_paused:
        return Halt(sentence="Paused: the job is suspended." if snapshot.job.spec.suspend else "Paused.")
    if snapshot.failing:
        return _roll_back_or_halt(snapshot, snapshot.failing)
    if running is not None:
        return _continue(running, snapshot)
    won = _unapplied_win(snapshot)
    if won is not None:
        return Apply(experiment=won, knobs=snapshot.knobs.with_values(won.plan.hypothesis.values()))
    review = snapshot.review
    if review is None:
        return Observe(request=_observation_request(snapshot))
    if isinstance(review, Unobservable):
        return _roll_back_or_halt(snapshot, review.sentence)
    if snapshot.job.spec.tuning.mode is Mode.OBSERVE:
        return Halt(sentence=f"Observed only (tuning.mode Observe). {review.diagnosis.sentence}")
    return _keep_wins(snapshot) or _open_next(review, snapshot)


def _observation_request(snapshot: Snapshot) -> RunRequest:
    constants = PROFILES[snapshot.job.spec.tuning.profile]
    known = snapshot.memory.observations
    count = max([len(known), *(1 + observation_number(seen.run) for seen in known)])  # a cluster keeps the newest alone
    name = f"{snapshot.job.metadata.name[:41].rstrip('-')}-{snapshot.fingerprint[:8]}-o{count}"
    return observation_request(name, snapshot.knobs, constants, OBSERVATION_SEED)


def _continue(experiment: Experiment, snapshot: Snapshot) -> Action:
    """The open experiment's next block or its verdict; an owner's change, a new limit or an empty budget ends it."""
    if experiment.plan.baseline != snapshot.knobs or experiment.plan.fingerprint != snapshot.fingerprint:
        return _cancel(experiment, "the job was changed by its owner meanwhile")
    forbidden = _find_ban(experiment, snapshot)
    if forbidden:
        return _cancel(experiment, f"{forbidden} by now")
    assessment = judge.assess(experiment)
    if isinstance(assessment, judge.Closed):
        return Judge(experiment=experiment, verdict=assessment.verdict)
    spec = assessment.specs[0]
    request = _make_request(experiment, spec, snapshot).fit(snapshot.left_device_s, experiment.plan.replicas)
    if request is None:
        return Judge(
            experiment=experiment, verdict=_cancelled(_describe_budget(experiment, spec, snapshot), "BudgetExhausted")
        )
    due_s = refute.due_at_s(experiment, spec)
    if due_s is not None and snapshot.now_s < due_s <= snapshot.now_s + experiment.plan.constants.check_spacing_s:
        return Wait(experiment=experiment, until_s=due_s, sentence=_describe_wait(experiment, spec))
    waiting = room.find_waiting(experiment, request.run, snapshot.job.spec.tuning.trial.placement)
    if waiting is not None and waiting.is_over(snapshot.now_s):
        return Judge(experiment=experiment, verdict=_cancelled(waiting.conclusion, waiting.reason.value))
    if waiting is not None and waiting.holds(snapshot.now_s):
        return Wait(experiment=experiment, until_s=waiting.until_s, sentence=waiting.sentence, reason=waiting.reason)
    kind = Launch if spec.stage in (Stage.PROOF, Stage.DISCOVERY) else Challenge
    action = kind(experiment=experiment, spec=spec, request=request, sentence=assessment.sentence)
    return _yield_unless_admitted(action, snapshot)


def _find_ban(experiment: Experiment, snapshot: Snapshot) -> str | None:
    """What the owner or an administrator has set since against what an experiment tries; None where nothing is."""
    if snapshot.job.spec.tuning.mode is Mode.OBSERVE:
        return "tuning.mode is Observe"
    return find_breach(experiment.plan.hypothesis.values(), snapshot.job)


def _make_request(experiment: Experiment, spec: BlockSpec, snapshot: Snapshot) -> RunRequest:
    startup_s, step_s = _sizes(snapshot.observation)
    placement = snapshot.job.spec.tuning.trial.placement
    return block_request(experiment.plan, spec, startup_s, step_s, placement=placement)


def _describe_budget(experiment: Experiment, spec: BlockSpec, snapshot: Snapshot) -> str:
    budget_h, origin = snapshot.job.budget_device_hours
    needed_h = _make_request(experiment, spec, snapshot).needed_device_s(experiment.plan.replicas) / 3600
    return (
        f"the budget of {budget_h:g} device-hours ({origin}) is spent: {snapshot.spent_h:.2g}, "
        f"and the next block may need {needed_h:.2g}"
    )


def _yield_unless_admitted(action: Launch | Challenge, snapshot: Snapshot) -> Launch | Challenge | Wait:
    """The action itself where a trial may run; else nothing runs, and what did is given up."""
    if snapshot.admission.admitted:
        return action
    return Wait(
        experiment=action.experiment,
        until_s=snapshot.now_s + YIELD_S,
        sentence=snapshot.admission.sentence,
        reason=snapshot.admission.reason,
        gives_up=action.request.run,
    )


def _describe_wait(experiment: Experiment, spec: BlockSpec) -> str:
    constants = experiment.plan.constants
    return (
        f"check {spec.check + 1} of {constants.checks} waits: checks keep {constants.check_spacing_s / 3600:g} h from "
        "each other, so that a win which depends on the hour is refuted"
    )


def _sizes(observation: Observation | None) -> tuple[float, float]:
    """Startup and step seconds of an observation, to size time limits with."""
    windows = observation.report.windows if observation is not None else ()
    window = next((w for w in windows if w.is_measured), None)
    return (window.startup_s, window.wall_s / window.steps) if window else (0.0, 0.0)


def _cancel(experiment: Experiment, why: str) -> Judge:
    return Judge(experiment=experiment, verdict=_cancelled(why, CANCELLED))


def _cancelled(why: str, reason: str) -> Verdict:
    return Verdict(word=VerdictWord.INCONCLUSIVE, sentence=f"Inconclusive: {why}.", reason=reason)


def _unapplied_win(snapshot: Snapshot) -> Experiment | None:
    """A win of this job from the values in force, shown by its blocks, that was neither applied nor rolled back."""
    if snapshot.job.spec.tuning.mode not in APPLYING:
        return None
    done = {application.experiment for application in snapshot.memory.applications}
    for win in reversed(snapshot.history.wins):
        is_new = win.name not in done and win.plan.baseline == snapshot.knobs
        if is_new and _find_ban(win, snapshot) is None and judge.upholds(win):
            return win
    return None


def _roll_back_or_halt(snapshot: Snapshot, why: str) -> Action:
    """An applied value under which the job no longer runs is taken back at once, no statistics."""
    newest = snapshot.memory.applications[-1] if snapshot.memory.applications else None
    if newest is None or newest.kind is ApplicationKind.ROLLED_BACK or newest.knobs != snapshot.knobs:
        return Halt(sentence=why, failed=True)
    experiment = next((e for e in snapshot.experiments if e.name == newest.experiment), None)
    if experiment is None:
        return Halt(sentence=why, failed=True)
    return Rollback(application=newest, knobs=experiment.plan.baseline, sentence=why)


def _keep_wins(snapshot: Snapshot) -> Action | None:
    """Take back a win in force that has faded, or run the block that tests one on, once it is due."""
    if snapshot.job.spec.tuning.mode not in APPLYING:
        return None
    kept = keep.find_kept(snapshot.history.wins, snapshot.memory.applications, snapshot.knobs)
    standings = [(one, keep.assess(one.win)) for one in kept]
    for one, standing in standings:
        if standing.has_faded:
            return Rollback(
                application=one.application, knobs=one.undo(snapshot.knobs), sentence=f"{standing.sentence}."
            )
    for one, standing in standings:
        spec = one.next_block(snapshot.now_s)
        if spec is None:
            continue
        request = _make_request(one.win, spec, snapshot).fit(snapshot.left_device_s, one.win.plan.replicas)
        placement = snapshot.job.spec.tuning.trial.placement
        waiting = room.find_waiting(one.win, request.run, placement) if request is not None else None
        is_waiting = waiting is not None and waiting.holds(snapshot.now_s)
        if request is not None and not is_waiting:
            action = Challenge(experiment=one.win, spec=spec, request=request, sentence=standing.sentence)
            return _yield_unless_admitted(action, snapshot)
    return None


def look(snapshot: Snapshot, observation: Observation) -> Review | Unobservable:
    """Account, diagnose, propose, screen and weigh: everything that precedes spending."""
    job = snapshot.present
    breakdown = account(observation, job.expected_device_hours[0], job.spec.tuning.checkpoint)
    if isinstance(breakdown, Unobservable):
        return breakdown
    cadence = weigh_cadence(breakdown, job)
    diagnosis = diagnose(breakdown, job, cadence)
    kin = (*snapshot.memory.family, *snapshot.memory.of_others(snapshot.job_uid))
    proposals = (*transfer_wins(kin, job), *propose(breakdown, diagnosis, job, cadence))
    screened = screen(proposals, job, breakdown.cpus, breakdown.ignored)
    fresh, settled = [], []
    for hypothesis in screened.kept:
        answered = is_settled(hypothesis, snapshot.job_uid, snapshot.fingerprint, snapshot.memory, snapshot.now_s)
        if answered is None or answered.verdict is None:
            fresh.append(hypothesis)
        else:
            settled.append(f"{hypothesis.key}: {answered.verdict.sentence}")
    worths = weigh(fresh, breakdown, job, PROFILES[job.spec.tuning.profile], snapshot.memory)
    return Review(
        breakdown=breakdown, diagnosis=diagnosis, worths=worths, rejected=screened.rejected, settled=tuple(settled)
    )


def _open_next(review: Review, snapshot: Snapshot) -> Action:
    """Open the most promising experiment that the budget can carry, or say in one sentence why there is none."""
    budget_h, origin = snapshot.job.budget_device_hours
    best = review.best
    if best is None:
        return Halt(sentence=f"{review.diagnosis.sentence} {_why_nothing(review)}")
    if snapshot.spent_h + best.trial_h > budget_h:
        return Halt(
            sentence=f"Budget exhausted: {snapshot.spent_h:.2g} of {budget_h:g} device-hours ({origin}) are spent, "
            f"the next trial needs about {best.trial_h:.2g}. Raise tuning.budget.deviceHours to go on."
        )
    if not snapshot.admission.admitted:
        return Halt(sentence=snapshot.admission.sentence)
    attempt = count_attempts(best.hypothesis, snapshot.fingerprint, snapshot.memory)
    plan = design_plan(
        snapshot.present,
        snapshot.job_uid,
        snapshot.fingerprint,
        snapshot.family,
        best.hypothesis,
        review.breakdown,
        attempt,
    )
    return Propose(plan=plan, worth=best)


def _why_nothing(review: Review) -> str:
    if review.worths:
        return f"Nothing is worth trying: {review.worths[0].sentence}."
    if review.settled:
        return "Every idea has been tried."
    return "No knob is expected to help."

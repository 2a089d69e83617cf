"""Where does the fleet waste most, and which jobs may run a trial now?

Two pure answers about all jobs at once. `rank` puts them in one order: first who brings most for each device-hour spent
on trials. `admit` walks that order and grants trials while limits and budgets carry them; who runs one already comes
first, so that nobody who comes later takes a place away. Trials always make way for the owner's own work.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum

from pydantic import Field

from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.diagnosis import Diagnosis
from amdahl_loop.domain.knobs import CATALOGUE
from amdahl_loop.domain.phases import Unobservable
from amdahl_loop.domain.plan import Action, Admission, Challenge, Launch, Propose, Review, Snapshot, next_action
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.runs import block_request
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.values import Frozen


class Purpose(IntEnum):
    """What a trial is for; the lower comes first: what was begun is brought to its end."""

    CONTINUE = 0
    """The next block of an open experiment."""
    KEEP = 1
    """A block that tests an applied win on."""
    OPEN = 2
    """The first block of a new experiment."""


class Need(Frozen):
    """A trial that a job would start now, and the device-hours that it can hold at most."""

    purpose: Purpose
    reserve_h: float


class Idea(Frozen):
    """One hypothesis that the job could try: device-hours it is expected to bank, and to cost."""

    key: str
    expected_bank_h: float
    trial_h: float

    @property
    def return_rate(self) -> float:
        """Device-hours banked for each device-hour spent."""
        return self.expected_bank_h / max(self.trial_h, 1e-9)


class Pressure(Frozen):
    """Work that comes before the job's trials."""

    pod: str = ""
    """A pod of the same owner that waits for what others hold."""
    quota: str = ""
    """Which of the owner's Jobs was refused for want of quota, and the message that did."""
    queue: str = ""
    """The queue of the job, where other workloads wait in it."""

    @property
    def sentence(self) -> str:
        """Why trials make way; empty where they need not."""
        if self.pod:
            return f"Trials make way: pod {self.pod} of the same owner waits for room."
        if self.quota:
            return f"Trials make way: {self.quota}."
        return f"Trials make way: workloads wait in queue {self.queue}." if self.queue else ""


class Member(Frozen):
    """One job as the fleet sees it; waste in device-hours an hour."""

    namespace: str
    name: str
    wasted_h_per_h: float = 0.0
    """Held and not spent computing."""
    removable_h_per_h: float = 0.0
    """The part of it that the job's own knobs could remove at most."""
    ideas: tuple[Idea, ...] = ()
    need: Need | None = None
    """What it would start now, or has in flight; None where it wants nothing."""
    holds_h: float = 0.0
    """Reserved for its trial in flight: deadline times devices, from before its start to its record; else 0."""
    spent_h: float = 0.0
    budget_h: float = 0.0
    pressure: Pressure = Pressure()

    @property
    def key(self) -> str:
        """Namespace and name: unique in the fleet."""
        return f"{self.namespace}/{self.name}"

    @property
    def return_rate(self) -> float:
        """Of its best idea; 0 where none is expected to repay its trial."""
        return max((idea.return_rate for idea in self.ideas if idea.expected_bank_h > 0), default=0.0)

    @property
    def reserve_h(self) -> float:
        """Device-hours that must be free for it: those of its trial in flight, else those of the one it wants."""
        return self.holds_h or (self.need.reserve_h if self.need else 0.0)


class Limits(Frozen):
    """How many trials may run at once, and what all jobs of a namespace together may spend on them."""

    trials: int
    """In the whole installation."""
    namespace_trials: Mapping[str, int] = Field(default_factory=dict)
    """By namespace; one that is not named has no limit of its own."""
    namespace_budget_h: Mapping[str, float] = Field(default_factory=dict)
    """Device-hours by namespace; one that is not named has no budget of its own."""


def describe(snapshot: Snapshot, pressure: Pressure, holds_h: float = 0.0) -> Member:
    """A job's place in the fleet, from all that one decision about it may look at."""
    metadata, review = snapshot.job.metadata, snapshot.review
    member = Member(
        namespace=metadata.namespace,
        name=metadata.name,
        need=_find_need(snapshot),
        holds_h=holds_h,
        spent_h=snapshot.spent_h,
        budget_h=snapshot.job.budget_device_hours[0],
        pressure=pressure,
    )
    if review is None or isinstance(review, Unobservable):
        return member
    return member.model_copy(
        update={
            "wasted_h_per_h": review.diagnosis.wasted_devices,
            "removable_h_per_h": review.breakdown.devices * removable_share(review.diagnosis),
            "ideas": _list_ideas(review),
        }
    )


def removable_share(diagnosis: Diagnosis) -> float:
    """Share of the job's device-time that its knobs could remove at most: the best ceiling of each phase, added up."""
    best: dict[Phase, float] = {}
    for ceiling in diagnosis.ceilings:
        phase = CATALOGUE[ceiling.knob].phase
        best[phase] = max(best.get(phase, 0.0), ceiling.removable_share)
    return min(1.0, sum(best.values()))


def rank(members: Iterable[Member]) -> tuple[Member, ...]:
    """The whole fleet in one order: return for each device-hour of trials, then removable waste, waste, and name."""
    return tuple(sorted(members, key=_order))


def admit(members: Iterable[Member], limits: Limits) -> dict[str, Admission]:
    """By key, for every job that wants a trial: whether it may run now. The order of `members` does not matter.

    A job that holds devices is asked for the same conditions: where it is refused, it has to give its trial up.
    Raises ValueError where two members have one key.
    """
    everyone = tuple(members)
    if len({member.key for member in everyone}) < len(everyone):
        raise ValueError("two members of the fleet have the same namespace and name")
    ledger = _Ledger(everyone, limits)
    wanting = [member for member in everyone if member.need is not None]
    return {member.key: ledger.decide(member) for member in sorted(wanting, key=_precedence)}


class _Ledger:
    """What has been granted so far in one round."""

    def __init__(self, members: Iterable[Member], limits: Limits) -> None:
        self._limits, self._granted = limits, dict[str, int]()
        self._booked_h: dict[str, float] = {}
        for member in members:
            self._book(member, member.spent_h)
            if member.holds_h > 0 and member.need is None:  # its trial is about to end, and holds devices until then
                self._grant(member)

    def decide(self, member: Member) -> Admission:
        """Grant a trial and book it, or say what stands in the way."""
        refused = self._find_obstacle(member)
        if refused is None:
            self._grant(member)
        return refused or Admission()

    def _grant(self, member: Member) -> None:
        self._granted[member.namespace] = self._granted.get(member.namespace, 0) + 1
        self._book(member, member.reserve_h)

    def _book(self, member: Member, hours: float) -> None:
        self._booked_h[member.namespace] = self._booked_h.get(member.namespace, 0.0) + hours

    def _find_obstacle(self, member: Member) -> Admission | None:
        limits, namespace = self._limits, member.namespace
        if member.pressure.sentence:
            return _refuse(Reason.OWNER_FIRST, member.pressure.sentence)
        if member.spent_h + member.reserve_h > member.budget_h:
            return _refuse(Reason.OUT_OF_BUDGET, "What is left of tuning.budget.deviceHours does not carry a block.")
        budget_h = limits.namespace_budget_h.get(namespace)
        if budget_h is not None and self._booked_h[namespace] + member.reserve_h > budget_h:
            said = f"What is left of the {budget_h:g} device-hours of namespace {namespace} does not carry a block."
            return _refuse(Reason.OUT_OF_BUDGET, said)
        if sum(self._granted.values()) >= limits.trials:
            return _refuse(Reason.NOT_ADMITTED, _wait_for(limits.trials, "this installation"))
        cap = limits.namespace_trials.get(namespace)
        if cap is not None and self._granted.get(namespace, 0) >= cap:
            return _refuse(Reason.NOT_ADMITTED, _wait_for(cap, f"namespace {namespace}"))
        return None


def _refuse(reason: Reason, sentence: str) -> Admission:
    return Admission(admitted=False, reason=reason, sentence=sentence)


def _wait_for(cap: int, where: str) -> str:
    trials = "1 trial" if cap == 1 else f"{cap} trials"
    return f"Waits for its turn: {trials} may run at once in {where}, and others come first."


def _order(member: Member) -> tuple[float, float, float, str]:
    return (-member.return_rate, -member.removable_h_per_h, -member.wasted_h_per_h, member.key)


def _precedence(member: Member) -> tuple[bool, int, float, float, float, str]:
    """Who holds devices first, then what was begun, then the ranking."""
    assert member.need is not None, f"{member.key} wants nothing"
    return (member.holds_h <= 0, member.need.purpose, *_order(member))


def _list_ideas(review: Review) -> tuple[Idea, ...]:
    return tuple(
        Idea(key=worth.hypothesis.key, expected_bank_h=worth.expected_bank_h, trial_h=worth.trial_h)
        for worth in review.worths
    )


def _find_need(snapshot: Snapshot) -> Need | None:
    """What the job would start if it were admitted."""
    action: Action = next_action(snapshot.under(Admission()))
    match action:
        case Launch() | Challenge():
            purpose = Purpose.KEEP if action.spec.stage is Stage.HOLDOUT else Purpose.CONTINUE
            replicas = action.experiment.plan.replicas
            return Need(purpose=purpose, reserve_h=action.request.reserved_device_s(replicas) / 3600)
        case Propose():
            placement, startup_s = snapshot.job.spec.tuning.trial.placement, action.plan.restart_s
            request = block_request(action.plan, action.plan.blocks[0], startup_s, step_s=0.0, placement=placement)
            fitted = request.fit(snapshot.left_device_s, action.plan.replicas) or request
            return Need(purpose=Purpose.OPEN, reserve_h=fitted.reserved_device_s(action.plan.replicas) / 3600)
        case _:
            return None

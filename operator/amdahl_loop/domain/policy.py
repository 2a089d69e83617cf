"""What does an administrator allow, and what is left of a job's wishes?

`constrain` gives the job as the loop may treat it: an administrator's cap always wins, and every cap that bites is said
in one sentence. What the job itself declares to run with is its owner's: a policy bounds what the loop tries and
applies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.knob_values import BoundsByKnob, CappedBounds, KnobBounds, KnobName
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.rules import SET
from amdahl_loop.domain.tuning import Mode, Tuning
from amdahl_loop.domain.values import DecimalText, Frozen


class PolicyBudget(Frozen):
    """Caps on what experiments may cost."""

    device_hours: DecimalText | None = None
    """Device-hours that all experiments of one job may hold together, at most; absent means no cap."""
    parallel_trials: Annotated[int | None, Field(ge=1, le=1024)] = None
    """Trials that may run at the same time in this namespace, at most; absent means no cap."""


class TuningPolicySpec(Frozen):
    """What tuning may do in a namespace."""

    paused: bool = False
    """Stops every experiment in this namespace and starts no other; jobs go on as they are."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1, max_length=len(Mode)), SET] | None = None
    """Modes that jobs may use; a job in another one gets the strongest of these that does no more than its own, and
    Observe where there is none. Absent allows all."""
    knobs: BoundsByKnob = BoundsByKnob()
    """Limits that no value tried or applied may leave, whatever the job says."""
    budget: PolicyBudget = PolicyBudget()
    """Caps on what experiments may cost."""


class Constrained(Frozen):
    """A job as the loop may treat it, and what its policies changed about it."""

    job: TrainingJob
    is_paused: bool
    sentences: tuple[str, ...]


_FALLBACKS: Mapping[Mode, tuple[Mode, ...]] = {
    Mode.AUTO: (Mode.SPEC, Mode.OVERLAY, Mode.RECOMMEND),
    Mode.SPEC: (Mode.RECOMMEND,),
    Mode.OVERLAY: (Mode.RECOMMEND,),
    Mode.RECOMMEND: (),
    Mode.OBSERVE: (),
}
"""Modes that do no more than another, strongest first. Observe changes and spends nothing, so it is always left."""


def constrain(job: TrainingJob, policies: Mapping[str, TuningPolicySpec]) -> Constrained:
    """The job under the policies of its namespace, by their names; of several the strictest word counts."""
    tuning, sentences = job.spec.tuning, []
    for name, policy in sorted(policies.items()):
        for cap in (_cap_mode, _cap_budget, _cap_parallel, _cap_knobs):
            tuning, said = cap(tuning, policy, job)
            sentences += [f"TuningPolicy {name}: {sentence}" for sentence in said]
    stopped = [f"TuningPolicy {name}: experiments are paused." for name, p in sorted(policies.items()) if p.paused]
    spec = job.spec.model_copy(update={"tuning": tuning})
    return Constrained(
        job=job.model_copy(update={"spec": spec}), is_paused=bool(stopped), sentences=(*stopped, *sentences)
    )


def cap_parallel_trials(policies: Iterable[TuningPolicySpec]) -> int | None:
    """Trials that may run at once in a namespace, over all its jobs; None where no policy caps them."""
    return min((p.budget.parallel_trials for p in policies if p.budget.parallel_trials is not None), default=None)


Capped = tuple[Tuning, Sequence[str]]


def _cap_mode(tuning: Tuning, policy: TuningPolicySpec, _: TrainingJob) -> Capped:
    if policy.modes is None or tuning.mode in (*policy.modes, Mode.OBSERVE):
        return tuning, ()
    mode = next((mode for mode in _FALLBACKS[tuning.mode] if mode in policy.modes), Mode.OBSERVE)
    allowed = ", ".join(policy.modes)
    return tuning.model_copy(update={"mode": mode}), [f"mode {tuning.mode} becomes {mode}; allowed are {allowed}."]


def _cap_budget(tuning: Tuning, policy: TuningPolicySpec, job: TrainingJob) -> Capped:
    cap = policy.budget.device_hours
    asked_h = job.model_copy(update={"spec": job.spec.model_copy(update={"tuning": tuning})}).budget_device_hours[0]
    if cap is None or asked_h <= float(cap):
        return tuning, ()
    budget = tuning.budget.model_copy(update={"device_hours": cap})
    said = f"the budget of {asked_h:g} device-hours becomes {float(cap):g}."
    return tuning.model_copy(update={"budget": budget}), [said]


def _cap_parallel(tuning: Tuning, policy: TuningPolicySpec, _: TrainingJob) -> Capped:
    cap, asked = policy.budget.parallel_trials, tuning.budget.parallel_trials
    if cap is None or asked <= cap:
        return tuning, ()
    budget = tuning.budget.model_copy(update={"parallel_trials": cap})
    return tuning.model_copy(update={"budget": budget}), [f"{asked} parallel trials become {cap}."]


def _cap_knobs(tuning: Tuning, policy: TuningPolicySpec, job: TrainingJob) -> Capped:
    """Bounds become the narrower of both; where none is left, the knob is pinned."""
    said: list[str] = []
    for field, knob in _NUMERIC.items():
        cap, own = policy.knobs.get(knob), tuning.knobs.get(knob)
        narrowed = _intersect(own, cap)
        if narrowed is not None and (narrowed.min, narrowed.max) == (own.min, own.max):
            continue
        if narrowed is None:
            said.append(
                f"{knob} is left alone: {_describe(own)} is what its owner allows, {_describe(cap)} the policy."
            )
            tuning = tuning.model_copy(update={"pin": (*tuning.pin, *({knob} - set(tuning.pin)))})
            continue
        tuning = tuning.model_copy(update={"knobs": tuning.knobs.model_copy(update={field: narrowed})})
        if job.spec.knobs.get(knob) is not None:
            said.append(f"{knob} is tried and applied within {_describe(narrowed)} only.")
    return tuning, said


_NUMERIC = {field: KnobName(to_camel(field)) for field in BoundsByKnob.model_fields}
"""Knobs that have bounds, by the names of their fields."""


def _intersect(own: KnobBounds, cap: KnobBounds) -> KnobBounds | None:
    """The range inside both; None where there is none."""
    least = max((end for end in (own.min, cap.min) if end is not None), default=None)
    most = min((end for end in (own.max, cap.max) if end is not None), default=None)
    if least is not None and most is not None and least > most:
        return None
    kind = KnobBounds if own.has_own_max else CappedBounds
    return kind(min=least, max=most)


def _describe(bounds: KnobBounds) -> str:
    """A range in words: `at most 8`, `10 to 50`, `any value`."""
    if bounds.min is None:
        return "any value" if bounds.max is None else f"at most {bounds.max}"
    return f"at least {bounds.min}" if bounds.max is None else f"{bounds.min} to {bounds.max}"

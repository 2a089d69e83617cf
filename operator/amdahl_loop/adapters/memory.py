"""A ledger that lives in memory: the `LedgerStore` port without a file.

A replay folds recorded facts into it, and tests use it where a file would prove nothing more. `state` is one frozen
value, so that a reader may keep it and return to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.ledger import Application, JobMemory, Observation
from amdahl_loop.domain.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything recorded so far, in the order in which it came."""

    observations: tuple[tuple[str, Observation], ...] = ()
    experiments: Mapping[str, Experiment] = field(default_factory=dict)
    closed_at_s: Mapping[str, float] = field(default_factory=dict)
    applications: tuple[Application, ...] = ()


class MemoryLedger:
    """The `LedgerStore` port over one immutable value; refuses what the port says is refused, with ValueError."""

    def __init__(self, state: Facts | None = None) -> None:
        self.state = state or Facts()

    async def recall(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        """All that is known of a job, of its fingerprint and of its family."""
        experiments = tuple(self.state.experiments.values())
        return JobMemory(
            observations=tuple(observation for uid, observation in self.state.observations if uid == job_uid),
            experiments=tuple(e for e in experiments if e.plan.job_uid == job_uid or e.plan.fingerprint == fingerprint),
            closed_at_s=self.state.closed_at_s,
            applications=tuple(a for a in self.state.applications if a.job_uid == job_uid),
            family=tuple(
                e
                for e in experiments
                if e.verdict is not None and e.plan.family == family and e.plan.fingerprint != fingerprint
            ),
        )

    async def add_observation(self, job_uid: str, observation: Observation) -> None:
        """Record one observation."""
        known = self.state.observations
        if (job_uid, observation) not in known:
            self.state = replace(self.state, observations=(*known, (job_uid, observation)))

    async def add_plan(self, plan: Plan) -> None:
        """Record an experiment's plan; the same plan twice is no error, another one under its name is."""
        known = self.state.experiments.get(plan.name)
        if known is None:
            self._keep(Experiment(plan=plan))
        elif known.plan != plan:
            raise ValueError(f"plan {plan.name} is recorded with other content")

    async def add_block(self, experiment: str, record: BlockRecord) -> None:
        """Record a finished block once, under an open experiment; a holdout block under a closed one."""
        is_holdout = record.spec.stage is Stage.HOLDOUT
        known = self._find(experiment, is_closed=is_holdout)
        if any(block.spec.name == record.spec.name for block in known.blocks):
            raise ValueError(f"block {record.spec.name} of {experiment} is recorded already")
        self._keep(known.with_block(record))

    async def add_loss(self, experiment: str, loss: Loss) -> None:
        """Charge a run that was stopped; the same one twice is no error."""
        known = self._find(experiment)
        if loss not in known.losses:
            self._keep(known.with_loss(loss))

    async def add_verdict(self, experiment: str, verdict: Verdict, now_s: float) -> None:
        """Close an experiment, once."""
        self._keep(self._find(experiment, is_closed=False).with_verdict(verdict))
        self.state = replace(self.state, closed_at_s={**self.state.closed_at_s, experiment: now_s})

    async def add_application(self, application: Application) -> None:
        """Record that knob values were applied, rolled back or found changed by their owner."""
        if application not in self.state.applications:
            self.state = replace(self.state, applications=(*self.state.applications, application))

    async def experiments(self) -> tuple[Experiment, ...]:
        """Every experiment, oldest first."""
        return tuple(self.state.experiments.values())

    def _keep(self, experiment: Experiment) -> None:
        self.state = replace(self.state, experiments={**self.state.experiments, experiment.name: experiment})

    def _find(self, name: str, is_closed: bool | None = None) -> Experiment:
        known = self.state.experiments.get(name)
        if known is None:
            raise ValueError(f"experiment {name} has no plan")
        if is_closed is not None and (known.verdict is not None) is not is_closed:
            raise ValueError(f"experiment {name} is {'still open' if is_closed else 'closed'}")
        return known

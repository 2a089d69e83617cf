"""What does the loop need from the world? One small protocol per outside thing, named for the need.

Adapters implement these; `reconcile` is the only caller. Everything is asynchronous because a cluster answers over a
network; the local adapters keep the same shape so that one loop drives both.
"""

from collections.abc import Collection
from typing import Protocol

from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.ledger import Application, JobMemory, Observation
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import RunRequest, RunState
from amdahl_loop.domain.verdicts import Verdict


class Clock(Protocol):
    """Seconds since the epoch; injected so that tests and replays decide the time."""

    def __call__(self) -> float:
        """The time now."""


class Runner(Protocol):
    """Runs supervised blocks and observations by deterministic name."""

    async def find(self, run: str) -> RunState:
        """State of a run by name; Absent when it was never submitted or left no trace."""

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Start a run, or adopt it when it runs already under the same plan hash."""

    async def stop(self, run: str) -> Loss | None:
        """Stop a run and everything it started, and drop its traces; what it had held, None where there is no such run.

        A run that was over is dropped alike, and says what it held.
        """

    async def sweep(self, keep: Collection[str]) -> tuple[Loss, ...]:
        """Stop every run of ours whose name is not kept; returns what each had held, in the order of their names."""


class LedgerStore(Protocol):
    """Keeps everything that was planned, measured and decided. Append-only: nothing recorded is ever changed."""

    async def recall(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        """All that is known of a job, of its fingerprint and of its family."""

    async def add_observation(self, job_uid: str, observation: Observation) -> None:
        """Record one observation."""

    async def add_plan(self, plan: Plan) -> None:
        """Record an experiment's plan, before its first block; the same plan twice is no error, another one is."""

    async def add_block(self, experiment: str, record: BlockRecord) -> None:
        """Record a finished block once; a second record of the same block is refused.

        An experiment that is closed takes holdout blocks and no others.
        """

    async def add_loss(self, experiment: str, loss: Loss) -> None:
        """Charge a run that was stopped, to an experiment open or closed; the same one twice is no error."""

    async def add_verdict(self, experiment: str, verdict: Verdict, now_s: float) -> None:
        """Close an experiment."""

    async def add_application(self, application: Application) -> None:
        """Record that knob values were applied, rolled back or found changed by their owner."""

    async def experiments(self) -> tuple[Experiment, ...]:
        """Every experiment, oldest first."""

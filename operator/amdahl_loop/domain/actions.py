"""What can the loop do next? One value for each thing that a pass may do, and who may hinder it.

The closed union `Action` is what `plan.next_action` decides and `reconcile` performs. Every action holds all that its
effect needs, and a sentence where people ask why.
"""

from amdahl_loop.domain.blocks import BlockSpec
from amdahl_loop.domain.experiments import Experiment, Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.runs import RunRequest
from amdahl_loop.domain.spending import Worth
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import Verdict


class Admission(Frozen):
    """Whether a job may run a trial now, and why not. On one machine there is nobody to ask."""

    admitted: bool = True
    reason: Reason = Reason.FREE
    sentence: str = ""


class Observe(Frozen):
    """Run the job as it is and account its time."""

    request: RunRequest


class Propose(Frozen):
    """Open an experiment: record its plan."""

    plan: Plan
    worth: Worth


class Launch(Frozen):
    """Run the next block of discovery (or its proof)."""

    experiment: Experiment
    spec: BlockSpec
    request: RunRequest
    sentence: str


class Challenge(Frozen):
    """Run the next block that tries to kill a win: a candidate, or one in force."""

    experiment: Experiment
    spec: BlockSpec
    request: RunRequest
    sentence: str


class Wait(Frozen):
    """Start nothing before a moment: the next check has to see another time of day, or others come first.

    No device is held meanwhile: the run that `gives_up` names, if any, is stopped.
    """

    experiment: Experiment
    until_s: float
    sentence: str
    reason: Reason = Reason.SPACED
    gives_up: str = ""


class Judge(Frozen):
    """Close an experiment with its verdict."""

    experiment: Experiment
    verdict: Verdict


class Apply(Frozen):
    """Put a proven win's values in force."""

    experiment: Experiment
    knobs: Knobs


class Rollback(Frozen):
    """Take applied values back."""

    application: Application
    knobs: Knobs
    sentence: str


class Halt(Frozen):
    """Nothing is left to do; says why."""

    sentence: str
    failed: bool = False


Action = Observe | Propose | Launch | Challenge | Wait | Judge | Apply | Rollback | Halt

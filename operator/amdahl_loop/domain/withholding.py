"""May proven values run that the spec does not hold?

An overlay stands or falls with its owner's word: with the mode, with what is pinned, and with the limits of owner and
administrator, whenever these were set. What the spec itself declares is its owner's and always runs.
"""

from collections.abc import Sequence

from amdahl_loop.domain.applying import differing
from amdahl_loop.domain.ledger import Application, effective_knobs
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.screening import find_breach
from amdahl_loop.domain.tuning import Mode

OVERLAYING = (Mode.AUTO, Mode.OVERLAY)
"""Modes in which pods run with proven values that the spec does not hold."""


def is_withheld(job: TrainingJob, applications: Sequence[Application]) -> bool:
    """Whether the job runs with what its spec declares and nothing else. `applications` are oldest first."""
    return job.spec.tuning.mode not in OVERLAYING or find_ban(job, applications) is not None


def find_ban(job: TrainingJob, applications: Sequence[Application]) -> str | None:
    """Which limit the proven values break that the spec does not hold; None where none does."""
    declared = job.spec.knobs
    return find_breach(differing(declared, effective_knobs(declared, applications)), job)

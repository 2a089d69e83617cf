"""How is a hypothesis turned into a complete plan before anything runs?

The same job, fingerprint, hypothesis and attempt give the same plan, letter for letter: names, orders, seeds, offsets
and constants. That is what makes an interrupted loop resume as if undisturbed.
"""

from amdahl_loop.domain.blocks import enumerate_blocks
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import Plan, name_experiment
from amdahl_loop.domain.hypotheses import Hypothesis, Source
from amdahl_loop.domain.knobs import KnobKind, is_live_change, kind_of
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.resources import TrainingJob

ROUNDING_TOLERANCE = 1e-5
"""Relative difference of losses that another process count may cause in fp32 (design, section 6)."""


def design_plan(
    job: TrainingJob,
    job_uid: str,
    fingerprint: str,
    family: str,
    hypothesis: Hypothesis,
    breakdown: Breakdown,
    attempt: int,
) -> Plan:
    """The plan of one experiment on a job whose `spec.knobs` are its present values."""
    spec = job.spec
    constants = PROFILES[spec.tuning.profile]
    if kind_of(hypothesis.changes) is KnobKind.S0:
        constants = constants.model_copy(update={"loss_tolerance": 0.0})
    seed = int(hash_text(job_uid, fingerprint, hypothesis.key, str(attempt), "plan")[:12], 16)
    skip_discovery = hypothesis.source is Source.PRIOR
    policy = spec.tuning.checkpoint
    return Plan(
        name=name_experiment(job.metadata.name, job_uid, fingerprint, hypothesis, attempt),
        job=job.metadata.name,
        job_uid=job_uid,
        fingerprint=fingerprint,
        family=family,
        attempt=attempt,
        hypothesis=hypothesis,
        baseline=spec.knobs,
        variant=spec.knobs.with_values(hypothesis.values()),
        objective=spec.tuning.objective,
        max_slowdown=float(spec.tuning.max_slowdown),
        constants=constants,
        live=breakdown.live and is_live_change(hypothesis.changes),
        replicas=spec.replicas,
        skip_discovery=skip_discovery,
        interruption_interval_s=policy.interruption_interval_s,
        max_lost_work_s=policy.max_lost_work_s,
        restart_s=breakdown.startup_s,
        mem_limit_mib=_mem_limit_mib(job),
        device_hours_ahead=job.expected_device_hours[0],
        baseline_shares_ppk=breakdown.shares_ppk,
        seed=seed,
        blocks=enumerate_blocks(seed, constants, skip_discovery),
    )


def _mem_limit_mib(job: TrainingJob) -> int | None:
    """The trainer container's memory limit (or request), where the template states one."""
    mem_bytes = job.spec.template.trainer.resources.quantity("memory")
    return None if mem_bytes is None else int(mem_bytes / 2**20)

"""Builders of domain values for tests: every argument has a plain default, a test names only what it is about."""

from typing import Any

from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, Observation
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.phases import Breakdown, account
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import PHASES, Arm, BlockReport, Loader, Phase, Saves, Window, WindowOutcome

FINGERPRINT = "f" * 16
FAMILY = "a" * 16
UID = "local-0123456789ab"


def make_manifest(
    knobs: dict[str, Any] | None = None, tuning: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """A legal TrainingJob document; `knobs`, `tuning` and further spec fields as given."""
    container = {"name": "trainer", "image": "example/trainer:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "pydocs"},
        "spec": {
            "knobs": {"dataloaderWorkers": 0} if knobs is None else knobs,
            "template": {"spec": {"containers": [container]}},
            "tuning": tuning or {},
            **spec,
        },
    }


def make_job(knobs: dict[str, Any] | None = None, tuning: dict[str, Any] | None = None, **spec: Any) -> TrainingJob:
    """The parsed job of `make_manifest`."""
    return parse_training_job(make_manifest(knobs, tuning, **spec))


def make_shares(**shares: float) -> tuple[int, ...]:
    """Phase shares in parts per thousand; `compute` takes what the others leave."""
    ppk = {Phase(name): round(1000 * share) for name, share in shares.items()}
    ppk[Phase.COMPUTE] = 1000 - sum(value for phase, value in ppk.items() if phase is not Phase.COMPUTE)
    return tuple(ppk.get(phase, 0) for phase in PHASES)


def make_window(
    step_s: float = 0.1,
    steps: int = 50,
    *,
    arm: Arm = Arm.BASELINE,
    index: int = 0,
    devices: int = 1,
    batch: int = 16,
    batch_s: float | None = 0.05,
    cv: float = 0.05,
    saves: Saves | None = None,
    outcome: WindowOutcome = WindowOutcome.OK,
    **fields: Any,
) -> Window:
    """A window of `steps` equal steps."""
    shares = fields.pop("shares", {})
    return Window(
        arm=arm,
        index=index,
        outcome=outcome,
        steps=steps,
        samples=steps * batch,
        devices=devices,
        wall_s=steps * step_s,
        phases_ppk=make_shares(**shares),
        quiet_step_s=fields.pop("quiet_step_s", step_s),
        loader=None if batch_s is None else Loader(batch_s=batch_s, cv=cv),
        saves=saves or Saves(),
        startup_s=fields.pop("startup_s", 4.0),
        **fields,
    )


def make_observation(
    job: TrainingJob, *windows: Window, live: bool = False, cpus: int = 2, at_s: float = 0.0
) -> Observation:
    """An observation of a job under its declared values."""
    return Observation(
        run="pydocs-o0",
        at_s=at_s,
        fingerprint=FINGERPRINT,
        job=job,
        knobs=job.spec.knobs,
        report=BlockReport(run="pydocs-o0", state="done", windows=windows, live=live, cpus=cpus),
        held_device_s=30.0,
    )


def make_application(
    knobs: Knobs, kind: ApplicationKind, experiment: str, declared: Knobs, at_s: float = 1.0
) -> Application:
    """Values of the job `job` that took effect, or were taken back."""
    return Application(
        job="job",
        job_uid="uid",
        fingerprint="f" * 16,
        at_s=at_s,
        kind=kind,
        experiment=experiment,
        declared=declared,
        knobs=knobs,
    )


def with_knobs(job: TrainingJob, **values: Any) -> Knobs:
    """The job's knobs with some values replaced."""
    return Knobs.model_validate(job.spec.knobs.model_dump(exclude_none=True) | values)


def see(job: TrainingJob, *windows: Window, cpus: int = 2) -> Breakdown:
    """The breakdown of an observation of these windows."""
    hours, _ = job.expected_device_hours
    breakdown = account(make_observation(job, *windows, cpus=cpus), hours, job.spec.tuning.checkpoint)
    assert isinstance(breakdown, Breakdown)
    return breakdown

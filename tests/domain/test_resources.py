"""What a user may declare, and what a faulty manifest is told."""

import json

import pytest

from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.parsing import ManifestError, parse_training_job
from amdahl_loop.domain.units import parse_duration_s, parse_quantity
from builders import make_job, make_manifest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("250ms", 0.25), ("24h", 86400), ("1.5s", 1.5), ("2d", 172800)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """A duration is a sum of numbers with units."""
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "-5m", "1h-3m", "one hour"])
def test_bad_durations_are_named(text: str) -> None:
    """What is no duration is quoted, with an example of one."""
    with pytest.raises(ValueError, match="is no duration; write"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2), ("0", 0), ("1.5", 1.5), ("1.", 1), (".5", 0.5), ("+1", 1), ("-1.5", -1.5), (" 8Gi\n", 8 * 2**30),
        ("1n", 1e-9), ("5u", 5e-6), ("500m", 0.5), ("3k", 3e3), ("1M", 1e6), ("1G", 1e9), ("1T", 1e12), ("1P", 1e15), ("1E", 1e18),
        ("1Ki", 2**10), ("1Mi", 2**20), (".5Gi", 2**29), ("1.5Ti", 1.5 * 2**40), ("1Pi", 2**50), ("-1Ei", -(2**60)),
        ("16e9", 16e9), ("16E9", 16e9), ("1e+3", 1e3), ("2.5e-3", 0.0025), (".5E1", 5), ("0e0", 0),
        ("8Ei", 2**63), ("9Ei", 2**63), ("1e999", 2**63), ("-1e999", -(2**63)), ("1" * 5000, 2**63), ("1e-999", 0),
    ],
)  # fmt: skip
def test_quantities_are_read(text: str, value: float) -> None:
    """Kubernetes' signs, fractions, suffixes and exponents; what is more than it can hold is the most that it can."""
    assert parse_quantity(text) == pytest.approx(value, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "text",
    ["", ".", "+", "all", "Gi", "1K", "1ki", "1gi", "1mi", "1i", "1e", "1e1.5", "1e3k", "1 Gi", "1Gib", "1,5", "1_000", "0x10", "--1", "+-1", "1.2.3", "nan", "inf", "٣", "1" * 50_000 + "x"],
)  # fmt: skip
def test_what_is_no_quantity_is_named(text: str) -> None:
    """Quoted, not at any length, with an example of one; none of it takes long to refuse."""
    with pytest.raises(ValueError, match="is no resource quantity; write a number such as") as refused:
        parse_quantity(text)
    assert len(str(refused.value)) < 130


def test_design_example_is_accepted() -> None:
    """The manifest shown in the design parses, with every default in place."""
    job = make_job(
        knobs={"dataloaderWorkers": 0, "checkpointEverySteps": 50, "gpusPerReplica": 4},
        tuning={
            "mode": "Auto",
            "objective": "DeviceHours",
            "maxSlowdown": "1.05",
            "knobs": {"dataloaderWorkers": {"max": 8}, "checkpointEverySteps": {"min": 10}},
            "budget": {"deviceHours": "4", "parallelTrials": 1},
            "expectedDeviceHours": "200",
            "checkpoint": {"maxLostWork": "30m", "meanTimeBetweenInterruptions": "24h"},
            "profile": "standard",
            "pin": [],
            "trial": {"placement": "Spare", "isolated": False, "scratchPaths": ["/checkpoints"]},
            "apply": {"when": "Live"},
        },
    )

    assert job.spec.knobs.declared() == {
        KnobName.DATALOADER_WORKERS: 0,
        KnobName.CHECKPOINT_EVERY_STEPS: 50,
        KnobName.GPUS_PER_REPLICA: 4,
    }
    assert job.spec.tuning.checkpoint.max_lost_work_s == 1800
    assert job.expected_device_hours == (200.0, "tuning.expectedDeviceHours")


def _broken(**changes: object) -> dict[str, object]:
    manifest = make_manifest()
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: dict[str, object] = manifest
        for part in parents:
            place = place.setdefault(part, {})  # type: ignore[assignment]  # the builder's nested objects
        place[last] = value
    return manifest


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (_broken(spec__knobs={"dataloaderWorker": 2}), "spec.knobs.dataloaderWorker: 2: unknown field"),
        (_broken(spec__knobs={"dataloaderWorker": 2}), "use one of dataloaderWorkers"),
        (_broken(spec__knobs={"dataloaderWorkers": "many"}), "spec.knobs.dataloaderWorkers: 'many'"),
        (_broken(spec__knobs={"dataloaderWorkers": -1}), "spec.knobs.dataloaderWorkers: -1"),
        (
            _broken(spec__tuning={"knobs": {"dataloaderWorkers": {"min": 4, "max": 2}}}),
            "spec.tuning.knobs.dataloaderWorkers: {'min': 4, 'max': 2}: min 4 is above max 2; swap them",
        ),
        (
            _broken(spec__knobs={"dataloaderWorkers": 9}, spec__tuning={"knobs": {"dataloaderWorkers": {"max": 8}}}),
            "knobs.dataloaderWorkers is 9, outside tuning.knobs.dataloaderWorkers [None, 8]",
        ),
        (_broken(spec__tuning={"maxSlowdown": "fast"}), "spec.tuning.maxSlowdown: 'fast'"),
        (_broken(spec__tuning={"checkpoint": {"maxLostWork": "0s"}}), "must be longer than zero"),
        (_broken(spec__tuning={"mode": "Turbo"}), "spec.tuning.mode: 'Turbo'"),
        (_broken(spec__tuning={"pin": ["speed"]}), "spec.tuning.pin.0: 'speed'"),
        (_broken(metadata__name="Py Docs"), "metadata.name: 'Py Docs': must be lower-case letters"),
        (_broken(metadata__name="x" * 64), "metadata.name"),
        (_broken(kind="Job"), "kind: 'Job'"),
        (
            _broken(spec__template={"spec": {"containers": [{"name": "main", "command": ["x"]}]}}),
            "name the one to tune 'trainer'",
        ),
        (_broken(spec__template={"spec": {"containers": [{"name": "trainer"}]}}), "has no command"),
        (
            {"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "a"}},
            "spec: absent: required",
        ),
        (["a", "list"], "holds list, not an object"),
    ],
)
def test_faults_name_field_value_and_fix(manifest: object, said: str) -> None:
    """A faulty manifest is refused with the field, its value and what would mend it."""
    with pytest.raises(ManifestError) as refused:
        parse_training_job(manifest)

    assert said in str(refused.value)


def test_every_fault_is_listed_at_once() -> None:
    """Two faults, two lines: nobody mends a manifest one error at a time."""
    with pytest.raises(ManifestError) as refused:
        parse_training_job(_broken(spec__knobs={"dataloaderWorkers": -1}, spec__tuning={"mode": "Turbo"}))

    assert len(str(refused.value).splitlines()) == 2


def test_fields_that_the_loop_does_not_read_are_kept() -> None:
    """A pod template is the user's: volumes, tolerations and the rest survive a round trip."""
    manifest = make_manifest()
    manifest["spec"]["template"]["spec"]["tolerations"] = [{"key": "gpu"}]

    dumped = parse_training_job(manifest).model_dump(by_alias=True)

    assert dumped["spec"]["template"]["spec"]["tolerations"] == [{"key": "gpu"}]


def test_knobs_are_values() -> None:
    """Replacing a value gives another set of knobs and leaves the first one as it was."""
    knobs = Knobs(dataloader_workers=0, prefetch_factor=2)

    changed = knobs.with_values({KnobName.DATALOADER_WORKERS: 4})

    assert (knobs.dataloader_workers, changed.dataloader_workers, changed.prefetch_factor) == (0, 4, 2)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        knobs.with_values({KnobName.DATALOADER_WORKERS: -3})


def test_environment_values_can_be_left_out() -> None:
    """What is stored for a replay holds no value of the environment: it may be a secret."""
    manifest = make_manifest()
    manifest["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "TOKEN", "value": "s3cret"}]

    pod = manifest["spec"]["template"]["spec"]
    pod["initContainers"] = [{"name": "fetch", "env": [{"name": "TOKEN", "value": "s3cret"}]}]
    pod["containers"][0]["lifecycle"] = {"postStart": {"exec": {"command": ["login", "s3cret"]}}}
    manifest["spec"]["template"]["metadata"] = {"annotations": {"vault": "s3cret"}}
    manifest["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": '{"env": "s3cret"}',
        "amdahl-loop.io/paused": "true",
    }
    job = parse_training_job(manifest)

    stored = job.without_environment().model_dump_json()

    assert "TOKEN" in stored
    assert "s3cret" not in stored
    assert parse_training_job(json.loads(stored)).is_paused
    assert job.without_environment().without_environment() == job.without_environment()

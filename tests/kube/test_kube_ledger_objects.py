"""How TrainingJobs are read, who owns which field, and what of a status is sent."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.apply import read_conflict
from amdahl_loop.adapters.kube.client import Cause
from amdahl_loop.adapters.kube.experiments import diff, say_closed
from amdahl_loop.adapters.kube.jobs import read_claims, see
from amdahl_loop.adapters.kube.status import diff_status
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.records import close
from amdahl_loop.domain.api.training_job import BankReport, TrainingJobStatus
from amdahl_loop.domain.api.wire import from_wire, to_wire
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.stewards import Claim, Steward
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import make_manifest

WORKERS, CADENCE = KnobName.DATALOADER_WORKERS, KnobName.CHECKPOINT_EVERY_STEPS


def make_document(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    """A TrainingJob as a server gives it."""
    document = make_manifest()
    document["metadata"] |= {"namespace": "team", "uid": "u1", "resourceVersion": "7", "generation": 3} | metadata
    return document | ({"status": status} if status is not None else {})


def make_condition(type_name: str = "Ready", **changes: Any) -> dict[str, Any]:
    """A condition on the wire."""
    condition = {
        "type": type_name,
        "status": "True",
        "reason": "AsDeclared",
        "message": "Runs.",
        "lastTransitionTime": "2026-11-21T10:00:00Z",
        "observedGeneration": 3,
    }
    return condition | changes


READY = JobCondition.model_validate(make_condition())


@pytest.mark.parametrize(
    ("fields", "owned"),
    [
        ({}, set()),
        ({"f:metadata": {"f:labels": {}}}, set()),
        ({"f:spec": {"f:suspend": {}}}, set()),
        ({"f:spec": {"f:knobs": {".": {}}}}, set()),
        ({"f:spec": {"f:knobs": {".": {}, "f:dataloaderWorkers": {}}}}, {WORKERS}),
        ({"f:spec": {"f:knobs": {"f:dataloaderWorkers": {}, "f:turbo": {}}}}, {WORKERS}),
        ({"f:spec": {"f:knobs": {}}}, set(KnobName)),
        ({"f:spec": {}}, set(KnobName)),
    ],
)
def test_who_owns_a_knob_is_read_from_the_server_s_own_record(fields: dict[str, Any], owned: set[KnobName]) -> None:
    """Down to the field; a manager of a whole map owns what is in it."""
    claims = read_claims([{"manager": "m", "operation": "Apply", "fieldsV1": fields}])
    assert {claim.knob for claim in claims} == owned
    assert {claim.manager for claim in claims} <= {"m"}


def test_managers_of_the_status_own_no_spec() -> None:
    """Ours is among them."""
    fields = {"f:spec": {"f:knobs": {"f:dataloaderWorkers": {}}}}
    assert read_claims([{"manager": "m", "subresource": "status", "fieldsV1": fields}]) == ()


@pytest.mark.parametrize(
    ("cause", "claims"),
    [
        (Cause("FieldManagerConflict", ".spec.knobs.dataloaderWorkers", 'conflict with "kubectl" using amdahl-loop.io/v1alpha1'), (Claim(manager="kubectl", knob=WORKERS),)),
        (Cause("FieldManagerConflict", ".spec.knobs.checkpointEverySteps", 'conflict with "argocd-controller"'), (Claim(manager="argocd-controller", knob=CADENCE),)),
        (Cause("FieldManagerConflict", ".spec.knobs.dataloaderWorkers", "something else"), (Claim(manager="", knob=WORKERS),)),
        (Cause("FieldManagerConflict", ".spec.replicas", 'conflict with "kubectl"'), ()),
        (Cause("FieldValueInvalid", ".spec.knobs.dataloaderWorkers", "too big"), ()),
        (Cause("FieldManagerConflict", ".spec.knobs.turbo", 'conflict with "kubectl"'), ()),
    ],
)  # fmt: skip
def test_a_refusal_names_the_managers_in_the_way(cause: Cause, claims: tuple[Claim, ...]) -> None:
    """A name that cannot be read is nobody's, so nothing is forced."""
    assert read_conflict([cause]) == claims


class TestSeeing:
    """One read of a TrainingJob."""

    def test_what_is_declared_and_by_whom(self) -> None:
        """Identity, owners, tracking marks and what the last status found in the spec."""
        fields = {"f:spec": {"f:knobs": {"f:dataloaderWorkers": {}}}}
        status = {"effectiveKnobs": [{"name": "dataloaderWorkers", "value": "2", "source": "Spec"}]}
        seen = see(
            make_document(
                status,
                managedFields=[{"manager": "kubectl", "fieldsV1": fields}],
                annotations={"argocd.argoproj.io/tracking-id": "x"},
            )
        )
        assert (seen.namespace, seen.name, seen.uid, seen.generation) == ("team", "pydocs", "u1", 3)
        assert seen.declared.claims == (Claim(manager="kubectl", knob=WORKERS),)
        assert seen.declared.tracked_by == {Steward.ARGO_CD}
        assert seen.declared.seen == {WORKERS: 2}
        assert not seen.is_deleting

    def test_a_spec_that_cannot_be_used_says_why_and_keeps_its_status(self) -> None:
        """Every fault by field; what was reported before is still there."""
        document = make_document({"message": "All was well."})
        document["spec"]["knobs"] = {"dataloaderWorkers": "many"}
        seen = see(document)
        assert seen.job is None
        assert "spec.knobs.dataloaderWorkers: 'many'" in seen.faults
        assert seen.status.message == "All was well."

    def test_somebody_else_s_condition_does_not_hide_our_status(self) -> None:
        """Types that we do not know are passed over in reading."""
        seen = see(make_document({"message": "Runs.", "conditions": [make_condition(), make_condition("Blessed")]}))
        assert seen.status == TrainingJobStatus(message="Runs.", conditions=(READY,))

    def test_a_status_of_another_time_counts_as_none(self) -> None:
        """It is written anew."""
        assert see(make_document({"lastVerdicts": "none"})).status == TrainingJobStatus()


class TestWhatIsSent:
    """The patch from what is reported to what is to be."""

    STATUS = TrainingJobStatus(observed_generation=3, message="Runs.", conditions=(READY,))

    def test_nothing_where_nothing_differs(self) -> None:
        """Also where empty fields are simply absent."""
        assert diff_status(to_wire(self.STATUS), self.STATUS) == {}
        wire = {name: part for name, part in to_wire(self.STATUS).items() if part}
        assert diff_status(wire, self.STATUS) == {}

    def test_only_what_differs(self) -> None:
        """A new message is one field; a bank that is no more is removed."""
        bank = BankReport(gross_device_hours=1.0, spent_device_hours=0.5, net_device_hours=0.5)
        before = to_wire(self.STATUS.model_copy(update={"bank": bank}))
        assert diff_status(before, self.STATUS.model_copy(update={"message": "Rests."})) == {
            "message": "Rests.",
            "bank": None,
        }

    def test_the_observation_is_the_ledger_s(self) -> None:
        """A status that does not know it leaves it alone."""
        assert diff_status(to_wire(self.STATUS) | {"observation": {"run": "o0"}}, self.STATUS) == {}

    @pytest.mark.parametrize("changes", [False, True])
    def test_foreign_conditions_stay(self, changes: bool) -> None:
        """Others' conditions are sent back as they are where ours change, and are no reason to send anything."""
        foreign = make_condition("Blessed", extra="kept")
        before = to_wire(self.STATUS) | {"conditions": [make_condition(), foreign]}
        status = self.STATUS
        if changes:
            stalled = READY.model_copy(update={"type": JobConditionType.STALLED, "status": ConditionStatus.FALSE})
            status = status.model_copy(update={"conditions": (READY, stalled)})
        patch = diff_status(before, status)
        assert ("conditions" in patch) == changes
        if changes:
            assert patch["conditions"][-1] == foreign


def test_closing_an_experiment_keeps_other_controllers_conditions() -> None:
    """The list is sent as a whole, so theirs are sent back as they were read."""
    theirs = make_condition("example.com/Checked", extra="kept")
    stored = from_wire(ExperimentStatus, {"conditions": [theirs]})
    document = {"metadata": {"resourceVersion": "7"}, "status": {"conditions": [theirs]}}
    verdict = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain.")
    patch = diff(document, stored, say_closed(close(stored, verdict, 100.0)))["status"]
    assert [condition["type"] for condition in patch["conditions"]] == ["Complete", "example.com/Checked"]
    assert patch["conditions"][-1] == theirs

"""What happens to the spec on a real API server, under every kind of owner?"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from amdahl_loop.adapters.kube.apply import Synced, sync_spec
from amdahl_loop.adapters.kube.jobs import SeenJob
from amdahl_loop.adapters.kube.status import write_status
from amdahl_loop.domain.api.training_job import EffectiveKnob, KnobSource
from amdahl_loop.domain.applying import Conflict, KeepOverlay, Nothing, RecordRelease, RecordRevert, WriteSpec
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.tuning import Mode
from builders import make_manifest
from kube_builders import connect, install_crds, job_path, see_job
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

BOTH = {"dataloaderWorkers": 0, "checkpointEverySteps": 50}


@pytest.fixture(scope="module")
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


class Job:
    """A TrainingJob on the server, as its owner and the operator see it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def manifest(self, knobs: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
        """The owner's file."""
        document = make_manifest(knobs or BOTH)
        document["metadata"] |= {"namespace": self.namespace} | metadata
        return document

    def apply(self, knobs: dict[str, Any] | None = None, *flags: str, **metadata: Any) -> None:
        """The owner's `kubectl apply`."""
        self.cluster.admin.kubectl("apply", *flags, "-f", "-", stdin=self.manifest(knobs, **metadata))

    def apply_as(self, manager: str, knobs: dict[str, Any] | None = None, **metadata: Any) -> None:
        """A tool's server-side apply, which takes every field."""
        path = job_path(self.namespace)
        reply = self.cluster.admin.apply(path, self.manifest(knobs, **metadata), manager=manager, force=True)
        assert reply.status in (200, 201), reply.message

    @property
    def object(self) -> dict[str, Any]:
        """What the server holds."""
        found: dict[str, Any] = self.cluster.admin.get(job_path(self.namespace)).body
        return found

    @property
    def knobs(self) -> dict[str, Any]:
        """What the spec says."""
        knobs: dict[str, Any] = self.object["spec"]["knobs"]
        return knobs

    def sync(self, *applications: Application, mode: Mode = Mode.AUTO) -> Synced:
        """The operator's step."""

        async def run() -> Synced:
            async with await connect(self.cluster) as client:
                return await sync_spec(client, await see_job(client, self.namespace), mode, applications)

        return asyncio.run(run())

    def note_seen(self, **values: str) -> None:
        """The status that the operator writes once it has found these values in the spec."""

        async def run() -> None:
            async with await connect(self.cluster) as client:
                seen: SeenJob = await see_job(client, self.namespace)
                found = tuple(
                    EffectiveKnob(name=KnobName(name), value=value, source=KnobSource.SPEC, experiment="e0")
                    for name, value in values.items()
                )
                await write_status(client, seen, seen.status.model_copy(update={"effective_knobs": found}))

        asyncio.run(run())


@pytest.fixture
def job(api_server: Cluster, api_namespace: str, definitions: None) -> Job:
    """A namespace of its own, in which the job is still to be made."""
    return Job(api_server, api_namespace)


def application(
    before: dict[str, int], after: dict[str, int], kind: ApplicationKind = ApplicationKind.APPLIED, name: str = "e0"
) -> Application:
    """Values in force."""
    return Application(
        job="pydocs",
        job_uid="uid",
        fingerprint="f" * 16,
        at_s=1.0,
        kind=kind,
        experiment=name,
        declared=Knobs.model_validate(before),
        knobs=Knobs.model_validate(after),
    )


TWO = BOTH | {"dataloaderWorkers": 2}
APPLIED = application(BOTH, TWO)


def owners(document: dict[str, Any], field: str = "f:dataloaderWorkers") -> set[str]:
    """Managers of one knob's field."""
    return {
        entry["manager"]
        for entry in document["metadata"]["managedFields"]
        if field in entry.get("fieldsV1", {}).get("f:spec", {}).get("f:knobs", {})
    }


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.SPEC])
@pytest.mark.parametrize("flags", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_what_somebody_applied_with_kubectl_is_overruled(job: Job, mode: Mode, flags: Sequence[str]) -> None:
    """The field becomes ours; every other one stays whose it was, and nothing else changes."""
    job.apply(None, *flags)
    before = job.object
    synced = job.sync(APPLIED, mode=mode)
    assert synced.decision == WriteSpec(experiment="e0", values={KnobName.DATALOADER_WORKERS: 2}, force=True)
    assert job.knobs == TWO
    after = job.object
    assert owners(after) == {"amdahl-loop"}
    assert "amdahl-loop" not in owners(after, "f:checkpointEverySteps")
    assert after["spec"] | {"knobs": BOTH} == before["spec"]
    assert after["metadata"].get("annotations") == before["metadata"].get("annotations")
    assert isinstance(job.sync(APPLIED, mode=mode).decision, Nothing)
    assert job.object["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("manager", "reason"),
    [
        ("argocd-controller", Reason.MANAGED_BY_ARGO_CD),
        ("kustomize-controller", Reason.MANAGED_BY_FLUX),
        ("helm", Reason.MANAGED_BY_HELM),
        ("helm-controller", Reason.MANAGED_BY_HELM),
        ("kapp", Reason.MANAGED_BY_KAPP),
        ("my-platform", Reason.MANAGED_BY_OTHER),
    ],
)
def test_what_a_tool_applies_is_left_to_it(job: Job, manager: str, reason: Reason) -> None:
    """Auto keeps an overlay, Spec reports a conflict; the object is not even touched."""
    job.apply_as(manager)
    version = job.object["metadata"]["resourceVersion"]
    kept, refused = job.sync(APPLIED).decision, job.sync(APPLIED, mode=Mode.SPEC).decision
    assert isinstance(kept, KeepOverlay)
    assert isinstance(refused, Conflict)
    assert (kept.reason, refused.reason) == (reason, reason)
    assert bool(kept.ignore) == (reason is not Reason.MANAGED_BY_OTHER)
    assert job.object["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize("mode", [Mode.OVERLAY, Mode.OBSERVE, Mode.RECOMMEND])
def test_other_modes_never_write(job: Job, mode: Mode) -> None:
    """Whoever owns the field."""
    job.apply()
    version = job.object["metadata"]["resourceVersion"]
    decision = job.sync(APPLIED, mode=mode).decision
    assert isinstance(decision, KeepOverlay if mode is Mode.OVERLAY else Nothing)
    assert decision.reason is Reason.MODE_KEEPS_SPEC
    assert job.object["metadata"]["resourceVersion"] == version


def test_a_tool_that_its_owner_lets_us_overrule_is_overruled(job: Job) -> None:
    """It was told to ignore the field and goes on owning it: force takes it, and nothing else of the tool's."""
    job.apply_as("kustomize-controller", annotations={"amdahl-loop.io/overrule": "kustomize-controller"})
    decision = job.sync(APPLIED).decision
    assert decision == WriteSpec(experiment="e0", values={KnobName.DATALOADER_WORKERS: 2}, force=True)
    assert job.knobs == TWO
    assert owners(job.object) == {"amdahl-loop"}
    assert owners(job.object, "f:checkpointEverySteps") == {"kustomize-controller"}


def test_a_knob_that_a_tool_leaves_out_is_recorded_and_then_ours(job: Job) -> None:
    """Server-side apply takes the field off the object; the record keeps the value in force until it is written."""
    job.apply_as("argocd-controller")
    assert isinstance(job.sync(APPLIED).decision, KeepOverlay)
    job.apply_as("argocd-controller", {"checkpointEverySteps": 50})
    assert job.knobs == {"checkpointEverySteps": 50}
    decision = job.sync(APPLIED).decision
    assert isinstance(decision, RecordRelease)
    job.sync(APPLIED, decision.as_application(2.0))
    assert job.knobs == TWO
    job.apply_as("argocd-controller", {"checkpointEverySteps": 50})
    assert job.knobs == TWO
    assert owners(job.object) == {"amdahl-loop"}


def test_a_tool_s_mark_makes_kubectl_s_field_the_tool_s(job: Job) -> None:
    """Argo CD tracks the object: its older versions apply under kubectl's name."""
    job.apply(annotations={"argocd.argoproj.io/tracking-id": "app:amdahl-loop.io/TrainingJob:x/pydocs"})
    decision = job.sync(APPLIED).decision
    assert isinstance(decision, KeepOverlay)
    assert decision.reason is Reason.MANAGED_BY_ARGO_CD
    assert job.knobs == BOTH


@pytest.mark.parametrize("flags", [(), ("--server-side", "--force-conflicts")], ids=["client-side", "server-side"])
def test_the_old_file_applied_again_is_a_revert_and_ends_the_writing(job: Job, flags: Sequence[str]) -> None:
    """Recorded once; then the value runs as an overlay, and nobody writes any more."""
    job.apply(None, *flags)
    job.sync(APPLIED)
    job.note_seen(dataloaderWorkers="2", checkpointEverySteps="50")
    job.apply(None, *flags)
    assert job.knobs == BOTH
    decision = job.sync(APPLIED).decision
    assert isinstance(decision, RecordRevert)
    fact = decision.as_application(9.0)
    kept = job.sync(APPLIED, fact).decision
    assert isinstance(kept, KeepOverlay)
    assert kept.reason is Reason.REVERTED
    assert job.knobs == BOTH


def test_a_third_value_is_left_alone(job: Job) -> None:
    """The owner's own word."""
    job.apply()
    job.sync(APPLIED)
    job.note_seen(dataloaderWorkers="2", checkpointEverySteps="50")
    job.apply(BOTH | {"dataloaderWorkers": 7})
    decision = job.sync(APPLIED).decision
    assert isinstance(decision, Nothing)
    assert decision.reason is Reason.NEW_BASELINE
    assert job.knobs["dataloaderWorkers"] == 7


def test_a_second_win_keeps_the_first_in_the_spec(job: Job) -> None:
    """An apply that left out the first field would take it away: we are its only owner."""
    job.apply()
    job.sync(APPLIED)
    both = TWO | {"checkpointEverySteps": 400}
    job.sync(APPLIED, application(TWO, both, name="e1"))
    assert job.knobs == both
    assert owners(job.object) == owners(job.object, "f:checkpointEverySteps") == {"amdahl-loop"}


def test_a_roll_back_puts_the_old_value_into_the_spec(job: Job) -> None:
    """It is ours to write: no force is needed."""
    job.apply()
    job.sync(APPLIED)
    back = application(TWO, BOTH, ApplicationKind.ROLLED_BACK)
    decision = job.sync(APPLIED, back).decision
    assert decision == WriteSpec(experiment="e0", values={KnobName.DATALOADER_WORKERS: 0}, force=False)
    assert job.knobs == BOTH


def test_a_job_that_changed_under_our_hands_is_not_written(job: Job) -> None:
    """Somebody edits between our look and our write: outdated, and the next pass decides anew."""
    job.apply()

    async def run() -> Synced:
        async with await connect(job.cluster) as client:
            seen = await see_job(client, job.namespace)
            job.apply(BOTH | {"dataloaderWorkers": 7})
            return await sync_spec(client, seen, Mode.AUTO, [APPLIED])

    assert asyncio.run(run()).outdated
    assert job.knobs["dataloaderWorkers"] == 7


def test_a_job_that_is_gone_is_not_made_anew(job: Job) -> None:
    """Deleted between our look and our write; an apply could create it."""
    job.apply()

    async def run() -> Synced:
        async with await connect(job.cluster) as client:
            seen = await see_job(client, job.namespace)
            job.cluster.admin.kubectl("delete", "trainingjob", "pydocs", "--namespace", job.namespace)
            return await sync_spec(client, seen, Mode.AUTO, [APPLIED])

    assert asyncio.run(run()).outdated
    assert job.cluster.admin.get(job_path(job.namespace)).status == 404


def test_a_value_that_the_server_does_not_take_is_said(job: Job) -> None:
    """The owner has drawn a limit since: the server's own message comes back."""
    document = job.manifest()
    document["spec"]["tuning"] = {"knobs": {"dataloaderWorkers": {"max": 1}}}
    job.cluster.admin.kubectl("apply", "-f", "-", stdin=document)
    synced = job.sync(APPLIED)
    assert isinstance(synced.decision, KeepOverlay)
    assert synced.decision.reason is Reason.REFUSED_BY_SERVER
    assert "knobs.dataloaderWorkers is 2, outside tuning.knobs.dataloaderWorkers [none, 1]" in synced.decision.sentence
    assert job.knobs == BOTH


def test_a_tool_that_came_between_keeps_its_field(job: Job) -> None:
    """What we read is older than what the server knows: without force the server itself names the new owner."""
    job.apply()

    async def run() -> Synced:
        async with await connect(job.cluster) as client:
            seen = await see_job(client, job.namespace)
            job.apply_as("argocd-controller")
            now = await see_job(client, job.namespace)
            seen.document["metadata"]["resourceVersion"] = now.resource_version
            return await sync_spec(client, seen, Mode.AUTO, [APPLIED])

    decision = asyncio.run(run()).decision
    assert isinstance(decision, KeepOverlay)
    assert decision.reason is Reason.MANAGED_BY_ARGO_CD
    assert job.knobs == BOTH

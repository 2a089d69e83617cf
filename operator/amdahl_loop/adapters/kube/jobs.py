"""What does a TrainingJob say at this moment?

One live read, parsed once: what is declared or why it cannot be used, what was reported last, who owns which field.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.domain.api.kinds import GROUP
from amdahl_loop.domain.api.timestamps import to_epoch_s
from amdahl_loop.domain.api.training_job import TrainingJobStatus, read_training_job
from amdahl_loop.domain.api.wire import from_wire
from amdahl_loop.domain.applying import DeclaredSpec
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.parsing import ManifestError
from amdahl_loop.domain.resources import QUEUE_LABELS, TrainingJob
from amdahl_loop.domain.status import read_seen
from amdahl_loop.domain.stewards import Claim, read_marks, read_overruled

_KNOBS = {f"f:{knob}": knob for knob in KnobName}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownJob:
    """A TrainingJob as the server shows it, not parsed: whose it is, and whether it is as it was before."""

    document: Object = field(repr=False)

    @property
    def namespace(self) -> str:
        """Namespace of the job."""
        return str(self.document["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(self.document["metadata"]["name"])

    @property
    def uid(self) -> str:
        """UID: another job of the same name is another job."""
        return str(self.document["metadata"]["uid"])

    @property
    def resource_version(self) -> str:
        """Version that was read: a write that carries it fails where somebody wrote in between."""
        return str(self.document["metadata"]["resourceVersion"])

    @property
    def generation(self) -> int:
        """Number of the spec that was read."""
        return int(self.document["metadata"].get("generation") or 0)

    @property
    def told_generation(self) -> int:
        """Number of the spec that the status speaks of; 0 where there is none."""
        return int((self.document.get("status") or {}).get("observedGeneration") or 0)

    @property
    def created_at_s(self) -> float:
        """When it was made, by the server's clock."""
        return to_epoch_s(self.document["metadata"]["creationTimestamp"])

    @property
    def is_deleting(self) -> bool:
        """Whether the job is on its way out."""
        return "deletionTimestamp" in self.document["metadata"]

    @property
    def is_suspended(self) -> bool:
        """Whether its owner has suspended it."""
        return bool((self.document.get("spec") or {}).get("suspend"))

    @property
    def is_queued(self) -> bool:
        """Whether a queue may manage it."""
        return not frozenset(QUEUE_LABELS).isdisjoint(self.document["metadata"].get("labels") or ())

    @property
    def digest(self) -> int:
        """What a pass reads of it, as one number: with the same, it finds what it found before.

        The spec by its generation, who owns its knobs, the marks of tools, our own annotations, labels and status. An
        annotation of somebody else's, for one, changes the version and nothing that a pass would look at.
        """
        metadata = self.document["metadata"]
        annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
        read = (
            metadata["uid"],
            metadata.get("generation"),
            metadata.get("deletionTimestamp"),
            sorted(labels.items()),
            sorted((name, text) for name, text in annotations.items() if name.startswith(f"{GROUP}/")),
            sorted(read_marks({**labels, **annotations})),
            read_claims(metadata.get("managedFields") or ()),
            self.document.get("status"),
        )
        return hash(repr(read))

    def read_status(self) -> TrainingJobStatus:
        """What was reported last; what cannot be read counts as nothing."""
        try:
            return from_wire(TrainingJobStatus, self.document.get("status") or {})
        except ValidationError:
            return TrainingJobStatus()

    def see(self) -> "SeenJob":
        """The job, parsed."""
        try:
            stored = read_training_job(self.document)
        except ManifestError as error:
            return SeenJob(document=self.document, job=None, faults=str(error), status=self.read_status())
        return SeenJob(document=self.document, job=stored.job, status=stored.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenJob(ShownJob):
    """A TrainingJob as it was read. `job` is None where the spec cannot be used; `faults` then says why."""

    job: TrainingJob | None
    faults: str = ""
    status: TrainingJobStatus

    @property
    def declared(self) -> DeclaredSpec:
        """What the spec says of the knobs, and who keeps it so; the job must be usable."""
        assert self.job is not None, "an unusable spec declares nothing"
        metadata = self.document["metadata"]
        marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
        return DeclaredSpec(
            name=self.name,
            namespace=self.namespace,
            knobs=self.job.spec.knobs,
            claims=read_claims(metadata.get("managedFields") or ()),
            tracked_by=read_marks(marks),
            overruled=read_overruled(metadata.get("annotations") or {}),
            seen=read_seen(self.status),
        )


async def show(client: KubeClient, namespace: str, name: str) -> ShownJob | None:
    """The TrainingJob of that name as it is now; None where there is none."""
    document = await client.get(Kind.TRAINING_JOB, namespace, name)
    return None if document is None else ShownJob(document=document)


async def look_up(client: KubeClient, namespace: str, name: str) -> SeenJob | None:
    """The same, parsed."""
    shown = await show(client, namespace, name)
    return None if shown is None else shown.see()


async def tell_owner(client: KubeClient, job: ShownJob, reason: str, message: str, *, warning: bool) -> None:
    """An event about a job, which `kubectl describe` shows."""
    await client.post_event(job.document, reason, message, warning=warning)


def see(document: Object) -> SeenJob:
    """A TrainingJob object, parsed."""
    return ShownJob(document=document).see()


def read_claims(managed_fields: Iterable[Mapping[str, Any]]) -> tuple[Claim, ...]:
    """Who owns which knob's field, from `metadata.managedFields`; managers of the status own none."""
    return tuple(
        Claim(manager=str(entry.get("manager", "")), knob=knob)
        for entry in managed_fields
        if not entry.get("subresource")
        for knob in _owned_knobs(entry.get("fieldsV1") or {})
    )


def _owned_knobs(fields: Mapping[str, Any]) -> tuple[KnobName, ...]:
    """Knobs below `spec.knobs`; all of them where `spec` or `spec.knobs` is owned as one."""
    spec = fields.get("f:spec")
    knobs = spec.get("f:knobs") if spec else spec
    if knobs is None:
        return ()
    return tuple(KnobName) if not knobs else tuple(_KNOBS[key] for key in knobs if key in _KNOBS)

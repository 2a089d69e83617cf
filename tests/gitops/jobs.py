"""Which job does each tool look after in each mode, and what does the server say of it?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from testbed.access import Access

API_VERSION = "amdahl-loop.io/v1alpha1"
FIELD = "f:dataloaderWorkers"
VARIABLE = "AMDAHL_DATALOADER_WORKERS"
MODES = ("Auto", "Spec", "Overlay", "Recommend", "Observe")
DECLARED = 0
PROVEN = 3
"""What `fakes.loader_bound` makes of a loader without workers."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A TrainingJob as it stands in its owner's source: a file, a chart, a repository."""

    mode: str
    workers: int | None = DECLARED
    """None: the knob is left out."""
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name of the job: its mode."""
        return self.mode.lower()

    def leave_out(self) -> "Source":
        """The same without the knob."""
        return replace(self, workers=None)

    def mark(self, annotations: Mapping[str, str]) -> "Source":
        """The same with more annotations."""
        return replace(self, annotations=(*self.annotations, *annotations.items()))

    def render(self, tool: str) -> Object:
        """The manifest. Each job has an image of its own: no job's win is a hint to another.

        Without a knob there is no `knobs` either: of an owner's last field, server-side apply makes a null where the
        map is left there empty, and the definition refuses that.
        """
        container = {
            "name": "trainer",
            "image": f"example/{tool}-{self.name}:1",
            "command": ["python", "train.py"],
        }
        knobs = {} if self.workers is None else {"knobs": {"dataloaderWorkers": self.workers}}
        metadata: Object = {"name": self.name}
        if self.annotations:
            metadata["annotations"] = dict(self.annotations)
        return {
            "apiVersion": API_VERSION,
            "kind": "TrainingJob",
            "metadata": metadata,
            "spec": {
                **knobs,
                "template": {"spec": {"containers": [container]}},
                "tuning": {"mode": self.mode, "profile": "quick", "budget": {"deviceHours": "100"}},
            },
        }


@dataclass(frozen=True)
class Job:
    """What the server holds of one job at one moment."""

    workers: int | None
    """What the spec says."""
    runs_with: int | None
    """What the job's pods are given."""
    owners: tuple[str, ...]
    """Managers of the field."""
    conflict: str
    """`ApplyConflict`, as `True/ManagedByFlux`."""
    tuned: str
    """`Tuned`, likewise."""
    message: str
    """The message of `ApplyConflict`."""
    generation: int
    version: str
    is_reported: bool
    """Whether the status speaks of the present spec."""
    reverts: int
    """Reverts on record."""


def read_job(access: Access, namespace: str, name: str) -> Job:
    """The job now."""
    document = access.get(f"/apis/{API_VERSION}/namespaces/{namespace}/trainingjobs/{name}").body
    values = access.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}-knobs").body.get("data") or {}
    metadata, status = document["metadata"], document.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    return Job(
        workers=(document["spec"].get("knobs") or {}).get("dataloaderWorkers"),
        runs_with=int(values[VARIABLE]) if VARIABLE in values else None,
        owners=tuple(sorted(_owners(metadata))),
        conflict=_say(conditions.get("ApplyConflict")),
        tuned=_say(conditions.get("Tuned")),
        message=(conditions.get("ApplyConflict") or {}).get("message", ""),
        generation=metadata["generation"],
        version=metadata["resourceVersion"],
        is_reported=status.get("observedGeneration") == metadata["generation"],
        reverts=_count_reverts(access, namespace, metadata["uid"]),
    )


def _owners(metadata: Mapping[str, Any]) -> set[str]:
    return {
        entry["manager"]
        for entry in metadata["managedFields"]
        if FIELD in ((entry.get("fieldsV1") or {}).get("f:spec") or {}).get("f:knobs", {})
    }


def _say(condition: Mapping[str, Any] | None) -> str:
    return "" if condition is None else f"{condition['status']}/{condition['reason']}"


def _count_reverts(access: Access, namespace: str, uid: str) -> int:
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/experiments?labelSelector=amdahl-loop.io/job-uid={uid}"
    applications = [
        application
        for experiment in access.get(path).body["items"]
        for application in (experiment.get("status") or {}).get("applications") or ()
    ]
    return sum(application["kind"] == "reverted" for application in applications)

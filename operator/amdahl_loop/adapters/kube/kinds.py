"""Which kinds of objects does the operator touch, and where does the API server keep them?"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

Object = dict[str, Any]
"""A raw API object as the server gave it or gets it; it never leaves `adapters/kube`."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""What the server accepts as a name; anything else could walk through the path of a request."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where one kind lives in the API."""

    group: str
    version: str
    plural: str
    kind: str


class Kind(Enum):
    """The kinds of objects that the operator reads or writes; all of them live in namespaces."""

    TRAINING_JOB = Resource("amdahl-loop.io", "v1alpha1", "trainingjobs", "TrainingJob")
    EXPERIMENT = Resource("amdahl-loop.io", "v1alpha1", "experiments", "Experiment")
    TUNING_POLICY = Resource("amdahl-loop.io", "v1alpha1", "tuningpolicies", "TuningPolicy")
    JOB = Resource("batch", "v1", "jobs", "Job")
    POD = Resource("", "v1", "pods", "Pod")
    SERVICE = Resource("", "v1", "services", "Service")
    CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
    CLAIM = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
    QUOTA = Resource("", "v1", "resourcequotas", "ResourceQuota")
    EVENT = Resource("events.k8s.io", "v1", "events", "Event")
    WORKLOAD = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")

    @property
    def api_version(self) -> str:
        """`apiVersion` of objects of this kind."""
        return f"{self.value.group}/{self.value.version}" if self.value.group else self.value.version

    @property
    def header(self) -> Object:
        """`apiVersion` and `kind`, the beginning of every object."""
        return {"apiVersion": self.api_version, "kind": self.value.kind}

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of a collection, of an object in it, or of a part of that; None: all namespaces.

        ValueError for names that the server could not know: nothing but names ever gets into a path.
        """
        root = f"/apis/{self.api_version}" if self.value.group else f"/api/{self.api_version}"
        parts = [root, *(["namespaces", _check(namespace)] if namespace is not None else []), self.value.plural]
        return "/".join([*parts, *([_check(name)] if name else []), *([subresource] if subresource else [])])


def _check(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of an object: lower-case letters, digits, '-' and '.', at most 253")
    return name

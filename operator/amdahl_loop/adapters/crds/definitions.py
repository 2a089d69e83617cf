"""What is the CustomResourceDefinition of a kind?"""

from typing import Any

from amdahl_loop.adapters.crds.schema import structural_schema
from amdahl_loop.domain.api.experiment import EXPERIMENT
from amdahl_loop.domain.api.kinds import CATEGORY, GROUP, VERSION, Column, Kind
from amdahl_loop.domain.api.training_job import TRAINING_JOB
from amdahl_loop.domain.api.tuning_policy import TUNING_POLICY
from amdahl_loop.domain.rules import VALIDATIONS

KINDS = (TRAINING_JOB, EXPERIMENT, TUNING_POLICY)


def define(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as an object."""
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    if kind.status is not None:
        version["subresources"] = {"status": {}}
    version["schema"] = {"openAPIV3Schema": object_schema(kind)}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": [CATEGORY],
            },
            "versions": [version],
        },
    }


def object_schema(kind: Kind) -> dict[str, Any]:
    """The schema of a whole object: its spec, its status, and the rules over both."""
    spec = structural_schema(kind.spec, kind.has_defaults)
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string", "description": "Group and version of the kind: amdahl-loop.io/v1alpha1."},
        "kind": {"type": "string", "description": f"The kind: {kind.name}."},
        "metadata": {"type": "object"},
        "spec": spec | {"description": kind.spec_text},
    }
    required = ["spec"] if spec.get("required") else []
    if kind.status is not None:
        properties["status"] = structural_schema(kind.status, False) | {"description": kind.status_text}
    schema: dict[str, Any] = {"type": "object", "description": kind.text, "properties": properties}
    if required:
        schema["required"] = required
    if kind.rules:
        schema[VALIDATIONS] = [rule.as_schema() for rule in kind.rules]
    return schema


def _column(column: Column) -> dict[str, Any]:
    written: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        "description": column.text,
    }
    return written | ({"priority": 1} if column.wide else {})

"""What makes a kind of ours: its names, its columns, its schema and the rules over the whole object?

Names and columns stand beside the models that they show; the CRDs are generated from these descriptions.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from amdahl_loop.domain.rules import Rule

GROUP = "amdahl-loop.io"
VERSION = "v1alpha1"
CATEGORY = "amdahl"
"""`kubectl get amdahl` lists every kind of ours; none is ever part of `all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of `kubectl get`; a wide one is shown with `-o wide` only."""

    name: str
    path: str
    text: str
    type: Literal["string", "integer", "boolean", "date"] = "string"
    wide: bool = False


AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date", text="Time since the object was created.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of the group `amdahl-loop.io`.

    `has_defaults` says whether the server fills in what the spec leaves out: never where a plan must stay as written.
    `selectable` are fields that `--field-selector` may name (Kubernetes 1.32 and later).
    """

    name: str
    plural: str
    short: str
    text: str
    spec: type[BaseModel]
    spec_text: str
    status: type[BaseModel] | None = None
    status_text: str = ""
    has_defaults: bool = False
    columns: tuple[Column, ...] = ()
    selectable: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


def short_name(limit: int, why: str) -> Rule:
    """A name that children's names can be made from."""
    fix = f"must be lower-case letters, digits and '-', at most {limit}, because {why}; rename it"
    return Rule(
        holds=f"self.metadata.name.size() <= {limit} && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        says=f"metadata.name {fix}",
        shows=f"metadata.name '%s' {fix}",
        values=("self.metadata.name",),
    )

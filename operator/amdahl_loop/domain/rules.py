"""Which checks can an API server make on its own, and what does it say?

Notes beside the models: CEL rules with their messages, and how lists and maps merge. The CRD generator copies them into
the schema; nothing else reads them. The models' own validators find the same faults where there is no server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

VALIDATIONS = "x-kubernetes-validations"
LIST_TYPE = "x-kubernetes-list-type"
LIST_KEYS = "x-kubernetes-list-map-keys"
MAP_TYPE = "x-kubernetes-map-type"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule: what must hold, and what is said when it does not.

    `says` names field and fix and is always there. `shows` says the same with the offending values in the places of
    `%s` and `%d`; `values` are the CEL expressions for those (`format` is the only way to put a number into a message
    that the server's cost estimate accepts). `at` is the field that is named, such as `.knobs.prefetchFactor`.
    """

    holds: str
    says: str
    shows: str = ""
    values: tuple[str, ...] = ()
    at: str = ""

    def as_schema(self) -> JsonDict:
        """The rule as an entry of `x-kubernetes-validations`."""
        quoted = self.shows.replace("\\", "\\\\").replace("'", "\\'")
        sentence = f"'{quoted}'.format([{', '.join(self.values)}])" if self.shows else ""
        parts = {"rule": self.holds, "message": self.says, "messageExpression": sentence, "fieldPath": self.at}
        return {name: text for name, text in parts.items() if text}


@dataclass(frozen=True, slots=True, eq=False)
class Note:
    """Keywords that an annotated field adds to its schema; compared by identity, since pydantic hashes annotations."""

    keywords: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Pydantic's hook for annotations that only describe. Rules add up, other keywords replace."""
        schema = handler(core_schema)
        rules = [*schema.get(VALIDATIONS, []), *self.keywords.get(VALIDATIONS, [])]
        return schema | dict(self.keywords) | ({VALIDATIONS: rules} if rules else {})


SET = Note({LIST_TYPE: "set"})
"""A list whose items are unique and whose order says nothing."""

ATOMIC = Note({LIST_TYPE: "atomic"})
"""A list that one writer replaces as a whole."""

WHOLE = Note({MAP_TYPE: "atomic"})
"""An object that one writer replaces as a whole: ownership is not tracked field by field."""


def keyed_by(*keys: str) -> Note:
    """A list of objects that these fields tell apart: writers merge by key, the server refuses doubles."""
    return Note({LIST_TYPE: "map", LIST_KEYS: list(keys)})


def ruled(*rules: Rule) -> Note:
    """Rules of one field."""
    return Note({VALIDATIONS: [rule.as_schema() for rule in rules]})


def guarded_by(*rules: Rule) -> JsonDict:
    """Rules of a whole model, for its `json_schema_extra`."""
    return {VALIDATIONS: [rule.as_schema() for rule in rules]}

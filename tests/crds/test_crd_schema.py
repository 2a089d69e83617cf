"""Are the generated schemas structural, bounded, described, and free of surprises?"""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from amdahl_loop.adapters.crds.definitions import KINDS, define, object_schema
from amdahl_loop.adapters.crds.docstrings import UndocumentedError
from amdahl_loop.adapters.crds.schema import KEEP_UNKNOWN, UnsayableError, structural_schema
from amdahl_loop.domain.api.kinds import Kind
from amdahl_loop.domain.api.training_job import MAX_STATUS_BYTES, TRAINING_JOB
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.rules import ATOMIC, LIST_TYPE, SET, VALIDATIONS, Rule, guarded_by, keyed_by, ruled
from amdahl_loop.domain.telemetry import Seconds
from amdahl_loop.domain.tuning import Tuning
from amdahl_loop.domain.values import DecimalText, Frozen

Node = dict[str, Any]


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node of a schema with its path."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(node.get(word), dict):
            yield from walk(node[word], f"{path}[]")


@cache
def nodes(kind: Kind) -> list[tuple[str, Node]]:
    """Every node of a kind's schema but the server's own metadata."""
    return [
        (path, node) for path, node in walk(object_schema(kind)) if path not in (".metadata", ".apiVersion", ".kind")
    ]


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


class Part(Frozen):
    """A part with a name."""

    name: str
    """What it is called."""
    weight: int = 3
    """How heavy it is."""


class Thing(Frozen):
    """One of everything."""

    count: Annotated[int, Field(ge=0, le=9)] = 1
    """How many."""
    share: Seconds = 0.5
    """A number with a fraction."""
    maybe: Annotated[int | None, Field(ge=1)] = None
    """Absent or a number."""
    words: Annotated[tuple[str, ...], Field(max_length=4), SET] = ()
    """Words without doubles."""
    pair: tuple[int, int] = (1, 2)
    """Two numbers."""
    parts: Annotated[tuple[Part, ...], Field(max_length=2), keyed_by("name")] = ()
    """Parts by name."""
    part: Part | None = None
    """One part."""
    knobs: Knobs = Knobs()
    """Knobs."""
    amount: Annotated[DecimalText, ruled(Rule("self != '13'", says="not 13"))] = "1"
    """An amount with rules of its own and of its type."""


def test_constructs_of_pydantic_become_structural() -> None:
    """Each construct that pydantic writes in its own way has one form in the server's dialect."""
    fields = structural_schema(Thing, has_defaults=True)["properties"]
    amount = fields.pop("amount")

    assert [rule["message"] for rule in amount[VALIDATIONS]] == [
        "must be a decimal number; write digits as text, such as '4' or '0.5'",
        "not 13",
    ]
    assert fields == {
        "count": {
            "description": "How many.", "type": "integer", "format": "int64", "default": 1, "minimum": 0, "maximum": 9,
        },
        "share": {
            "description": "A number with a fraction.",
            "type": "string",
            "default": "0.5",
            "pattern": r"^-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?$",
            "maxLength": 32,
        },
        "maybe": {"description": "Absent or a number.", "type": "integer", "format": "int64", "minimum": 1},
        "words": {
            "description": "Words without doubles.", "type": "array", "maxItems": 4, LIST_TYPE: "set", "items": {"type": "string"},
        },
        "pair": {
            "description": "Two numbers.", "type": "array", "default": [1, 2], "minItems": 2, "maxItems": 2,
            "items": {"type": "integer", "format": "int64"},
        },
        "parts": {
            "description": "Parts by name.",
            "type": "array",
            "maxItems": 2,
            LIST_TYPE: "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"description": "What it is called.", "type": "string"},
                    "weight": {"description": "How heavy it is.", "type": "integer", "format": "int64", "default": 3},
                },
            },
        },
        "part": {
            "description": "One part.",
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"description": "What it is called.", "type": "string"},
                "weight": {"description": "How heavy it is.", "type": "integer", "format": "int64", "default": 3},
            },
        },
        "knobs": structural_schema(Knobs, has_defaults=True) | {"description": "Knobs."},
    }  # fmt: skip


def test_a_rule_shows_the_offending_value() -> None:
    """Values come into a message by `format`, and quotes in the sentence do not end it."""
    rule = Rule("self.a < 3", says="too big", shows="'%d' isn't below 3", values=("self.a",), at=".a")

    assert guarded_by(rule) == {
        VALIDATIONS: [
            {
                "rule": "self.a < 3",
                "message": "too big",
                "messageExpression": r"'\'%d\' isn\'t below 3'.format([self.a])",
                "fieldPath": ".a",
            }
        ]
    }


class Untyped(BaseModel):
    """A field that could be anything."""

    value: Any
    """Anything."""


class Mixed(BaseModel):
    """A field of two types."""

    value: int | bool
    """A number or not."""


class Uneven(BaseModel):
    """A tuple of two types."""

    value: tuple[int, str]
    """A number and a word."""


class Constant(BaseModel):
    """A keyword that the server does not know."""

    value: Annotated[int, Field(multiple_of=3)]
    """A multiple of three."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Untyped, "an untyped field has no structural schema"),
        (Mixed, r"a union of \['bool', 'int'\] has no structural schema"),
        (Uneven, "a tuple of several types has no structural schema"),
        (Constant, r"\['multipleOf'\] cannot be said in a structural schema"),
    ],
)
def test_what_cannot_be_said_is_refused_when_the_schema_is_made(model: type[BaseModel], said: str) -> None:
    """A type that the server would refuse, or drop silently, never gets into a definition."""
    with pytest.raises(UnsayableError, match=said):
        structural_schema(model, has_defaults=False)


def test_a_field_without_a_text_is_refused() -> None:
    """`kubectl explain` has something to say about every field, or there is no definition at all."""

    class Silent(BaseModel):
        """Says nothing about its field."""

        value: int
        other: int
        """The other one."""

    with pytest.raises(UndocumentedError, match=r"Silent\.value has no text below it; add one"):
        structural_schema(Silent, has_defaults=False)


@every_kind
def test_every_field_says_what_it_is(kind: Kind) -> None:
    """Every property has a text that ends like a sentence, and none speaks of Python."""
    for path, node in nodes(kind):
        for name, field in node.get("properties", {}).items():
            if f"{path}.{name}" == ".metadata":
                continue
            text = field.get("description", "")
            assert text.endswith("."), f"{path}.{name}: {text!r}"
            assert "`" not in text, f"{path}.{name}"
            assert "None" not in text.split(), f"{path}.{name}"


@every_kind
def test_no_field_leads_to_another_namespace(kind: Kind) -> None:
    """[P] Every reference is local to the object's namespace: none can even be written that is not."""
    template = ".spec.template"
    named = {path for path, node in nodes(kind) if "namespace" in {name.lower() for name in node.get("properties", {})}}
    assert {path for path in named if not path.startswith(template)} == set()


@every_kind
def test_every_list_map_and_text_is_bounded(kind: Kind) -> None:
    """Nobody can fill a store, or a rule's budget, through a field of ours. What is kept unread is the server's to bound."""
    for path, node in nodes(kind):
        if node.get("type") == "string":
            assert "enum" in node or "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
            assert LIST_TYPE in node or node["maxItems"] <= 16, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@every_kind
def test_every_list_of_objects_says_how_it_merges(kind: Kind) -> None:
    """Two writers of one list of objects must meet by key, or one of them owns it whole."""
    for path, node in nodes(kind):
        if (
            node.get("type") == "array"
            and node["items"].get("type") == "object"
            and not path.startswith(".status.verdict")
        ):
            assert node.get(LIST_TYPE) in ("map", "atomic"), path


@every_kind
def test_schemas_are_structural(kind: Kind) -> None:
    """No reference, no union, no null, a type at every node, and never fields beside a map."""
    for path, node in nodes(kind):
        assert node.get("type") or node.get(KEEP_UNKNOWN), path
        assert not {"$ref", "anyOf", "allOf", "oneOf", "nullable", "const", "prefixItems", "title"} & node.keys(), path
        assert not ("properties" in node and "additionalProperties" in node), path


@every_kind
def test_only_open_content_is_kept(kind: Kind) -> None:
    """Unknown fields are pruned everywhere but in the pod template, which is the user's."""
    kept = {path for path, node in nodes(kind) if node.get(KEEP_UNKNOWN)}

    template = ".spec.template"
    inside = {
        template,
        f"{template}.spec",
        f"{template}.spec.containers[]",
        f"{template}.spec.containers[].env[]",
        f"{template}.spec.containers[].resources",
        f"{template}.spec.containers[].resources.requests[]",
        f"{template}.spec.containers[].resources.limits[]",
    }
    assert kept == (inside if kind is TRAINING_JOB else set())


def test_nothing_is_filled_in_where_it_is_not_ours() -> None:
    """Defaults are in the tuning and in policies: never in knobs, in the user's template, in a plan or in a status."""
    having = {path for kind in KINDS for path, node in nodes(kind) if "default" in node}

    assert {path for path in having if ".knobs" in path or ".template" in path or path.startswith(".status")} == set()
    assert {path.split(".")[2] for path in having if path.count(".") > 1} == {
        "replicas", "suspend", "deviceResource", "tuning", "paused",
    }  # fmt: skip


def test_objects_that_hold_defaults_are_filled_in_too() -> None:
    """A job that says nothing about tuning still shows how it is tuned."""
    schema = structural_schema(Tuning, has_defaults=True)

    assert schema["default"] == {}
    assert {name: field.get("default") for name, field in schema["properties"].items()} == {
        "mode": "Auto",
        "objective": "DeviceHours",
        "maxSlowdown": "1.05",
        "knobs": None,
        "budget": {},
        "expectedDeviceHours": None,
        "checkpoint": {},
        "profile": "standard",
        "pin": None,
        "trial": {},
        "apply": {},
    }


def test_a_status_fits_into_its_limit_by_its_bounds_alone() -> None:
    """The largest TrainingJob status that the schema allows is at most 32 KiB of JSON.

    Sentences are cut by the bytes of their JSON, all other texts are of single-byte characters that need no escape, but
    for the quotes and backslashes of a summary: at most each of its characters.
    """
    assert _largest(object_schema(TRAINING_JOB)["properties"]["status"], "") <= MAX_STATUS_BYTES


def _largest(node: Node, name: str) -> int:
    """Bytes of the largest JSON of a node."""
    match node["type"]:
        case "object":
            return 2 + sum(len(field) + 4 + _largest(inner, field) for field, inner in node["properties"].items())
        case "array":
            return 2 + node["maxItems"] * (1 + _largest(node["items"], ""))
        case "string":
            longest = max(map(len, node["enum"])) if "enum" in node else node["maxLength"]
            return 2 + (2 * longest if name == "summary" else longest)
        case "integer":
            return 20
        case _:
            return 5


@every_kind
def test_definitions_have_what_people_type(kind: Kind) -> None:
    """One category for all, never part of `all`; short names that nobody else uses; columns without positions in lists of conditions."""
    definition = define(kind)
    names, version = definition["spec"]["names"], definition["spec"]["versions"][0]

    assert definition["metadata"]["name"] == f"{names['plural']}.amdahl-loop.io"
    assert (names["categories"], names["shortNames"]) == (["amdahl"], [kind.short])
    assert definition["spec"]["scope"] == "Namespaced"
    assert all("conditions[0" not in column["jsonPath"] for column in version["additionalPrinterColumns"])
    assert ("subresources" in version) == (kind.status is not None)


def test_plain_lists_are_owned_whole() -> None:
    """An annotation that only describes changes nothing about the values."""

    class Listed(Frozen):
        """A list."""

        items: Annotated[tuple[int, ...], Field(max_length=3), ATOMIC] = ()
        """Numbers."""

    assert Listed(items=(1, 2)).items == (1, 2)
    assert structural_schema(Listed, has_defaults=False)["properties"]["items"][LIST_TYPE] == "atomic"

"""How does a pydantic model become a structural OpenAPI v3 schema?

Pydantic writes JSON Schema; an API server takes a stricter dialect: no references, no unions with null, a type at
every node, bounds wherever CEL looks. What cannot be said in that dialect is refused here, when the schema is made. No
library does this for pydantic 2 with CEL rules, list types and defaults together.
"""

from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from amdahl_loop.adapters.crds.docstrings import describe_field
from amdahl_loop.domain.api.wire import DECIMAL_PATTERN, MAX_DECIMAL
from amdahl_loop.domain.rules import LIST_KEYS, LIST_TYPE, MAP_TYPE, VALIDATIONS

KEEP_UNKNOWN = "x-kubernetes-preserve-unknown-fields"
_REFERENCE = "#/$defs/"
_KEYWORDS = (
    "description", "type", "format", "enum", "default", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties", LIST_TYPE, LIST_KEYS, MAP_TYPE, KEEP_UNKNOWN, VALIDATIONS,
    "required", "properties", "items", "additionalProperties",
)  # fmt: skip
"""Every keyword that is used here, in the order in which people read them."""


class UnsayableError(TypeError):
    """A type that a structural schema cannot hold."""


def structural_schema(model: type[BaseModel], has_defaults: bool) -> dict[str, Any]:
    """The structural schema of a model, with a text on every field.

    `has_defaults`: whether the server fills in what is left out. Content that is kept as it is never gets defaults.
    """
    document = model.model_json_schema(schema_generator=_Dialect, by_alias=True, mode="validation")
    definitions = document.pop("$defs", {})
    schema = _inline(document, definitions)
    return _settle_defaults(schema, has_defaults)


class _Dialect(GenerateJsonSchema):
    """Pydantic's generator, speaking the API server's dialect."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """An object with a text on every field; open models keep what they do not know."""
        model: type[BaseModel] = schema["cls"]
        written = super().model_schema(schema)
        written.pop("description", None)
        for name, field in model.model_fields.items():
            written["properties"][field.alias or name]["description"] = describe_field(model, name)
        if written.pop("additionalProperties", False):
            written[KEEP_UNKNOWN] = True
        return written

    def field_title_should_be_set(self, _schema: Any) -> bool:
        """Titles are noise beside the fields' names."""
        return False

    def float_schema(self, _schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """A number that may have a fraction travels as decimal text."""
        return {"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": MAX_DECIMAL}

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """A whole number of 64 bits."""
        return super().int_schema(schema) | {"format": "int64"}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """What may be absent is simply not required."""
        return self.generate_inner(schema["schema"])

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        """Only a quantity, text or number, is of more than one type; it is the pod's, and kept as it is."""
        kinds = {choice["type"] for choice in schema["choices"] if isinstance(choice, dict)}
        if kinds != {"str", "int", "float"}:
            raise UnsayableError(f"a union of {sorted(kinds)} has no structural schema; use one type")
        return {KEEP_UNKNOWN: True}

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        """A list of one type; a tuple of fixed length holds one type too."""
        items = [self.generate_inner(item) for item in schema["items_schema"]]
        if any(item != items[0] for item in items):
            raise UnsayableError("a tuple of several types has no structural schema; use a model with named fields")
        bounds = {} if "variadic_item_index" in schema else {"min_length": len(items), "max_length": len(items)}
        written: JsonSchemaValue = {"type": "array", "items": items[0]}
        self.update_with_validations(written, {**schema, **bounds}, self.ValidationsMapping.array)
        return written

    def any_schema(self, _schema: core_schema.AnySchema) -> NoReturn:
        """Nothing is untyped."""
        raise UnsayableError("an untyped field has no structural schema; give it a type")


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """The node with its references replaced by what they stand for; keywords beside a reference win. No titles."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    beside = {keyword: value for keyword, value in node.items() if keyword not in ("$ref", "title")}
    if reference is not None:
        return _inline(definitions[reference.removeprefix(_REFERENCE)] | beside, definitions)
    return {
        keyword: {name: _inline(field, definitions) for name, field in value.items()}
        if keyword == "properties"
        else value
        if keyword in ("default", "enum")
        else _inline(value, definitions)
        for keyword, value in beside.items()
    }


def _settle_defaults(node: dict[str, Any], has_defaults: bool) -> dict[str, Any]:
    """Defaults where they belong: on scalars, and `{}` on objects that hold some, so that those are reached."""
    unknown = node.keys() - set(_KEYWORDS)
    if unknown:
        raise UnsayableError(f"{sorted(unknown)} cannot be said in a structural schema: {node}")
    inner = has_defaults and not node.get(KEEP_UNKNOWN)
    settled = dict(node)
    if "properties" in node:
        settled["properties"] = {name: _settle_defaults(field, inner) for name, field in node["properties"].items()}
    if isinstance(node.get("items"), dict):
        settled["items"] = _settle_defaults(node["items"], inner)
    if isinstance(node.get("additionalProperties"), dict):
        settled["additionalProperties"] = _settle_defaults(node["additionalProperties"], inner)
    default = settled.pop("default", None)
    if "properties" in settled:
        default = {} if any("default" in field for field in settled["properties"].values()) else None
        default = None if settled.get("required") else default
    if has_defaults and default not in (None, [], ""):
        settled["default"] = repr(default) if isinstance(default, float) else default
    return {word: settled[word] for word in _KEYWORDS if word in settled}

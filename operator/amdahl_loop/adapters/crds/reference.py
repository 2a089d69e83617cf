"""How do the kinds read as one page? The text of every field, its type, its bounds and its rules, as Markdown."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from amdahl_loop.adapters.crds.definitions import KINDS, object_schema
from amdahl_loop.adapters.crds.schema import KEEP_UNKNOWN
from amdahl_loop.domain.api.kinds import CATEGORY, GROUP, VERSION, Kind
from amdahl_loop.domain.api.wire import DECIMAL_PATTERN
from amdahl_loop.domain.rules import LIST_KEYS, LIST_TYPE, VALIDATIONS

_HEAD = f"""# API reference: `{GROUP}/{VERSION}`

Made from the models in `operator/amdahl_loop/domain/` by `python -m amdahl_loop.cli.crds`, like the definitions in
`crds/`; edit the models, not this page. `kubectl explain trainingjob.spec.tuning` answers with the same texts.

All kinds are namespaced, and `kubectl get {CATEGORY}` lists them together. Absent means unset: nothing is ever null.
*Decimal text* is a number that may have a fraction, as text, so that it stays exact in every language that reads it.
"""


@cache
def render_reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for kind in KINDS for line in _render_kind(kind))])


def _render_kind(kind: Kind) -> Iterator[str]:
    schema = object_schema(kind)
    yield f"## {kind.name}\n"
    yield f"{kind.text}\n"
    yield f"Short name `{kind.short}`, definition [`crds/{kind.plural}.yaml`](../crds/{kind.plural}.yaml).\n"
    yield "| column of `kubectl get` | shows |\n|---|---|"
    for column in kind.columns:
        yield f"| {column.name}{' (wide)' if column.wide else ''} | {column.text} |"
    yield ""
    for part in ("spec", "status"):
        if part in schema["properties"]:
            yield f"### {kind.name} {part}\n"
            yield f"{schema['properties'][part]['description']}\n"
            yield "| field | type | meaning |\n|---|---|---|"
            yield from _render_fields(schema["properties"][part], "")
            yield ""
    rules = dict.fromkeys(
        f"| `{(place + rule.get('fieldPath', '')).lstrip('.') or kind.name}` | {rule['message']} |"
        for place, rule in find_rules(schema)
    )
    if rules:
        yield f"### {kind.name}: what the server refuses\n"
        yield "| where | what it says |\n|---|---|"
        yield from rules
        yield ""


def _render_fields(node: dict[str, Any], prefix: str) -> Iterator[str]:
    """A row for each field, the fields of objects and list items below it."""
    required = node.get("required", [])
    for name, field in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        mark = ", required" if name in required else ""
        yield f"| `{path}` | {describe_type(field)}{mark} | {_cell(field['description'])} |"
        inner, suffix = (field["items"], "[].") if "items" in field else (field, ".")
        yield from _render_fields(inner, f"{path}{suffix}")


def find_rules(node: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every CEL rule of a schema with the path of what it guards."""
    for rule in node.get(VALIDATIONS, ()):
        yield place, rule
    for name, field in node.get("properties", {}).items():
        yield from find_rules(field, f"{place}.{name}" if place else name)
    if "items" in node:
        yield from find_rules(node["items"], f"{place}[]")


def describe_type(field: dict[str, Any]) -> str:
    """Type and bounds in a few words."""
    words = [_name_type(field), *_describe_bounds(field)]
    if "default" in field and field["default"] != {}:
        words.append(f"default `{_plain(field['default'])}`")
    return _cell(", ".join(words))


def _name_type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("pattern") == DECIMAL_PATTERN:
        return "decimal text"
    if field.get("type") == "array":
        keys = "+".join(field.get(LIST_KEYS, []))
        kept = {"map": f" by {keys}", "set": " without doubles"}.get(field.get(LIST_TYPE, ""), "")
        return f"list of {_name_type(field['items']).split(',')[0]}{kept}"
    if "additionalProperties" in field:
        return "map"
    if field.get("type") == "object" and field.get(KEEP_UNKNOWN):
        return "object, other fields are kept"
    return {"int64": "integer", "date-time": "time"}.get(field.get("format", ""), str(field.get("type", "any")))


def _describe_bounds(field: dict[str, Any]) -> Iterator[str]:
    least, most = field.get("minimum"), field.get("maximum")
    if least is not None or most is not None:
        yield f"{least} to {most}" if most is not None else f"at least {least}"
    if field.get("pattern") not in (None, DECIMAL_PATTERN) and "format" not in field:
        yield f"`{field['pattern']}`"
    if "maxLength" in field and "pattern" not in field:
        yield f"at most {field['maxLength']} characters"
    for keyword, what in (("maxItems", "items"), ("maxProperties", "entries")):
        if keyword in field:
            yield f"at most {field[keyword]} {what}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

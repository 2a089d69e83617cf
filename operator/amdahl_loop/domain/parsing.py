"""Is a manifest sound, and if not, what is its author told?

Parsing happens once, here: whoever reads a job that was parsed finds every part of it in its shape, the pod template's
included. Every fault is one line that names the field, its value and the fix.
"""

from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.knob_values import BoundsByKnob, Knobs
from amdahl_loop.domain.pod_parts import TemplatePart
from amdahl_loop.domain.resources import TrainingJob, TrainingJobSpec
from amdahl_loop.domain.tuning import Apply, Budget, CheckpointPolicy, Trial, Tuning
from amdahl_loop.domain.values import Frozen


class ManifestError(ValueError):
    """A manifest that cannot be used; every line names a field, its value and the fix."""


def parse_training_job(document: object) -> TrainingJob:
    """The job that a parsed YAML or JSON document declares; ManifestError lists every field that is wrong.

    A status is passed over: what an operator reported is no part of what is declared. What the definition leaves open
    in the pod template is looked at once all else is sound.
    """
    if not isinstance(document, dict):
        raise ManifestError(f"the manifest holds {type(document).__name__}, not an object; write one TrainingJob")
    declared = {name: part for name, part in document.items() if name != "status"}
    where: tuple[str, ...] = ()
    try:
        job = TrainingJob.model_validate(declared)
        where = ("spec", "template")
        TemplatePart.model_validate(declared["spec"]["template"])
    except ValidationError as error:
        faults = [dict(item) for item in error.errors()]
        raise ManifestError("\n".join(_describe(item, where) for item in faults if not _is_echo(item))) from error
    return job


def _is_echo(error: dict[str, Any]) -> bool:
    """Whether a list is only called too short because its faulty items do not count."""
    return bool(error["type"] == "too_short" and error["input"])


def _describe(error: dict[str, Any], where: tuple[str, ...]) -> str:
    """One line for one fault below `where`: field, value, what is wrong and what would mend it."""
    field = ".".join(str(part) for part in (*where, *error["loc"])) or "manifest"
    value = error.get("input")
    shown = "absent" if error["type"] == "missing" else _shorten(value)
    return f"{field}: {shown}: {_fix(error)}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_SHAPES = {
    **dict.fromkeys(("tuple_type", "list_type"), "a list: an item a line, each behind '- '"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "a map: lines of 'name: value'"),
    "string_type": "text: put it into quotes",
}
_SAID = {type(None): "nothing", dict: "a map", list: "a list", str: "text", bool: "true or false"} | dict.fromkeys(
    (int, float), "a number"
)


def _fix(error: dict[str, Any]) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "required; add it"
    if kind in _SHAPES:
        said = type(error.get("input"))
        return f"is {_SAID.get(said, said.__name__)}; write {_SHAPES[kind]}"
    if kind == "extra_forbidden":
        names = _legal_names(error["loc"])
        return f"unknown field; remove it or use one of {', '.join(names)}" if names else "unknown field; remove it"
    if kind == "string_pattern_mismatch" and error["loc"][-1] in ("name", "namespace"):
        return "must be lower-case letters, digits and '-', at most 63; rename it"
    return str(message)


def _legal_names(loc: tuple[str | int, ...]) -> list[str]:
    """Legal field names beside an unknown one, so that a typo is mended at sight."""
    models: dict[tuple[str, ...], type[Frozen]] = {
        (): TrainingJob,
        ("spec",): TrainingJobSpec,
        ("spec", "knobs"): Knobs,
        ("spec", "tuning"): Tuning,
        ("spec", "tuning", "knobs"): BoundsByKnob,
        ("spec", "tuning", "budget"): Budget,
        ("spec", "tuning", "checkpoint"): CheckpointPolicy,
        ("spec", "tuning", "trial"): Trial,
        ("spec", "tuning", "apply"): Apply,
    }
    model = models.get(tuple(str(part) for part in loc[:-1]))
    return [to_camel(name) for name in model.model_fields] if model else []

"""Is a manifest sound, and if not, what is its author told?

Parsing happens once, here. Every fault is one line that names the field, its value and the fix.
"""

from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from amdahl_loop.domain.knob_values import BoundsByKnob, Knobs
from amdahl_loop.domain.resources import TrainingJob, TrainingJobSpec
from amdahl_loop.domain.tuning import Apply, Budget, CheckpointPolicy, Trial, Tuning
from amdahl_loop.domain.values import Frozen


class ManifestError(ValueError):
    """A manifest that cannot be used; every line names a field, its value and the fix."""


def parse_training_job(document: object) -> TrainingJob:
    """The job that a parsed YAML or JSON document declares; ManifestError lists every field that is wrong.

    A status is passed over: what an operator reported is no part of what is declared.
    """
    if not isinstance(document, dict):
        raise ManifestError(f"the manifest holds {type(document).__name__}, not an object; write one TrainingJob")
    try:
        return TrainingJob.model_validate({name: part for name, part in document.items() if name != "status"})
    except ValidationError as error:
        raise ManifestError("\n".join(_describe(dict(item)) for item in error.errors())) from error


def _describe(error: dict[str, Any]) -> str:
    """One line for one fault: field, value, what is wrong and what would mend it."""
    field = ".".join(str(part) for part in error["loc"]) or "manifest"
    value = error.get("input")
    shown = "absent" if error["type"] == "missing" else _shorten(value)
    return f"{field}: {shown}: {_fix(error)}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fix(error: dict[str, Any]) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "required; add it"
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

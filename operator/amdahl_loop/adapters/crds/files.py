"""Which files are generated, and do they still say what the models say?"""

import difflib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from ruamel.yaml import YAML

from amdahl_loop.adapters.crds.definitions import KINDS, define
from amdahl_loop.adapters.crds.reference import render_reference
from amdahl_loop.domain.api.kinds import Kind

_NOTICE = (
    "# Generated from the models in operator/amdahl_loop/domain by `python -m amdahl_loop.cli.crds`; do not edit.\n"
)


@cache
def render_definition(kind: Kind) -> str:
    """The definition of a kind as YAML; the same models give the same text, letter for letter."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the stub says None, the code wants a bool
    yaml.width = 4096  # no folding: it leaves spaces at the ends of lines
    stream = io.StringIO()
    yaml.dump(define(kind), stream)
    return _NOTICE + stream.getvalue()


_FOLDERS = (Path("crds"), Path("charts", "amdahl-loop", "files", "crds"))
"""Helm reads nothing outside its chart, so the definitions lie there too."""

FILES: Mapping[Path, Callable[[], str]] = {
    **{folder / f"{kind.plural}.yaml": partial(render_definition, kind) for folder in _FOLDERS for kind in KINDS},
    Path("docs", "api.md"): render_reference,
}
"""Every generated file, below the root of the repository, and what it should say."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A file that does not say what the models say, and how they differ."""

    path: Path
    diff: str


def find_drift(root: Path) -> tuple[Drift, ...]:
    """Generated files that are missing or differ, and files beside them that no kind makes."""
    found = []
    for path, render in FILES.items():
        place = root / path
        is_there = place.exists()
        diff = _diff(path, place.read_text(encoding="utf-8") if is_there else "", render())
        if diff or not is_there:
            found.append(Drift(path, diff))
    in_folders = (file.relative_to(root) for folder in _FOLDERS for file in (root / folder).glob("*"))
    strays = sorted(file for file in in_folders if file not in FILES)
    return (*found, *(Drift(path, f"{path} belongs to no kind; remove it\n") for path in strays))


def write_files(root: Path) -> tuple[Path, ...]:
    """Write every generated file; returns those whose content changed."""
    changed = [drift.path for drift in find_drift(root) if drift.path in FILES]
    for path in changed:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(FILES[path](), encoding="utf-8")
    return tuple(changed)


def _diff(path: Path, is_said: str, should_be: str) -> str:
    lines = difflib.unified_diff(
        is_said.splitlines(keepends=True), should_be.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return "".join(lines)

"""Is every test that `docs/reliability.md` names there, and does it run?"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)))
AVOIDED = ("skip", "skipif", "xfail", "importorskip")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| *\d+ *\|", line)]


@cache
def _parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def _names(node: ast.AST) -> set[str]:
    """Every name and attribute below a node."""
    return {found.attr for found in ast.walk(node) if isinstance(found, ast.Attribute)} | {
        found.id for found in ast.walk(node) if isinstance(found, ast.Name)
    }


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_named_test_is_there_and_runs(path: str, name: str) -> None:
    """A test of this name in this file, under no mark that keeps it from running. A skipped test proves nothing."""
    module = _parse(path)
    found = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(found) == 1, f"{path} has no test {name}"
    marks = [node for node in module.body if isinstance(node, ast.Assign) and _names(node) & {"pytestmark"}]
    for node in (*found, *marks):
        assert not _names(node) & set(AVOIDED), f"{path}::{name} may be skipped"


def test_every_fault_of_the_list_has_its_row() -> None:
    """Faults 1 to 33, each once, with a result; those that pass name a test."""
    numbers = [int(row[0]) for row in ROWS]
    assert numbers == list(range(1, 34))
    for row in ROWS:
        result = row[-1].strip().split(",")[0].split(":")[0]
        assert result in ("passes", "passes in part", "falls short", "not run here"), row
        assert "passes" not in result or "::test_" in "|".join(row), row

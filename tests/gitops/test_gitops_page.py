"""Does docs/gitops.md tell what really happens?"""

from pathlib import Path

import pytest

from gitops.expected import TOOLS
from gitops.matrix import Matrix
from gitops.table import render

pytestmark = [pytest.mark.slow, pytest.mark.quiet]

PAGE = Path(__file__).parents[2] / "docs" / "gitops.md"


@pytest.mark.parametrize("tool", TOOLS)
def test_the_page_shows_what_was_seen(matrix: Matrix, tool: str) -> None:
    """Each tool's table, letter for letter; `make gitops` prints them all."""
    seen = render(row for row in matrix.rows.values() if row.tool == tool)
    assert seen in PAGE.read_text()

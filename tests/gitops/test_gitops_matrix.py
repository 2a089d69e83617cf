"""Every tool in every mode: what is written, which condition says so, and no endless fight."""

import pytest

from gitops.expected import EXPECTED, TOOLS, TRACKED, WRITING, Phase, expect_refusals, expect_writes, modes_of
from gitops.matrix import Matrix

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quiet,
    pytest.mark.parametrize(
        ("tool", "mode"),
        [pytest.param(tool, mode, id=f"{tool}-{mode}") for tool in TOOLS for mode in modes_of(tool)],
    ),
]


def test_each_step_ends_as_the_mode_and_the_owner_say(matrix: Matrix, tool: str, mode: str) -> None:
    """Spec, pods and conditions after each of the five steps."""
    row = matrix.rows[tool, mode]
    assert {phase: row.state(phase) for phase in Phase} == EXPECTED[tool, mode]


def test_the_loop_writes_once_for_a_win_and_never_again(matrix: Matrix, tool: str, mode: str) -> None:
    """However often the tool brings its source: no fight, whoever began it."""
    row = matrix.rows[tool, mode]
    assert [row.written[phase].ours for phase in Phase] == expect_writes(tool, mode)


def test_only_who_does_not_force_is_refused(matrix: Matrix, tool: str, mode: str) -> None:
    """The API server names us and the field, and the owner decides; no other sync or upgrade ever fails."""
    refused = matrix.rows[tool, mode].refused
    assert {phase: len(lines) for phase, lines in refused.items()} == expect_refusals(tool, mode)
    assert all('"amdahl-loop"' in line for lines in refused.values() for line in lines)


def test_a_held_field_says_how_to_hand_it_over(matrix: Matrix, tool: str, mode: str) -> None:
    """In the condition itself, whole: what to leave out of the source."""
    message = matrix.rows[tool, mode].seen[Phase.WON].message
    rule = "To hand it over, leave out of the TrainingJob in its source: spec: {knobs: {dataloaderWorkers: 0}}"
    assert message.endswith(rule) == (tool in TRACKED and mode in WRITING)

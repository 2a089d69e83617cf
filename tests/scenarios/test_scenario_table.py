"""What counts as right in the table of scenarios: the right knob, moved the right way."""

import pytest
from catalog import SCENARIOS, TRAPS, Direction, Scenario, Trap
from loop import Tried
from ruamel.yaml import YAML
from table import is_right_way

from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.parsing import parse_training_job


@pytest.mark.parametrize(
    ("direction", "before", "after", "expected"),
    [
        (Direction.UP, 0, 2, True),
        (Direction.UP, 2, 0, False),
        (Direction.DOWN, 4, 2, True),
        (Direction.DOWN, 2, 4, False),
        (Direction.ON, False, True, True),
        (Direction.ON, True, False, False),
        (Direction.OFF, "block", "none", True),
        (Direction.OFF, "block", "selective", False),
        (Direction.WHOLE, "fsdp", "ddp", True),
        (Direction.WHOLE, "ddp", "fsdp", False),
        (Direction.UP, "fsdp", "ddp", False),
        (Direction.UP, None, 2, False),
    ],
)
def test_the_right_way(
    direction: Direction, before: int | bool | str | None, after: int | bool | str, expected: bool
) -> None:
    """Numbers by their order, switches and words by what they end at."""
    scenario = Scenario("a-job", "ComputeBound", "itsKnob", direction)

    assert is_right_way(Tried("itsKnob", before, after, "Won", "", "", 0.1), scenario) is expected
    assert not is_right_way(Tried("another", before, after, "Won", "", "", 0.1), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_s_manifest_is_a_job(scenario: Scenario) -> None:
    """It parses, has the scenario's name, and declares the knob that is right."""
    job = parse_training_job(YAML(typ="safe").load(scenario.manifest))

    assert job.metadata.name == scenario.name
    assert scenario.knob is None or job.spec.knobs.get(KnobName(scenario.knob)) is not None


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_every_trap_s_manifest_is_a_job(trap: Trap) -> None:
    """It parses, and tells its script which trap it is."""
    job = parse_training_job(YAML(typ="safe").load(trap.manifest))

    assert trap.name in (job.metadata.name, *job.spec.template.trainer.command)

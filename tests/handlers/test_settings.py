"""The operator's environment: defaults, values, and errors that name variable, value and fix."""

from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.settings import LogFormat, Settings, SettingsError, read_settings


def test_without_variables_the_defaults_hold() -> None:
    """Whole cluster, trials on; foreign variables do not matter."""
    assert read_settings({"HOME": "/root", "AMDAHL_DATALOADER_WORKERS": "3"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("NAMESPACES", "team-a, team-b,team-a", "namespaces", ("team-a", "team-b")),
        ("KUBECONFIG", "/etc/kube/config", "kubeconfig", Path("/etc/kube/config")),
        ("METRICS_PORT", "0", "metrics_port", 0),
        ("HEALTH_PORT", "9000", "health_port", 9000),
        ("LOG_FORMAT", "plain", "log_format", LogFormat.PLAIN),
        ("WORKERS", "32", "workers", 32),
        ("PARALLEL_TRIALS", "0", "parallel_trials", 0),
        ("TRIALS", "False", "trials", False),
        ("TRIALS", "", "trials", True),
    ],
)
def test_a_variable_sets_its_field(name: str, text: str, field: str, value: Any) -> None:
    """Spaces and repeats are forgiven; an empty variable is an absent one."""
    assert getattr(read_settings({f"AMDAHL_LOOP_{name}": text}), field) == value


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("NAMESPACES", "Team_A", "'Team_A' is no namespace's name"),
        ("METRICS_PORT", "70000", "give a whole number from 0 to 65535"),
        ("WORKERS", "0", "give a whole number from 1 to 256"),
        ("WORKERS", "-1", "give a whole number from 1 to 256"),
        ("LOG_FORMAT", "xml", "'xml' is not a valid LogFormat"),
        ("TRIALS", "maybe", "give true or false"),
        ("WORKER", "3", "no such setting; remove it"),
    ],
)
def test_a_wrong_variable_is_named_with_its_fix(name: str, text: str, fix: str) -> None:
    """So is one that does not exist: a typo must not be ignored."""
    with pytest.raises(SettingsError, match=f"AMDAHL_LOOP_{name}: .*{fix}"):
        read_settings({f"AMDAHL_LOOP_{name}": text})


def test_every_mistake_is_told_at_once() -> None:
    """One start, one list."""
    with pytest.raises(SettingsError) as told:
        read_settings({"AMDAHL_LOOP_WORKERS": "x", "AMDAHL_LOOP_TRIALS": "x", "AMDAHL_LOOP_X": "x"})
    assert len(str(told.value).splitlines()) == 3

"""Which values are refused, and does the message say where and why?"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chart.helm import CHART, HelmError, read_values, render

pytestmark = pytest.mark.slow  # the first run builds Helm

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scope": "cluster"}, "at '/scope': value must be one of 'Cluster', 'Namespaced'"),
        ({"scop": "Cluster"}, "additional properties 'scop' not allowed"),
        ({"image": {"tagg": "1"}}, "at '/image': additional properties 'tagg' not allowed"),
        ({"image": {"digest": "sha256:12"}}, "at '/image/digest': 'sha256:12' does not match pattern"),
        ({"image": {"registry": "a.example.com/"}}, "at '/image/registry'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ({"watchNamespaces": "team-a"}, "at '/watchNamespaces': got string, want array"),
        ({"watchNamespaces": ["Team_A"]}, "at '/watchNamespaces/0': 'Team_A' does not match pattern"),
        ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces': items at 0 and 1 are equal"),
        ({"watchNamespaces": ["a.b"]}, "at '/watchNamespaces/0'"),
        ({"crds": {"keep": "yes"}}, "at '/crds/keep': got string, want boolean"),
        ({"log": {"format": "text"}}, "at '/log/format': value must be one of 'json', 'plain'"),
        ({"workers": 0}, "at '/workers': minimum: got 0, want 1"),
        ({"trials": {"parallel": -1}}, "at '/trials/parallel': minimum: got -1, want 0"),
        ({"trials": {"priorityClass": {"value": -10}}}, "at '/trials/priorityClass/value': maximum: got -10, want -11"),
        ({"trials": {"quota": {"hard": {"pods": True}}}}, "at '/trials/quota/hard/pods'"),
        ({"trials": {"networkPolicy": {"egress": []}}}, "at '/trials/networkPolicy': additional properties 'egress' not allowed"),
        ({"trials": {"networkPolicy": {"namespaces": ["*"]}}}, "at '/trials/networkPolicy/namespaces/0'"),
        ({"metrics": {"port": 70000}}, "at '/metrics/port': maximum: got 70,000, want 65,535"),
        ({"health": {"port": "8081"}}, "at '/health/port': got string, want integer"),
        ({"namespacedOperators": [{"serviceAccount": "x"}]}, "at '/namespacedOperators/0': missing property 'namespace'"),
        ({"namespacedOperators": [{"namespace": "a", "name": "x"}]}, "additional properties 'name' not allowed"),
        ({"admission": {"ledgerWriters": ["a' || true || '"]}}, "at '/admission/ledgerWriters/0'"),
        ({"admission": {"jobControllers": []}}, "at '/admission/jobControllers': minItems: got 0, want 1"),
        ({"networkPolicy": {"jobNamespaces": ["*"]}}, "at '/networkPolicy/jobNamespaces/0'"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "at '/networkPolicy/apiServer/cidrs/0'"),
        ({"networkPolicy": {"apiServer": {"ports": []}}}, "at '/networkPolicy/apiServer/ports': minItems: got 0, want 1"),
        ({"monitoring": {"serviceMonitor": {"interval": "30"}}}, "at '/monitoring/serviceMonitor/interval'"),
        ({"serviceAccount": {"name": "No_Name"}}, "at '/serviceAccount/name'"),
        ({"commonLabels": {"a": 1}}, "at '/commonLabels/a': got number, want string"),
        ({"terminationGracePeriodSeconds": 0}, "at '/terminationGracePeriodSeconds': minimum: got 0, want 1"),
        ({"extraArgs": [1]}, "at '/extraArgs/0': got number, want string"),
        ({"proposer": {"enabled": True}}, "additional properties 'proposer' not allowed"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    """Helm refuses before anything is rendered, and says which value is wrong."""
    with pytest.raises(HelmError) as refused:
        render(values)
    assert message in str(refused.value)


def test_every_value_has_its_text() -> None:
    """The schema describes every property, refuses unknown ones, and knows each value of values.yaml."""
    assert [path for path, schema in _properties(SCHEMA) if not schema.get("description")] == []
    closed = [(path, schema) for path, schema in _properties(SCHEMA) if "properties" in schema]
    assert [path for path, schema in closed if schema.get("additionalProperties") is not False] == []
    assert set(SCHEMA["properties"]) - {"global"} == set(read_values(CHART / "values.yaml"))


def test_every_property_has_its_default() -> None:
    """Whatever the schema knows stands in values.yaml with its default, so that `helm show values` is the whole list."""
    values = read_values(CHART / "values.yaml")
    assert [path for path, _ in _properties(SCHEMA) if not _is_set(values, path)] == []


def _properties(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every property below a schema with its path; `global` is Helm's own."""
    for name, property_schema in schema.get("properties", {}).items():
        if name == "global":
            continue
        yield (
            (*path, name),
            property_schema | SCHEMA["$defs"].get(property_schema.get("$ref", "").rpartition("/")[2], {}),
        )
        yield from _properties(property_schema, (*path, name))


def _is_set(values: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if name not in values:
            return False
        values = values[name]
    return True

"""Do the chart's copies and constants still agree with the code that they came from?"""

import tomllib

import pytest
import yaml

from amdahl_loop.adapters.kube.render_running import METRICS_PORT
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL, PREFIX, PROBE_LABEL, TRIAL_PRIORITY_CLASS
from amdahl_loop.settings import Settings, read_settings
from chart.helm import CHART, ROOT, render

pytestmark = pytest.mark.slow  # the first run builds Helm


def test_the_definitions_are_those_of_the_repository() -> None:
    """Helm reads nothing outside the chart, so the definitions lie there too; `make crds` copies them."""
    generated, copied = (
        {file.name: file.read_text() for file in folder.glob("*.yaml")}
        for folder in (ROOT / "crds", CHART / "files" / "crds")
    )
    stale = sorted(name for name in generated.keys() | copied.keys() if generated.get(name) != copied.get(name))
    assert stale == [], f"run: cp crds/*.yaml {CHART.relative_to(ROOT)}/files/crds/"


def test_the_definitions_are_rendered_unchanged() -> None:
    """The chart adds labels and an annotation; group, names, versions and schema stay, whole numbers included."""
    for file in sorted((CHART / "files" / "crds").glob("*.yaml")):
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        rendered = render({"crds": {"enabled": True}}).one("CustomResourceDefinition", definition["metadata"]["name"])
        assert rendered["spec"] == definition["spec"]


def test_the_chart_has_the_version_of_the_package() -> None:
    """One version for chart, image and package."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_operator_understands_what_the_chart_tells_it() -> None:
    """The real parser of settings reads the rendered environment; it refuses variables that it does not know."""
    values = {
        "watchNamespaces": ["a", "b"],
        "workers": 9,
        "trials": {"parallel": 3},
        "log": {"format": "plain"},
        "metrics": {"port": 1080},
        "health": {"port": 1081},
    }
    assert read_settings(render().env) == Settings()
    told = read_settings(render(values).env)
    assert (told.namespaces, told.workers, told.parallel_trials, told.trials) == (("a", "b"), 9, 3, True)
    assert (told.log_format.value, told.metrics_port, told.health_port) == ("plain", 1080, 1081)


def test_the_policies_speak_of_the_labels_that_the_operator_writes() -> None:
    """A renamed label or class would switch a policy off in silence."""
    text = "".join(file.read_text() for file in (CHART / "templates" / "admission").glob("*.yaml"))
    assert render().one("PriorityClass")["metadata"]["name"] == TRIAL_PRIORITY_CLASS
    for word in (PREFIX, JOB_LABEL, EXPERIMENT_LABEL, PROBE_LABEL, TRIAL_PRIORITY_CLASS):
        assert f"'{word}'" in text


def test_the_chart_knows_where_training_pods_answer() -> None:
    """The port that the operator gives to training pods is the one that the NetworkPolicy opens."""
    egress = render().one("NetworkPolicy")["spec"]["egress"]
    assert egress[1]["ports"] == [{"protocol": "TCP", "port": METRICS_PORT}]

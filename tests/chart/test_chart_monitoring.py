"""Do dashboard and alerts read what is there? Every series, label and literal value is held against real scrapes."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from amdahl_loop.adapters.metrics import Metrics, Told
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.training_job import BankReport, TrainingJobStatus
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.telemetry import PHASES
from amdahl_loop.domain.verdicts import Verdict, VerdictWord, Veto, VetoName
from amdahl_loop.handlers import timed
from amdahl_probe import metrics as probe
from chart.helm import CHART, ROOT, Manifests, render
from chart.promql import Matcher, Reads, Selector, read_expression
from judge_builders import make_plan

pytestmark = pytest.mark.slow  # the first run builds Helm

METRIC = re.compile(r"\bamdahl_[a-z_]+\b")
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
EVERYTHING = {kind: {"enabled": True} for kind in ("serviceMonitor", "podMonitor", "prometheusRule")}


class Sample(NamedTuple):
    """A series as Prometheus keeps it."""

    name: str
    labels: Mapping[str, str]


def scrape_operator() -> str:
    """The metrics of an operator that has met everything that it has a word for."""
    bank = BankReport(gross_device_hours=2.0, spent_device_hours=0.5, net_device_hours=1.5)
    at = "2026-01-01T00:00:00Z"
    conditions = tuple(
        JobCondition(type=type_name, status=ConditionStatus.TRUE, reason="R", last_transition_time=at)
        for type_name in JobConditionType
    )
    told = [Told.of("team-a", TrainingJobStatus(conditions=conditions, bank=bank))]
    metrics = Metrics(lambda: told, lambda: (1, 1.0))
    vetoes = tuple(Veto(name=name, silent=False, sentence="found") for name in VetoName)
    for word in VerdictWord:
        verdict = Verdict(word=word, sentence="ended", effect=0.0, vetoes=vetoes)
        metrics.count_verdict("team-a", Experiment(plan=make_plan()), verdict)
    metrics.count_request("GET", 200)
    metrics.add_phases("team-a", dict.fromkeys(PHASES, 0.1), 1, 1.0)
    metrics.count_rollback("team-a")
    metrics.count_reverts(["kubectl-client-side-apply"])
    asyncio.run(_pass_and_fail(metrics))
    return generate_latest(metrics.registry).decode()


async def _pass_and_fail(metrics: Metrics) -> None:
    """A pass that ends well, and one that does not."""

    async def passing(error: Exception | None) -> float | None:
        if error is not None:
            raise error
        return None

    await timed(passing(None), metrics)
    with contextlib.suppress(ValueError):
        await timed(passing(ValueError()), metrics)


def scrape_pod() -> str:
    """The metrics of a training pod, by the probe's own account."""
    counters = probe.Metrics({"run": "job-r0"})
    counters.add_phases({"compute": 1_000_000_000, "input": 1_000_000_000})
    counters.observe_step(2_000_000_000, samples=8)
    return counters.render()


def find_samples(text: str, *attached: str) -> Iterator[Sample]:
    """Every series of a scrape, with the labels that Prometheus attaches to it."""
    more = dict.fromkeys(attached, "")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Sample(sample.name, more | sample.labels)


@pytest.fixture(scope="module")
def monitored() -> Manifests:
    """The chart with all that Prometheus reads."""
    return render({"monitoring": EVERYTHING})


@pytest.fixture(scope="module")
def samples(monitored: Manifests) -> list[Sample]:
    """What Prometheus holds once it has scraped the operator and a training pod as the chart's monitors tell it to."""
    service = monitored.one("Service")["metadata"]
    endpoint = monitored.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]
    added = [rule["targetLabel"] for rule in endpoint["relabelings"] if "targetLabel" in rule]
    return [
        Sample("up", {"namespace": service["namespace"], "service": service["name"]}),
        *find_samples(scrape_operator(), "namespace", "pod", "service"),
        *find_samples(scrape_pod(), "namespace", "pod", *added),
    ]


@pytest.fixture(scope="module")
def expressions(monitored: Manifests) -> list[str]:
    """Every expression of the dashboard and of the alerts."""
    groups = monitored.one("PrometheusRule")["spec"]["groups"]
    drawn = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return drawn + [rule["expr"] for group in groups for rule in group["rules"]]


def find_faults(expression: str, samples: list[Sample]) -> list[str]:
    """What an expression asks for that no series has."""
    reads = read_expression(expression)
    faults: list[str] = []
    held = {label for sample in samples for label in sample.labels if sample.name in {s.name for s in reads.selectors}}
    faults += [f"label {label}" for label in sorted(reads.labels - held)]
    for name, matchers in reads.selectors:
        series = [sample.labels for sample in samples if sample.name == name]
        if not series:
            faults.append(name)
        elif not any(all(_fits(matcher, labels) for matcher in matchers) for labels in series):
            faults.append(f"{name} {', '.join(map(''.join, matchers))}")
    return faults


def _fits(matcher: Matcher, labels: Mapping[str, str]) -> bool:
    """Whether a series may have what is asked for; what its user chooses only has to be a label."""
    return labels.get(matcher.label) == matcher.value if matcher.operator == "=" else matcher.label in labels


def test_every_series_and_value_that_is_read_is_exported(expressions: list[str], samples: list[Sample]) -> None:
    """A name, a label or a value that nobody exports leaves a panel blank and an alert silent, for ever."""
    faults = {expression: found for expression in expressions if (found := find_faults(expression, samples))}
    assert faults == {}
    assert len(expressions) > 30


def test_every_variable_is_a_label_that_is_exported(samples: list[Sample]) -> None:
    """The choices at the head of the dashboard come from a series."""
    variables = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    asked = [re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]) for variable in variables]
    assert asked
    for match in asked:
        assert match is not None
        assert [sample for sample in samples if sample.name == match[1] and match[2] in sample.labels]


@pytest.mark.parametrize(
    ("expression", "faults"),
    [
        ("sum(amdahl_loop_queue_depth)", []),
        ('amdahl_loop_bank_device_seconds{entry="spent", namespace=~"$namespace"}', []),
        ('amdahl_loop_bank_device_seconds{entry="clawed_back"}', ["amdahl_loop_bank_device_seconds entry=clawed_back"]),
        ('amdahl_loop_jobs{job=~".*"}', ["amdahl_loop_jobs job=~.*"]),
        ("process_threads", ["process_threads"]),
        ("sum by (node) (amdahl_loop_queue_depth)", ["label node"]),
        ("sum by (phase) (rate(amdahl_phase_seconds_total[5m]))", []),
    ],
)
def test_what_nobody_exports_is_found(expression: str, faults: list[str], samples: list[Sample]) -> None:
    """The check itself can fail, by name, by label and by value."""
    assert find_faults(expression, samples) == faults


@pytest.mark.parametrize(
    ("expression", "reads"),
    [
        ("a", Reads((Selector("a"),), frozenset())),
        ("1e3 * a[5m] > 0.5", Reads((Selector("a"),), frozenset())),
        ("rate(a_total[$__rate_interval]) / b", Reads((Selector("a_total"), Selector("b")), frozenset())),
        ('a{x="1", y=~"a|{b}"}', Reads((Selector("a", (Matcher("x", "=", "1"), Matcher("y", "=~", "a|{b}"))),), frozenset())),
        ("sum by (x, y) (a) / on (x) group_left sum(b)", Reads((Selector("a"), Selector("b")), frozenset({"x", "y"}))),
        ("a and on (pod) b unless c", Reads((Selector("a"), Selector("b"), Selector("c")), frozenset({"pod"}))),
        ("absent(a == 1)", Reads((Selector("a"),), frozenset())),
    ],
)  # fmt: skip
def test_an_expression_is_read_by_its_grammar(expression: str, reads: Reads) -> None:
    """Functions, aggregations and keywords are no series; groupings are labels."""
    assert read_expression(expression) == reads


def test_dashboard_and_alerts_read_documented_metrics_only(expressions: list[str]) -> None:
    """Each metric of ours stands in the table of docs/install.md, or in the telemetry contract."""
    documented = set(
        METRIC.findall((ROOT / "docs" / "install.md").read_text() + (ROOT / "docs" / "telemetry.md").read_text())
    )
    read = set(METRIC.findall(" ".join(expressions)))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in read} <= documented


def test_every_panel_has_its_own_place_and_source() -> None:
    """The dashboard is valid for import: numbered panels that do not overlap, all on the chosen data source."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or all(
            target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]
        )

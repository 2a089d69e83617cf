"""Are the definitions sound, and what does a person see who has only kubectl?"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.crds.definitions import KINDS
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType, report
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.kinds import Kind
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import close
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.training_job import BankReport, DiagnosisReport, TrainingJobStatus, VerdictReport
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.diagnosis import Bottleneck
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from crd_builders import CRDS, install_crds, make_object
from judge_builders import make_plan
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

API = "/apis/amdahl-loop.io/v1alpha1/namespaces"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pydocs" / "job.yaml"
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def namespace(api_server: Cluster) -> Iterator[str]:
    """One namespace for this module."""
    install_crds(api_server)
    name = api_server.create_namespace("kubectl")
    yield name
    api_server.delete_namespace(name)


@every_kind
def test_definitions_are_established_without_a_warning(api_server: Cluster, namespace: str, kind: Kind) -> None:
    """Structural, names free, stored and served: every condition of the definition is as it should be."""
    definition = api_server.admin.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.crd_name}").body
    found = {condition["type"]: condition["status"] for condition in definition["status"]["conditions"]}

    assert found == {"NamesAccepted": "True", "Established": "True"}
    assert definition["status"]["storedVersions"] == ["v1alpha1"]


def test_applying_the_definitions_again_warns_of_nothing(api_server: Cluster, namespace: str) -> None:
    """A warning of the server's counts as an error here, and nothing has to change."""
    ran = api_server.admin.try_kubectl("apply", "--server-side", "--warnings-as-errors", "-f", CRDS)

    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_example_is_accepted(api_server: Cluster, namespace: str) -> None:
    """What the README shows is what the server takes, strictly."""
    ran = api_server.admin.try_kubectl(
        "create", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", EXAMPLE
    )

    assert ran.returncode == 0, ran.stderr


@every_kind
def test_every_field_is_explained(api_server: Cluster, namespace: str, kind: Kind) -> None:
    """`kubectl explain` reads the published schema: it holds a text for every field of ours."""
    path = "/openapi/v3/apis/amdahl-loop.io/v1alpha1"
    key = f"io.amdahl-loop.v1alpha1.{kind.name}"
    wait_for(lambda: key in api_server.admin.get(path).body["components"]["schemas"], 30, "the schema is published")
    schema = api_server.admin.get(path).body["components"]["schemas"][key]

    parts = [part for part in ("spec", "status") if part in schema["properties"]]
    silent = [place for part in parts for place in _find_silent(schema["properties"][part], part)]
    assert silent == []
    assert schema["description"] == kind.text


def _find_silent(node: dict[str, Any], place: str) -> Iterator[str]:
    if "description" not in node:
        yield place
    for name, field in node.get("properties", {}).items():
        yield from _find_silent(field, f"{place}.{name}")
    items = node.get("items", {})
    for name, field in items.get("properties", {}).items():
        yield from _find_silent(field, f"{place}[].{name}")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trainingjob.spec.tuning.mode", "How far the loop may go. Observe: measure only."),
        (
            "trainingjob.spec.template.spec.containers.command",
            "Program and its first arguments; required of the trainer",
        ),
        ("trainingjob.status.bank.netDeviceHours", "Gross less spent"),
        ("experiment.spec.constants.alphas", "One-sided error that each look may spend."),
        ("experiment.status.verdict.votes.bar", "Effect that it had to find to agree."),
        ("tuningpolicy.spec.paused", "Stops every experiment in this namespace"),
    ],
)
def test_kubectl_explains(api_server: Cluster, namespace: str, path: str, said: str) -> None:
    """The first manual is the one that everybody has at hand."""
    text = api_server.admin.kubectl("explain", path)

    assert said in " ".join(text.split())
    assert "<no description>" not in text


def make_job_status(now_s: float) -> TrainingJobStatus:
    """A status in the middle of the story."""
    conditions: tuple[JobCondition, ...] = ()
    for name in (JobConditionType.READY, JobConditionType.TUNED):
        condition = JobCondition(
            type=name, status=ConditionStatus.TRUE, reason="WinApplied", last_transition_time=to_timestamp(now_s)
        )
        conditions = report(conditions, condition)
    verdict = VerdictReport(
        experiment="pydocs-1",
        word=VerdictWord.WON,
        change="dataloaderWorkers 0 -> 2",
        sentence="won",
        closed_at=to_timestamp(now_s),
    )
    return TrainingJobStatus(
        conditions=conditions,
        message="testing prefetchFactor 2 -> 4",
        diagnosis=DiagnosisReport(bottleneck=Bottleneck.INPUT_BOUND, sentence="64 % of each step waits for data."),
        wasted_device_hours_per_hour=2.56,
        bank=BankReport(gross_device_hours=9.5, spent_device_hours=1.25, net_device_hours=8.25),
        active_experiment="pydocs-2",
        last_verdicts=(verdict,),
    )


def _table(text: str) -> list[dict[str, str]]:
    """Rows of a kubectl table by their headings; columns are set apart by at least two spaces."""
    head, *rows = text.rstrip("\n").splitlines()
    names = head.split()
    starts = [head.index(name) for name in names]
    ends = [*starts[1:], None]
    return [{name: row[a:b].strip() for name, a, b in zip(names, starts, ends, strict=True)} for row in rows]


def test_the_columns_tell_the_story(api_server: Cluster, namespace: str) -> None:
    """One line a job: is it well, what holds it back, what does that cost, what was tried, what came of it."""
    path = f"{API}/{namespace}/trainingjobs"
    created = api_server.admin.post(path, make_object()).body
    api_server.admin.request(
        "PUT", f"{path}/pydocs/status", created | {"status": to_wire(make_job_status(time.time()))}
    )

    (row,) = _table(api_server.admin.kubectl("get", "aljob", "-n", namespace))
    (wide,) = _table(api_server.admin.kubectl("get", "trainingjobs", "-n", namespace, "-o", "wide"))

    age = row.pop("AGE")
    assert row == {
        "NAME": "pydocs", "READY": "True", "MODE": "Auto", "BOTTLENECK": "InputBound", "WASTED": "2.56", "TUNED": "True",
        "EXPERIMENT": "pydocs-2", "VERDICT": "Won", "NET": "8.25",
    }  # fmt: skip
    assert age.endswith("s")
    assert {name: wide[name] for name in ("SUSPENDED", "SPENT", "REASON", "MESSAGE")} == {
        "SUSPENDED": "false", "SPENT": "1.25", "REASON": "WinApplied", "MESSAGE": "testing prefetchFactor 2 -> 4",
    }  # fmt: skip


def test_experiments_tell_what_was_tried(api_server: Cluster, namespace: str) -> None:
    """One line an experiment: which knob, from what to what, and how it ended; empty while it is open."""
    path = f"{API}/{namespace}/experiments"
    api_server.admin.post(path, write_plan(make_plan(name="job-open")))
    created = api_server.admin.post(path, write_plan(make_plan(name="job-won"))).body
    verdict = Verdict(word=VerdictWord.WON, sentence="saves 20 % over 3 checks", effect=0.2231435513142097)
    status = close(ExperimentStatus(), verdict, time.time())
    api_server.admin.request("PUT", f"{path}/job-won/status", created | {"status": to_wire(status)})

    opened, won = _table(api_server.admin.kubectl("get", "alexp", "-n", namespace, "-o", "wide"))

    shared = {"JOB": "job", "KNOB": "dataloaderWorkers", "FROM": "0", "TO": "2", "PROFILE": "quick"}
    assert {name: won[name] for name in (*shared, "NAME", "VERDICT", "SAVING", "SENTENCE")} == shared | {
        "NAME": "job-won", "VERDICT": "Won", "SAVING": "20.0 %", "SENTENCE": "saves 20 % over 3 checks",
    }  # fmt: skip
    assert {name: opened[name] for name in (*shared, "NAME", "VERDICT", "SAVING")} == shared | {
        "NAME": "job-open", "VERDICT": "", "SAVING": "",
    }  # fmt: skip
    assert won["CLOSED"].endswith("s")


def test_one_category_lists_everything(api_server: Cluster, namespace: str) -> None:
    """`kubectl get amdahl` shows the kinds together; `kubectl get all` shows none of them."""
    api_server.admin.post(
        f"{API}/{namespace}/tuningpolicies",
        {
            "apiVersion": "amdahl-loop.io/v1alpha1",
            "kind": "TuningPolicy",
            "metadata": {"name": "house"},
            "spec": {"modes": ["Observe", "Recommend"], "budget": {"deviceHours": "4", "parallelTrials": 2}},
        },
    )
    listed = api_server.admin.kubectl("get", "amdahl", "-n", namespace, "-o", "name")
    (row,) = _table(api_server.admin.kubectl("get", "alpol", "-n", namespace))

    assert "tuningpolicy.amdahl-loop.io/house" in listed
    assert {name: row[name] for name in ("NAME", "PAUSED", "MODES", "HOURS", "PARALLEL")} == {
        "NAME": "house", "PAUSED": "false", "MODES": '["Observe","Recommend"]', "HOURS": "4", "PARALLEL": "2",
    }  # fmt: skip
    assert "amdahl-loop.io" not in api_server.admin.kubectl("get", "all", "-n", namespace, "-o", "name")

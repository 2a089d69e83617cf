"""`fleet`: jobs in the order in which their trials are admitted, each with its waste, its ideas and what its trials wait for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.adapters.sqlite.entries import Observed
from amdahl_loop.cli import fleet
from amdahl_loop.domain.api.training_job import report_observation
from amdahl_loop.domain.api.wire import to_wire
from builders import make_manifest
from fakes import Truth, compute_bound, loader_bound
from kube_builders import ListsOnly
from ledger_builders import Called, call, make_cluster_job, play, reach

Document = dict[str, Any]
WAITS, COMPUTES = Truth(phases_s=loader_bound), Truth(phases_s=compute_bound)
TUNING = {"profile": "quick", "budget": {"deviceHours": "100"}}
SECRET = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
PATH = re.compile(r".*/v1alpha1(/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(/(?P<name>[^/]+))?")


class Shelf(ListsOnly):
    """A server that holds objects and only shows them."""

    def __init__(self, jobs: list[Document], policies: list[Document]) -> None:
        self._kinds: Mapping[str, list[Document]] = {
            "trainingjobs": jobs,
            "tuningpolicies": policies,
            "experiments": [],
        }

    async def send(self, request: Request) -> Answer:
        """An object, or a list of them."""
        assert request.method == "GET", "fleet only reads"
        found = PATH.fullmatch(request.path)
        assert found is not None
        where, name = found["namespace"], found["name"]
        items = [o for o in self._kinds[found["kind"]] if where in (None, o["metadata"]["namespace"])]
        if name is None:
            return Answer(status=200, body={"items": items})
        named = [item for item in items if item["metadata"]["name"] == name]
        return Answer(status=200, body=named[0]) if named else Answer(status=404, body={"message": "not found"})

    async def close(self) -> None:
        """Nothing is open."""


def condition(type_name: str, status: str, reason: str, message: str = "") -> Document:
    """One entry of a status."""
    return {
        "type": type_name, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-21T10:00:00Z", "observedGeneration": 1,
    }  # fmt: skip


def make_object(folder: Path, name: str, truth: Truth, workers: int = 0, **told: Any) -> Document:
    """A TrainingJob that was measured; `told` are its conditions, `status` more of its status."""
    uid, knobs = f"uid-{name}", {"dataloaderWorkers": workers}
    job = make_cluster_job(uid=uid, name=name, knobs=knobs, tuning={"mode": "Observe"})
    (observed,) = play(job, truth, folder / f"{name}.db")
    assert isinstance(observed, Observed)
    report = report_observation(observed.observation)
    assert report is not None
    manifest = make_manifest(knobs, TUNING)
    manifest["metadata"] = {"name": name, "namespace": "team", "uid": uid, "generation": 1, "resourceVersion": "1"}
    conditions = [condition("Ready", "True", "AsDeclared"), *told.pop("conditions", ())]
    manifest["status"] = {"observedGeneration": 1, "conditions": conditions, "observation": to_wire(report), **told}
    return manifest


@pytest.fixture
def jobs(tmp_path: Path) -> list[Document]:
    """A fleet: three that wait for data, one that computes, one whose template holds a Secret, two that cannot be seen."""
    running = make_object(
        tmp_path,
        "running",
        WAITS,
        workers=1,
        conditions=[condition("Experimenting", "True", "BlockRunning", "running-1 runs")],
        activeExperiment="running-1",
        wastedDeviceHoursPerHour="0.58",
        bank={"grossDeviceHours": "1.5", "spentDeviceHours": "0.5", "netDeviceHours": "1.0"},
    )
    best = make_object(tmp_path, "best", WAITS, wastedDeviceHoursPerHour="0.7")
    secretive = make_object(
        tmp_path,
        "secretive",
        WAITS,
        conditions=[
            condition("Experimenting", "False", "Blocked", "waits"),
            condition("TrialsBlocked", "True", "NotIsolated", "TOKEN holds a Secret."),
        ],
    )
    secretive["spec"]["template"]["spec"]["volumes"] = [{"name": "s", "secret": {"secretName": "s"}}]
    calm = make_object(
        tmp_path,
        "calm",
        COMPUTES,
        conditions=[condition("Experimenting", "False", "NothingToTry"), condition("Tuned", "True", "ProvenValues")],
    )
    fresh = make_manifest(tuning=TUNING)
    fresh["metadata"] = {"name": "fresh", "namespace": "team", "uid": "u", "generation": 1, "resourceVersion": "1"}
    broken = make_manifest(tuning={"mode": "Sometimes"})
    broken["metadata"] = {"name": "broken", "namespace": "team", "uid": "v", "generation": 1, "resourceVersion": "1"}
    return [calm, secretive, running, best, fresh, broken]


def ask(jobs: list[Document], *words: str, policies: list[Document] | None = None) -> Called:
    """One command to a cluster that holds these objects."""
    return call(*words, connect=reach(lambda: KubeClient(Shelf(jobs, policies or []))))


def test_jobs_stand_in_the_order_of_admission(jobs: list[Document]) -> None:
    """Who runs a trial, then who brings most for each device-hour; then those that want none, ranked alike."""
    told = json.loads(ask(jobs, "fleet", "-o", "json").out)
    rows = {job["job"]: job for job in told["jobs"]}

    assert [job["job"] for job in told["jobs"]] == ["running", "best", "secretive", "calm", "broken", "fresh"]
    assert [job["rank"] for job in told["jobs"]] == [1, 2, 3, 4, 5, 6]
    assert {name: row["trial"]["reason"] for name, row in rows.items()} == {
        "running": "BlockRunning", "best": "NotMeasuredYet", "secretive": "NotIsolated", "calm": "NothingToTry",
        "fresh": "NotMeasuredYet", "broken": "NotMeasuredYet",
    }  # fmt: skip
    assert rows["running"]["trial"] == {
        "running": True, "reason": "BlockRunning", "sentence": "running-1 runs", "experiment": "running-1",
    }  # fmt: skip
    assert [idea["changes"][0]["to"] for idea in rows["best"]["ideas"]] == [3]
    assert (rows["calm"]["ideas"], rows["calm"]["tuned"], rows["fresh"]["wasted"]) == ([], "ProvenValues", None)
    assert "'Sometimes'" in rows["broken"]["sentence"]
    assert told["total"] == {
        "jobs": 6, "measured": 2, "wasted": 1.28, "removable": round(sum(row["removable"] or 0 for row in rows.values()), 4),
        "bank": {"gross": 1.5, "spent": 0.5, "net": 1.0},
    }  # fmt: skip


def test_the_shape_of_fleet_is_frozen(jobs: list[Document]) -> None:
    """Keys may be added to this test, none may leave it: people's scripts read them."""
    told = json.loads(ask(jobs, "fleet", "-A", "-o", "json").out)

    assert set(told) == {"namespace", "jobs", "total"}
    assert {frozenset(job) for job in told["jobs"]} == {
        frozenset({
            "rank", "namespace", "job", "standing", "class", "sentence", "wasted", "removable", "ideas", "trial", "tuned",
            "bank", "current",
        })
    }  # fmt: skip
    assert set(told["jobs"][0]["trial"]) == {"running", "reason", "sentence", "experiment"}
    assert set(told["jobs"][0]["bank"]) == {"gross", "spent", "net"}


def test_the_table_holds_a_row_a_job(jobs: list[Document]) -> None:
    """The expected bank names its knob, a win says what became of it, and what cannot be looked at is said below."""
    text = ask(jobs, "fleet").out
    rows = {line.split()[1]: line for line in text.splitlines() if re.match(r"\s*\d+  \w", line)}

    assert "dataloaderWorkers" in rows["best"]
    assert "ProvenValues" in rows["calm"]
    assert "NotIsolated" in rows["secretive"]
    assert "6 jobs (2 measured): 1.28 device-hours wasted an hour" in " ".join(text.split())
    assert "team/broken: spec.tuning.mode" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "team/best" in ask(jobs, "fleet", "-A").out


def test_a_policy_binds_what_is_weighed(jobs: list[Document]) -> None:
    """An administrator's cap: fewer workers are expected to bring less; a pause leaves no job wanting a trial."""
    cap = {"metadata": {"name": "cap", "namespace": "team"}, "spec": {"knobs": {"dataloaderWorkers": {"max": 1}}}}
    paused = {"metadata": {"name": "off", "namespace": "team"}, "spec": {"paused": True}}
    free, capped, off = (
        json.loads(ask(jobs, "fleet", "-o", "json", policies=policies).out) for policies in ([], [cap], [paused])
    )

    def ideas(told: Any) -> dict[str, list[int]]:
        return {job["job"]: [idea["changes"][0]["to"] for idea in job["ideas"]] for job in told["jobs"] if job["ideas"]}

    assert ideas(free) == {"running": [3], "best": [3], "secretive": [3]}
    assert ideas(capped) == {"best": [1], "secretive": [1]}
    assert [job["job"] for job in off["jobs"]] == ["best", "secretive", "running", "calm", "broken", "fresh"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("volumes", {"data": {}}, "spec.template.spec.volumes: {'data': {}}: is a map; write a list"),
        ("initContainers", ["a"], "spec.template.spec.initContainers.0: 'a': is text; write a map"),
        ("containers", "nvidia.com/gpu", "resources.limits.nvidia.com/gpu: 'all': 'all' is no resource quantity"),
    ],
)
def test_a_job_of_the_wrong_shape_is_a_row_with_its_reason(
    jobs: list[Document], field: str, value: Any, told: str
) -> None:
    """The others stand as they did; `explain` says the same of it."""
    before = json.loads(ask(jobs, "fleet", "-A", "-o", "json").out)
    pod = jobs[0]["spec"]["template"]["spec"]
    if field == "containers":
        pod["containers"][0]["resources"] = {"limits": {value: "all"}}
    else:
        pod[field] = value
    called = ask(jobs, "fleet", "-A", "-o", "json")
    assert (called.code, called.err) == (0, "")
    rows = {row["job"]: row for row in json.loads(called.out)["jobs"]}
    assert told in rows.pop("calm")["sentence"]
    assert rows == {
        row["job"]: row | {"rank": rows[row["job"]]["rank"]} for row in before["jobs"] if row["job"] != "calm"
    }
    explained = ask(jobs, "explain", "calm", "-n", "team")
    assert (explained.code, explained.out) == (2, "")
    assert told in " ".join(explained.err.split())


def test_a_job_at_which_the_weighing_fails_is_a_row_too(jobs: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fault of ours: its type and its words stand in the row, and the others stand as they did."""
    weigh = fleet.look

    def fail(snapshot: Any, observation: Any) -> Any:
        if snapshot.job.metadata.name == "calm":
            raise OverflowError("too\nlarge")
        return weigh(snapshot, observation)

    monkeypatch.setattr(fleet, "look", fail)
    called = ask(jobs, "fleet", "-o", "json")
    rows = {row["job"]: row for row in json.loads(called.out)["jobs"]}
    assert called.code == 0
    assert rows["calm"]["sentence"] == "This job cannot be weighed. OverflowError: too large"
    assert rows["best"]["removable"] is not None
    assert "team/calm: This job cannot be weighed." in ask(jobs, "fleet").out


def test_explain_shows_what_is_recorded(jobs: list[Document]) -> None:
    """No run is started: the measurement is the job's own, what comes next is its own message, and a cap is told."""
    cap = {"metadata": {"name": "cap", "namespace": "team"}, "spec": {"knobs": {"dataloaderWorkers": {"max": 1}}}}
    jobs[3]["status"]["message"] = "Opening best-1."
    told = json.loads(ask(jobs, "explain", "best", "-n", "team", "-o", "json", policies=[cap]).out)

    assert (told["job"], told["next"], told["ledger"]) == ("best", "Opening best-1.", "namespace team")
    assert told["diagnosis"]["class"] == "InputBound"
    assert "TuningPolicy cap" in told["policies"][0]
    assert "TuningPolicy cap" in ask(jobs, "explain", "best", "-n", "team", policies=[cap]).out


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("fresh", 1, "Not observed: the operator has not looked at this job yet"),
        ("broken", 2, "spec.tuning.mode"),
        ("bset", 2, "no TrainingJob is named 'bset' in namespace team; name one of: best,"),
        ("job.yml", 2, "is a file"),
    ],
)
def test_explain_says_why_it_cannot(jobs: list[Document], name: str, code: int, told: str) -> None:
    """One code and one sentence each."""
    called = ask(jobs, "explain", name, "-n", "team")
    assert (called.code, called.out) == (code, "")
    assert told in " ".join(called.err.split())

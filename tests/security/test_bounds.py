"""Can a job make the operator's metrics, statuses or logs grow without bound, or say what it likes there?"""

import json
import subprocess
import sys
from typing import Any

import pytest
from prometheus_client import generate_latest

from amdahl_loop.adapters.metrics import Metrics, Told
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.training_job import MAX_STATUS_BYTES, BankReport, TrainingJobStatus
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.conditions import Facts, Note
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.isolation import find_obstacles
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.status import describe
from amdahl_loop.domain.telemetry import PHASES
from amdahl_loop.domain.tuning import Trial
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from amdahl_loop.handlers import MAX_LOG_CHARS
from builders import make_manifest
from judge_builders import make_plan

LONG = "évil\n\x1b[31m{}%s" * 20_000
"""300 kB that break lines, colour terminals and look like formats."""


def condition(type_name: JobConditionType) -> JobCondition:
    """A condition that is true."""
    return JobCondition(
        type=type_name, status=ConditionStatus.TRUE, reason="R", last_transition_time="2026-01-01T00:00:00Z"
    )


def scrape(jobs: int) -> str:
    """The metrics of an operator after a day with so many jobs in three namespaces, each as talkative as it can be."""
    bank = BankReport(gross_device_hours=1.0, spent_device_hours=0.5, net_device_hours=0.5)
    status = TrainingJobStatus(
        conditions=tuple(condition(t) for t in JobConditionType), bank=bank, wasted_device_hours_per_hour=1.0
    )
    busy = [status.model_copy(update={"active_experiment": f"job-{number}-e1"}) for number in range(jobs)]
    told = [Told.of(f"team-{number % 3}", one) for number, one in enumerate(busy)]
    metrics = Metrics(lambda: told, lambda: (jobs, 1.0))
    verdict = Verdict(word=VerdictWord.NO_GAIN, sentence="no gain", effect=0.0)
    for number, (namespace, *_) in enumerate(told):
        experiment = Experiment(plan=make_plan(name=f"job-{number}-e1", job=f"job-{number}", job_uid=f"uid-{number}"))
        metrics.count_verdict(namespace, experiment, verdict)
        metrics.count_rollback(namespace)
        metrics.count_reverts([f"manager-{number}", f"argocd-{number}", LONG[:200]])
        metrics.add_phases(namespace, dict.fromkeys(PHASES, 0.1), 1, 1.0)
        metrics.count_request("GET", 200)
        metrics.count_tick("ok", 0.01)
    return generate_latest(metrics.registry).decode()


def test_series_follow_namespaces_not_jobs() -> None:
    """A thousand jobs make the series of six; no label holds a job, an experiment, a uid or a manager's own words."""
    few, many = scrape(6), scrape(1000)

    def series(text: str) -> set[str]:
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    assert series(many) == series(few)
    assert len(series(many)) < 160
    assert not [word for word in ("job-", "uid-", "manager-", "évil") if word in many]


def hostile_template() -> dict[str, Any]:
    """A template whose every name is as long as the server lets it be, and says what it likes."""
    manifest = make_manifest()
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": LONG + str(number), "hostPath": {"path": LONG}} for number in range(3)]
    pod["initContainers"] = [{"name": LONG, "image": LONG, "securityContext": {"privileged": True}}]
    pod["containers"][0]["env"] = [{"name": "K" * 250, "valueFrom": {"secretKeyRef": {"name": LONG, "key": LONG}}}]
    return manifest


@pytest.mark.parametrize("reason", [Reason.INVALID_SPEC, Reason.REFUSED_BY_SERVER, Reason.STARTING])
def test_a_status_is_bounded_whatever_it_quotes(reason: Reason) -> None:
    """The server's words, a template's names, an administrator's limits: cut to one line each, far below the object's limit."""
    template = parse_training_job(hostile_template()).spec.template
    facts = Facts(
        standing=Note(reason=reason, sentence=LONG),
        obstacles=find_obstacles(template, Trial()),
        limits=(LONG, LONG),
    )
    status = to_wire(describe(facts, TrainingJobStatus(), 1, 1e9))
    assert len(json.dumps(status, ensure_ascii=False).encode()) < MAX_STATUS_BYTES / 4
    said = [status["message"], *(entry["message"] for entry in status["conditions"])]
    assert all(len(text.encode()) <= 500 and text.isprintable() for text in said)
    assert status["message"].startswith("évil")


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_a_line_of_the_log_is_cut_and_stays_one_line(log_format: str) -> None:
    """Whatever logger it comes from; colours and line breaks of others do not get through."""
    program = (
        "import logging, sys\n"
        "from amdahl_loop.handlers import configure_logging\n"
        "from amdahl_loop.settings import LogFormat\n"
        f"configure_logging(LogFormat({log_format!r}))\n"
        "said = sys.stdin.read()\n"
        "logging.getLogger('amdahl_loop.operate').warning('%s: %s', 'team/job', said)\n"
        "logging.getLogger('kopf.activities').warning(said.replace('%', '%%'))\n"
        "logging.getLogger('amdahl_loop.operate').warning('short')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], input=LONG, capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if line]
    assert len(lines) == 3
    assert "team/job: évil" in json.loads(lines[0])["message"] if log_format == "json" else lines[0]
    assert all(len(line) < 2 * MAX_LOG_CHARS for line in lines)
    assert "\x1b" not in ran.stderr
    assert "short" in lines[2]

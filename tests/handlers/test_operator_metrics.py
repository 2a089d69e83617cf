"""What Prometheus reads from the operator: bounded labels, sums over namespaces, counts of what was done."""

import urllib.request

from amdahl_loop.adapters.metrics import Metrics, Told
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.training_job import BankReport, TrainingJobStatus
from amdahl_loop.domain.telemetry import Phase


def make_status(wasted: float, gross: float, spent: float, experiment: str | None) -> TrainingJobStatus:
    """A status with what metrics add up."""
    ready = JobCondition(
        type=JobConditionType.READY,
        status=ConditionStatus.TRUE,
        reason="AsDeclared",
        last_transition_time="2026-01-01T00:00:00Z",
    )
    return TrainingJobStatus(
        conditions=(ready,),
        wasted_device_hours_per_hour=wasted,
        bank=BankReport(gross_device_hours=gross, spent_device_hours=spent, net_device_hours=gross - spent),
        active_experiment=experiment,
    )


def test_jobs_are_added_up_by_namespace_and_events_are_counted() -> None:
    """Two jobs of one namespace are one line; the text is what a real scrape gets."""
    statuses = [make_status(0.5, 2.0, 1.0, "a-1"), make_status(0.25, 1.0, 0.5, None)]
    metrics = Metrics(lambda: [Told.of("team", status) for status in statuses], lambda: (3, 1.5))
    metrics.count_tick("ok", 0.01)
    metrics.count_request("GET", 200)
    metrics.add_phases("team", {Phase.COMPUTE: 0.75, Phase.INPUT: 0.25}, devices=4, seconds=10.0)
    metrics.add_phases("team", {Phase.COMPUTE: 1.0}, devices=1, seconds=1e6)
    metrics.count_reverts(["kubectl-client-side-apply", "somebody-unknown"])

    server = metrics.serve(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            lines = set(answer.read().decode().splitlines())
    finally:
        server.shutdown()
        server.server_close()

    assert lines >= {
        'amdahl_loop_jobs{condition="Ready",namespace="team"} 2.0',
        'amdahl_loop_jobs_described{namespace="team"} 2.0',
        'amdahl_loop_wasted_devices{namespace="team"} 0.75',
        'amdahl_loop_experiments_running{namespace="team"} 1.0',
        'amdahl_loop_bank_device_seconds{entry="gross",namespace="team"} 10800.0',
        'amdahl_loop_bank_device_seconds{entry="spent",namespace="team"} 5400.0',
        "amdahl_loop_queue_depth 3.0",
        "amdahl_loop_queue_oldest_seconds 1.5",
        'amdahl_loop_ticks_total{result="ok"} 1.0',
        'amdahl_loop_api_requests_total{code="200",verb="GET"} 1.0',
        'amdahl_loop_phase_device_seconds_total{namespace="team",phase="input"} 10.0',
        'amdahl_loop_phase_device_seconds_total{namespace="team",phase="compute"} 630.0',
        'amdahl_loop_spec_reverts_total{manager="kubectl"} 1.0',
        'amdahl_loop_spec_reverts_total{manager="another program"} 1.0',
    }
    (resident,) = (line.split() for line in lines if line.startswith("process_resident_memory_bytes "))
    assert float(resident[1]) > 1e6

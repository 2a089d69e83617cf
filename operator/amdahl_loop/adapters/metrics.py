"""What does the operator tell Prometheus? Counts of what it did, and the jobs as their last pass left them.

Labels are bounded: namespaces, conditions, phases, knobs, verdicts and a handful of managers; never a job, a pod or an
experiment. The names are a contract with the chart's dashboard and alerts (docs/install.md).
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import intern
from typing import NamedTuple, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from amdahl_loop import __version__
from amdahl_loop.domain.api.conditions import ConditionStatus
from amdahl_loop.domain.api.training_job import TrainingJobStatus
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.stewards import steward_of
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.domain.verdicts import Verdict


class Told(NamedTuple):
    """What is added up of a job's latest status; every job of a fleet is kept."""

    namespace: str
    holds: tuple[str, ...]
    """Conditions that are True."""
    wasted_devices: float
    is_experimenting: bool
    gross_h: float | None
    spent_h: float | None

    @classmethod
    def of(cls, namespace: str, status: TrainingJobStatus) -> Self:
        """The part of a status that counts."""
        bank = status.bank
        return cls(
            namespace=intern(namespace),
            holds=tuple(c.type.value for c in status.conditions if c.status is ConditionStatus.TRUE),
            wasted_devices=status.wasted_device_hours_per_hour or 0.0,
            is_experimenting=status.active_experiment is not None,
            gross_h=None if bank is None else bank.gross_device_hours,
            spent_h=None if bank is None else bank.spent_device_hours,
        )


Tell = Callable[[], Iterable[Told]]

MAX_GAP_S = 600.0
"""Longer than any rest between two passes of a job: what an absent operator did not see is not made up."""


class Metrics:
    """Every metric of one operator, in a registry of its own."""

    def __init__(self, told: Tell, queue: Callable[[], tuple[int, float]]) -> None:
        """`told` gives what each job reports.

        `queue` gives the number of jobs that are due or run, and the seconds that the oldest has been due.
        """
        self.registry = CollectorRegistry()
        self._ticks = Counter("amdahl_loop_ticks", "Passes over a job.", ["result"], registry=self.registry)
        self._tick_s = Histogram("amdahl_loop_tick_seconds", "Duration of a pass.", registry=self.registry)
        self._requests = Counter(
            "amdahl_loop_api_requests", "Requests to the API server.", ["verb", "code"], registry=self.registry
        )
        self._phases = Counter(
            "amdahl_loop_phase_device_seconds",
            "Where device time went.",
            ["namespace", "phase"],
            registry=self.registry,
        )
        self._experiments = Counter(
            "amdahl_loop_experiments", "Closed experiments.", ["namespace", "knob", "verdict"], registry=self.registry
        )
        self._vetoes = Counter("amdahl_loop_vetoes", "Wins ended by a veto.", ["veto"], registry=self.registry)
        self._rollbacks = Counter(
            "amdahl_loop_rollbacks", "Proven values taken back.", ["namespace"], registry=self.registry
        )
        self._reverts = Counter(
            "amdahl_loop_spec_reverts", "Proven values put back by another tool.", ["manager"], registry=self.registry
        )
        info = Gauge("amdahl_loop_build_info", "The operator's version.", ["version"], registry=self.registry)
        info.labels(__version__).set(1)
        self.registry.register(_Jobs(told, queue))
        ProcessCollector(registry=self.registry)  # a registry of one's own has none: memory, CPU and open files

    def serve(self, port: int) -> WSGIServer:
        """Serve `/metrics` on every address of the pod, from a thread of its own; closing it is the caller's."""
        server, _ = start_http_server(port, registry=self.registry)
        return server

    def count_tick(self, result: str, seconds: float) -> None:
        """A pass is over: `ok`, `error` or `conflict`."""
        self._ticks.labels(result).inc()
        self._tick_s.observe(seconds)

    def count_request(self, verb: str, code: int) -> None:
        """The API server has answered; code 0: it has not."""
        self._requests.labels(verb, str(code)).inc()

    def add_phases(self, namespace: str, shares: Mapping[Phase, float], devices: int, seconds: float) -> None:
        """So long a job has held its devices, with these shares of its time."""
        for phase, share in shares.items():
            self._phases.labels(namespace, phase.value).inc(share * devices * min(max(seconds, 0.0), MAX_GAP_S))

    def count_verdict(self, namespace: str, experiment: Experiment, verdict: Verdict) -> None:
        """An experiment has ended."""
        self._experiments.labels(namespace, experiment.plan.hypothesis.knob.value, verdict.word.value).inc()
        for veto in verdict.vetoes:
            if not veto.silent:
                self._vetoes.labels(veto.name.value).inc()

    def count_rollback(self, namespace: str) -> None:
        """A proven value was taken back."""
        self._rollbacks.labels(namespace).inc()

    def count_reverts(self, managers: Iterable[str]) -> None:
        """A proven value was put back by these field managers; unknown ones are counted together."""
        for steward in {steward_of(manager).value for manager in managers} or {"unknown"}:
            self._reverts.labels(steward).inc()


class _Jobs(Collector):
    """The fleet as it stands, added up by namespace at each scrape."""

    def __init__(self, told: Tell, queue: Callable[[], tuple[int, float]]) -> None:
        self._told, self._queue = told, queue

    def collect(self) -> Iterable[Metric]:
        """Gauges of the queue and of every namespace."""
        depth, oldest_s = self._queue()
        yield GaugeMetricFamily("amdahl_loop_queue_depth", "Jobs that wait for a pass or are in one.", depth)
        yield GaugeMetricFamily("amdahl_loop_queue_oldest_seconds", "How long the oldest has been due.", oldest_s)
        known: Tally[str] = Tally()
        jobs: Tally[tuple[str, str]] = Tally()
        wasted: dict[str, float] = {}
        running: Tally[str] = Tally()
        bank: dict[tuple[str, str], float] = {}
        for told in self._told():
            namespace = told.namespace
            known[namespace] += 1
            jobs.update((namespace, condition) for condition in told.holds)
            wasted[namespace] = wasted.get(namespace, 0.0) + told.wasted_devices
            running[namespace] += told.is_experimenting
            for entry, hours in (("gross", told.gross_h), ("spent", told.spent_h)):
                if hours is not None:
                    bank[namespace, entry] = bank.get((namespace, entry), 0.0) + 3600 * hours
        described = [((namespace,), count) for namespace, count in known.items()]
        yield _family("amdahl_loop_jobs_described", "Jobs whose status is known.", ("namespace",), described)
        yield _family("amdahl_loop_jobs", "Jobs whose condition is True.", ("namespace", "condition"), jobs.items())
        devices = [((namespace,), value) for namespace, value in wasted.items()]
        yield _family("amdahl_loop_wasted_devices", "Devices held that do not compute.", ("namespace",), devices)
        opened = [((namespace,), count) for namespace, count in running.items()]
        yield _family("amdahl_loop_experiments_running", "Open experiments.", ("namespace",), opened)
        yield _family("amdahl_loop_bank_device_seconds", "The bank.", ("namespace", "entry"), bank.items())


def _family(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for words, value in sorted(values):
        family.add_metric(list(words), value)
    return family

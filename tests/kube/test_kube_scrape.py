"""Counters that a training process serves: read from a real server of the probe's, and never believed further than they go."""

import asyncio
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.adapters.kube.scrape import MAX_METRICS_BYTES, Counters, fetch_metrics, parse_metrics
from amdahl_loop.domain.telemetry import PHASES, Malformed, Phase
from amdahl_probe.metrics import Family, Metrics, serve


def make_metrics(**info: str) -> Metrics:
    """Counters after three steps of one second."""
    metrics = Metrics({"run": "pydocs-r0", "rank": "0", "world": "2", "device": "cpu", "by": "probe", **info})
    metrics.add_phases({"startup": 5 * 10**9})
    for _ in range(3):
        metrics.observe_step(10**9, 16)
        metrics.add_phases({"input": 600_000_000, "compute": 400_000_000})
    metrics.checkpoints, metrics.checkpoint_block_ns = 1, 250_000_000
    metrics.loader_batches, metrics.loader_batch_ns = 3, 270_000_000
    metrics.loss, metrics.mfu = math.nan, {"palm": 0.4}
    return metrics


def test_the_probes_own_text_is_read_in_full() -> None:
    """Every counter of the telemetry contract, from the text that the probe renders."""
    counters = parse_metrics(make_metrics().render())
    assert isinstance(counters, Counters)
    assert (counters.steps, counters.samples, counters.step_s, counters.world) == (3, 48, 3.0, 2)
    assert (counters.saves, counters.blocked_s, counters.batches, counters.batch_s) == (1, 0.25, 3, 0.27)
    assert counters.startup_s == 5.0
    assert counters.phases_s[PHASES.index(Phase.INPUT)] == pytest.approx(1.8)
    assert not counters.is_live


def test_what_is_told_beside_them_does_not_matter() -> None:
    """A rank 0 that tells utilisation by convention, and lost time by cause, is read as one that does not."""
    metrics = make_metrics(by="trainer")
    before = parse_metrics(metrics.render())
    metrics.mfu = {"palm": 0.4, "causal": 0.38, "packed": 0.37}
    lost = {'cause="restart"': 1.0, 'cause="lost"': 2.0}
    work = {'phase="forward"': 1.5, 'phase="eval"': 0.5}
    metrics.families = lambda: {
        "amdahl_badput_device_seconds": Family("gauge", "Lost.", lost),
        "amdahl_device_work_seconds_total": Family("counter", "Of the device.", work),
    }
    text = metrics.render()
    assert text.count("amdahl_badput_device_seconds{") == 2
    assert isinstance(before, Counters)
    assert parse_metrics(text) == before


def test_knobs_that_the_program_cannot_take_are_read() -> None:
    """So that they are not offered. A later change that is taken clears one; a name that is no knob is left out."""
    metrics = make_metrics(by="trainer")
    metrics.note_knobs(0, ["dataloaderWorkers"], ["compile", "microBatch", "file", 'a"b'])
    metrics.note_knobs(0, ["compile"], [])  # another loader of the same change
    metrics.note_knobs(1, ["microBatch"], [])
    counters = parse_metrics(metrics.render())
    assert isinstance(counters, Counters)
    assert counters.ignored == ("compile",)


def test_our_trainer_says_that_it_switches_live() -> None:
    """Who counts is in the info; a foreign script is never taken to be live."""
    live = parse_metrics(make_metrics(by="trainer").render())
    assert isinstance(live, Counters)
    assert live.is_live


def replaced(old: str, new: str) -> str:
    text = make_metrics().render()
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "amdahl_info is missing", id="nothing"),
        pytest.param("# HELP up x\nup 1\n", "amdahl_info is missing", id="another program's"),
        pytest.param("<html>\n", "cannot be read", id="a page"),
        pytest.param(replaced("amdahl_steps_total 3", "amdahl_steps_total NaN"), "is nan", id="NaN"),
        pytest.param(replaced("amdahl_steps_total 3", "amdahl_steps_total -3"), "is -3", id="negative"),
        pytest.param(replaced("amdahl_steps_total 3", "amdahl_steps_total +Inf"), "is inf", id="infinite"),
        pytest.param(replaced("amdahl_steps_total 3", "amdahl_steps_total 1e300"), "is 1e+300", id="huge"),
        pytest.param(
            replaced("amdahl_steps_total 3", "amdahl_steps_total 3\namdahl_steps_total 4"), "twice", id="twice"
        ),
        pytest.param(replaced("amdahl_steps_total 3\n", "\n"), "amdahl_steps_total", id="missing"),
        pytest.param(replaced('world="2"', 'world="0"'), "world is 0", id="no rank"),
        pytest.param(replaced('world="2"', 'world="9999999999"'), "world is", id="too many ranks"),
        pytest.param(replaced('world="2"', 'world="two"'), "cannot be read", id="a word for a number"),
        pytest.param(replaced(',world="2"', ""), "world", id="not started yet"),
        pytest.param("a" * (MAX_METRICS_BYTES + 1), "longer than", id="too long"),
        pytest.param('amdahl_info{world="1"} 1\n' + "amdahl_x{a=" * 5000, "cannot be read", id="never closed"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_a_reason(text: str, reason: str) -> None:
    """A value, never an exception."""
    counters = parse_metrics(text)
    assert isinstance(counters, Malformed)
    assert reason in counters.reason
    assert len(counters.reason) <= 300


@given(text=st.text(max_size=200) | st.text(st.sampled_from(list('amdahl_info{}"=,1 \n#TYPE')), max_size=200))
def test_any_text_is_an_answer(text: str) -> None:
    """Whatever is served, the operator goes on."""
    assert isinstance(parse_metrics(text), Counters | Malformed)


def test_counters_are_fetched_from_a_running_process() -> None:
    """The probe's own server, over HTTP."""
    server = serve(make_metrics(), 0)
    try:
        text = asyncio.run(fetch_metrics("127.0.0.1", server.server_address[1]))
    finally:
        server.shutdown()
        server.server_close()
    assert isinstance(text, str)
    assert isinstance(parse_metrics(text), Counters)


@pytest.fixture
def hostile() -> Iterator[Any]:
    """A server that answers as told."""

    class Handler(BaseHTTPRequestHandler):
        status, headers_sent, body = 200, {}, b""

        def do_GET(self) -> None:
            self.send_response(type(self).status)
            for name, value in type(self).headers_sent.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(type(self).body)
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler, server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "body", "reason"),
    [
        pytest.param(404, {}, b"", "answered 404", id="no such page"),
        pytest.param(302, {"Location": "http://127.0.0.1:1/metrics"}, b"", "answered 302", id="sent elsewhere"),
        pytest.param(200, {}, b"x" * (MAX_METRICS_BYTES + 10), "longer than", id="without end"),
        pytest.param(200, {"Content-Length": "999999"}, b"x", "cannot be read", id="cut short"),
    ],
)
def test_a_server_in_a_pod_cannot_lead_us_astray(
    hostile: Any, status: int, headers: dict[str, str], body: bytes, reason: str
) -> None:
    """No redirect is followed, no endless answer is kept."""
    handler, port = hostile
    handler.status, handler.headers_sent, handler.body = status, headers, body
    answer = asyncio.run(fetch_metrics("127.0.0.1", port))
    assert isinstance(answer, Malformed)
    assert reason in answer.reason


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "not an address", ""])
def test_nobody_there_is_a_reason_too(address: str) -> None:
    """A pod without the probe, or none at all."""
    answer = asyncio.run(fetch_metrics(address, 1))
    assert isinstance(answer, Malformed)
    assert "cannot be read" in answer.reason

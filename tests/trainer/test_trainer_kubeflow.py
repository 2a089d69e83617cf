"""Progress for Kubeflow Trainer: what is posted, that nothing waits for it, and that a refusal harms nothing."""

from __future__ import annotations

import json
import math
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amdahl_trainer import kubeflow
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.kubeflow import Address, Sink, State

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@contextmanager
def controller(status=200):
    """A real server on the loopback; yields its URL and what it was sent."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/status", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_state_becomes_the_request_that_the_controller_reads():
    """Whole percent, seconds left, numbers as text; what is not finite is left out, and so is an unknown time."""
    state = State(25, 99, 12.9, {"loss": 2.34567891, "grad": math.nan})
    assert json.loads(state.body(NOW)) == {
        "trainerStatus": {
            "progressPercentage": 25,
            "estimatedRemainingSeconds": 12,
            "metrics": [{"name": "loss", "value": "2.34568"}],
            "lastUpdatedTime": "2026-11-21T12:00:00+00:00",
        }
    }
    told = json.loads(State(200, 100, None, {}).body(NOW))["trainerStatus"]
    assert told["progressPercentage"] == 100
    assert "estimatedRemainingSeconds" not in told


def test_a_run_tells_how_far_it_is(make_engine, tiny, tmp_path):
    """The last state posted is that of the last step, with the token of the pod."""
    (tmp_path / "token").write_text("of the pod\n")
    with controller() as (url, sent):
        told = {"KUBEFLOW_TRAINER_STATUS_URL": url, "KUBEFLOW_TRAINER_STATUS_TOKEN": str(tmp_path / "token")}
        engine = make_engine(tiny({"run.max_steps": 4, "metrics.kubeflow_status": True}), told)
        engine.run(lambda: None)
        engine.parts.reporter.close(engine.steps, "exit")
    authorization, body = sent[-1]
    assert authorization == "Bearer of the pod"
    assert body["trainerStatus"]["progressPercentage"] == 100
    assert {metric["name"] for metric in body["trainerStatus"]["metrics"]} == {"loss", "tokens_per_s"}


def test_a_refusal_is_said_once(monkeypatch, capsys):
    """Neither a server that says no nor one that is gone raises anything."""
    monkeypatch.setattr(kubeflow, "EVERY_S", 0.0)
    with controller(status=403) as (url, sent):
        sink = Sink(Address(url, None, None))
        for step in range(3):
            sink.post(State(step, 10, None, {}))
            while len(sent) <= step:
                threading.Event().wait(0.001)
        sink.close()
    gone = Sink(Address(url, None, None))
    gone.post(State(1, 10, None, {}))
    gone.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("progress not told" in line for line in said)


@pytest.mark.parametrize("url", ["", "file:///etc/passwd"])
def test_where_the_pod_was_not_told_where_the_run_is_refused(url):
    """With key, variable and remedy; no other kind of address is opened."""
    with pytest.raises(ConfigError, match=r"KUBEFLOW_TRAINER_STATUS_URL.*set metrics\.kubeflow_status to false"):
        Address.from_environ({"KUBEFLOW_TRAINER_STATUS_URL": url})


def test_a_trial_tells_nobody(make_engine, tiny):
    """Trackers are off in a trial: nothing is needed and nothing is posted."""
    make_engine(tiny({"metrics.kubeflow_status": True}), {"AMDAHL_TRIAL": "1"})

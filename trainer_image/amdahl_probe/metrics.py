"""What does this process look like to Prometheus? Counters of one rank and a loopback server for them.

The numbers are those of the serving rank (local rank 0), not of the whole job. `emit.Recorder` keeps the counters up to
date; `serve` answers `GET /metrics` from a daemon thread, so it never holds up the end of the process.
"""

from __future__ import annotations

import os
import socket
import threading
from bisect import bisect_left
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional

#: Upper bounds of `amdahl_step_seconds`, seconds: two a decade from 1 ms to 5 min.
BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Family(NamedTuple):
    """Numbers that only the program knows: kind and help text, and values by label text such as `cause="input"`."""

    kind: str
    text: str
    values: Mapping[str, float]


class Metrics:
    """The counters behind `/metrics`. One writer, the training thread; readers may see a step half counted."""

    def __init__(self, info: Optional[Mapping[str, str]] = None) -> None:
        self.info: Dict[str, str] = dict(info or {})
        self.phase_ns: Dict[str, int] = {}
        self.steps = 0
        self.samples = 0
        self.checkpoints = 0
        self.checkpoint_block_ns = 0
        self.loader_batches = 0
        self.loader_batch_ns = 0
        self.loss: Optional[float] = None
        self.mfu: Dict[str, float] = {}
        self.ignored: Dict[str, int] = {}  #: knobs that the program could not take, and the change that asked for them
        self.families: Callable[[], Mapping[str, Family]] = dict  #: asked at each request, by another thread
        self._step_ns = 0
        self._bucket_counts = [0] * (len(BUCKETS_S) + 1)

    def add_phases(self, phases: Mapping[str, int]) -> None:
        """Add nanoseconds to the phase counters."""
        for phase, spent_ns in phases.items():
            self.phase_ns[phase] = self.phase_ns.get(phase, 0) + spent_ns

    def observe_step(self, wall_ns: int, samples: int) -> None:
        """Count one optimizer step."""
        self.steps += 1
        self.samples += samples
        self._step_ns += wall_ns
        self._bucket_counts[bisect_left(BUCKETS_S, wall_ns / 1e9)] += 1

    def note_knobs(self, seq: int, applied: Iterable[str], ignored: Iterable[str]) -> None:
        """A knob stays ignored until a later change is taken; one loader's word does not undo another's."""
        for name in applied:
            if self.ignored.get(name, seq) < seq:
                del self.ignored[name]
        self.ignored.update(dict.fromkeys(ignored, seq))

    def render(self) -> str:
        """The counters as Prometheus text, version 0.0.4."""
        lines: List[str] = []
        _counter(lines, "amdahl_steps_total", "Optimizer steps.", self.steps)
        _counter(lines, "amdahl_samples_total", "Samples consumed by this rank.", self.samples)
        _counter(lines, "amdahl_checkpoints_total", "Checkpoints saved.", self.checkpoints)
        _counter(
            lines,
            "amdahl_checkpoint_block_seconds_total",
            "Time the training thread was blocked by checkpoints.",
            self.checkpoint_block_ns / 1e9,
        )
        _counter(lines, "amdahl_loader_batches_total", "Batches made by the data loader.", self.loader_batches)
        _counter(
            lines,
            "amdahl_loader_batch_seconds_total",
            "Time loader workers spent making batches.",
            self.loader_batch_ns / 1e9,
        )
        _family(lines, "amdahl_phase_seconds_total", "counter", "Wall time by phase.")
        lines += [f'amdahl_phase_seconds_total{{phase="{p}"}} {ns / 1e9!r}' for p, ns in dict(self.phase_ns).items()]
        self._render_histogram(lines)
        if self.loss is not None:
            _family(lines, "amdahl_loss", "gauge", "Loss of the last step that has one.")
            lines.append(f"amdahl_loss {self.loss!r}")
        if self.mfu:
            _family(lines, "amdahl_mfu", "gauge", "Model FLOP utilisation by counting convention.")
            lines += [f'amdahl_mfu{{convention="{_escape(c)}"}} {v!r}' for c, v in dict(self.mfu).items()]
        if self.ignored:
            _family(lines, "amdahl_knob_ignored", "gauge", "A knob that this program could not take; always 1.")
            lines += [f'amdahl_knob_ignored{{knob="{_escape(name)}"}} 1' for name in sorted(dict(self.ignored))]
        for name, family in self.families().items():
            _family(lines, name, family.kind, family.text)
            lines += [f"{name}{{{labels}}} {v!r}" if labels else f"{name} {v!r}" for labels, v in family.values.items()]
        _family(lines, "amdahl_info", "gauge", "What runs here; always 1.")
        labels = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(self.info.items()))
        lines.append(f"amdahl_info{{{labels}}} 1")
        return "\n".join(lines) + "\n"

    def _render_histogram(self, lines: List[str]) -> None:
        _family(lines, "amdahl_step_seconds", "histogram", "Wall time of an optimizer step.")
        below = 0
        for bound, count in zip(BUCKETS_S, self._bucket_counts):  # noqa: B905 (the last count is the overflow)
            below += count
            lines.append(f'amdahl_step_seconds_bucket{{le="{bound!r}"}} {below}')
        lines.append(f'amdahl_step_seconds_bucket{{le="+Inf"}} {below + self._bucket_counts[-1]}')
        lines.append(f"amdahl_step_seconds_sum {self._step_ns / 1e9!r}")
        lines.append(f"amdahl_step_seconds_count {below + self._bucket_counts[-1]}")


def serve(metrics: Metrics, port: int, host: str = "127.0.0.1", port_dir: Optional[str] = None) -> ThreadingHTTPServer:
    """Answer `GET /metrics` on `host:port` from a daemon thread and return the server.

    Port 0 takes any free port and writes its number to `port_dir/metrics.port`. Raises OSError if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds: a client that says nothing must not keep a thread for ever

        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = metrics.render().encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8" if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            """Say nothing: the script's output belongs to the script."""

    server = _QuietServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="amdahl-metrics", daemon=True).start()
    if port == 0 and port_dir:
        write_atomically(Path(port_dir, "metrics.port"), str(server.server_address[1]))
    return server


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The base class asks the resolver for the host's name, which can hang a pod without DNS for seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader sees the old text or the new one, never half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _family(lines: List[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")


def _counter(lines: List[str], name: str, text: str, value: float) -> None:
    _family(lines, name, "counter", text)
    lines.append(f"{name} {value!r}")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

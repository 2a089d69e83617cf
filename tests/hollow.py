"""Nodes whose pods only report: a kubelet that starts no process and tells what a formula says.

Scheduler, controllers and API server are real; the last step, a program on a node, is `fakes.Truth`. A running job serves
real counters over HTTP; a block's pod ends with the summary that its supervisor would have left. Whole experiments take
seconds, and every object and every request of the operator is as on any cluster.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from urllib3.exceptions import HTTPError

from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.runs import WindowRequest
from amdahl_loop.domain.telemetry import PHASES, Arm, BlockReport
from fakes import SimulatedRunner, Truth
from testbed.access import Access

METRICS_PORT = 9178
BEAT_S = 5.0
"""Without a sign of life for 20 s a node counts as lost."""
POLL_S = 0.2
UNFINISHED = "/api/v1/pods?fieldSelector=status.phase!=Succeeded,status.phase!=Failed"
"""The pods that a kubelet still has to do with."""
EXPERIMENT_LABEL = "amdahl-loop.io/experiment"
JOB_LABEL = "amdahl-loop.io/job"

Object = dict[str, Any]


@dataclass
class Program:
    """A running job's counters: steps since it started, by the values that its pod was started with."""

    truth: Truth
    knobs: Knobs
    began_s: float = field(default_factory=time.monotonic)

    def render(self) -> str:
        """Prometheus text, as the probe serves it."""
        phases = self.truth.phases_s(self.knobs)
        step_s = sum(phases.values())
        steps = int((time.monotonic() - self.began_s) / step_s)
        every = self.knobs.checkpoint_every_steps or 0
        lines = [
            'amdahl_info{rank="0",world="1",device="cpu",by="probe"} 1',
            f"amdahl_steps_total {steps}",
            f"amdahl_samples_total {steps * self.truth.batch(self.knobs)}",
            f"amdahl_step_seconds_sum {steps * step_s}",
            f"amdahl_checkpoints_total {steps // every if every else 0}",
            f"amdahl_checkpoint_block_seconds_total {0.001 * (steps // every) if every else 0}",
            f"amdahl_loader_batches_total {steps}",
            f"amdahl_loader_batch_seconds_total {steps * 0.12}",
        ]
        lines += [f'amdahl_phase_seconds_total{{phase="{p}"}} {steps * phases.get(p, 0.0)}' for p in PHASES]
        return "\n".join(lines) + "\n"


class HollowNodes:
    """Nodes `hollow-0`, `hollow-1` ...; a context manager. Each pod has a loopback address of its own."""

    def __init__(self, access: Access, truth: Truth, count: int = 2, prefix: str = "hollow") -> None:
        self.access, self.truth = access, truth
        self.names = [f"{prefix}-{index}" for index in range(count)]
        self.ended_blocks: list[str] = []
        self.beside: list[str] = []
        """Blocks that ran while a job's program did."""
        self.lock = threading.Lock()
        self._programs: dict[str, tuple[Program, ThreadingHTTPServer]] = {}
        self._addresses = 10
        self._second = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._work, self._live)]

    def __enter__(self) -> Self:
        for name in self.names:
            self.access.post("/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
        self._beat()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for _, server in self._programs.values():
            server.shutdown()
            server.server_close()
        for name in self.names:
            self.access.delete(f"/api/v1/nodes/{name}")

    def _live(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(HTTPError):
                self._beat()

    def _work(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                reply = self.access.get(UNFINISHED)
                for pod in reply.body.get("items", []):
                    if pod["spec"].get("nodeName") in self.names:
                        self._sync(pod)
            except HTTPError:  # the server was away for a moment; a kubelet tries again
                continue

    def _beat(self) -> None:
        """Say that the nodes are well, as kubelets do."""
        now = _now()
        room = {"cpu": "64", "memory": "256Gi", "pods": "500", "nvidia.com/gpu": "64"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        ready |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
        status = {"capacity": room, "allocatable": room, "conditions": [ready]}
        for name in self.names:
            path = f"/api/v1/nodes/{name}/status"
            self.access.request("PATCH", path, {"status": status}, "application/merge-patch+json")
            self.access.request(
                "PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "application/merge-patch+json"
            )

    def _sync(self, pod: Object) -> None:
        metadata = pod["metadata"]
        phase = (pod.get("status") or {}).get("phase")
        if "deletionTimestamp" in metadata:
            self._end_program(metadata["uid"])
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            self.access.request("DELETE", path, {"gracePeriodSeconds": 0})
        elif phase in (None, "Pending") and JOB_LABEL in metadata.get("labels", {}):
            if EXPERIMENT_LABEL in metadata["labels"]:
                self._run_block(pod)
            else:
                self._run_program(pod)

    def _run_program(self, pod: Object) -> None:
        """Start counting, with the values that the ConfigMap holds now, as a kubelet would resolve them."""
        uid, namespace = pod["metadata"]["uid"], pod["metadata"]["namespace"]
        program = Program(self.truth, self._read_knobs(namespace, pod))
        address, server = self._serve(program)
        self._programs[uid] = (program, server)
        self._report(pod, "Running", {"running": {"startedAt": _now()}}, address)

    def _serve(self, program: Program) -> tuple[str, ThreadingHTTPServer]:
        """On the next loopback address that is free: other nodes of this kind may report on this machine."""
        while True:
            self._addresses += 1
            address = f"127.0.{self._addresses // 250}.{self._addresses % 250 + 1}"
            try:
                return address, _serve(address, program)
            except OSError:
                continue

    def _read_knobs(self, namespace: str, pod: Object) -> Knobs:
        trainer = _trainer(pod)
        values: dict[KnobName, int | bool] = {}
        for variable in trainer.get("env", []):
            source = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            knob = _KNOBS.get(variable["name"])
            if source is not None and knob is not None:
                found = self.access.get(f"/api/v1/namespaces/{namespace}/configmaps/{source['name']}")
                values[knob] = int(found.body["data"][source["key"]])
        return Knobs().with_values(values)

    def _end_program(self, uid: str) -> None:
        found = self._programs.pop(uid, None)
        if found is not None:
            found[1].shutdown()
            found[1].server_close()

    def _run_block(self, pod: Object) -> None:
        """End at once, with the summary of windows that cost what the formula says."""
        text = next(v["value"] for v in _trainer(pod)["env"] if v["name"] == "AMDAHL_PLAN")
        plan = json.loads(text.replace("$$", "$"))
        report = measure(self.truth, plan)
        self._second = max(int(time.time()), self._second + 1)  # the API tells whole seconds; no two blocks share one
        started = _write_time(self._second)
        ended = {"exitCode": 0, "reason": "Completed", "message": encode_report(report)}
        ended |= {"startedAt": started, "finishedAt": started}
        self._report(pod, "Succeeded", {"terminated": ended}, "127.0.0.2")
        with self.lock:
            self.ended_blocks.append(plan["run"])
            self.beside += [plan["run"]] if self._programs else []

    def _report(self, pod: Object, phase: str, state: Object, address: str) -> None:
        now = _now()
        is_ready = "True" if phase == "Running" else "False"
        container = {"name": "trainer", "image": "hollow", "imageID": "", "restartCount": 0, "state": state}
        conditions = [{"type": "Ready", "status": is_ready, "lastTransitionTime": now}]
        status = {
            "phase": phase,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": now,
            "conditions": [*(pod.get("status", {}).get("conditions") or []), *conditions],
            "containerStatuses": [container | {"ready": phase == "Running", "started": phase == "Running"}],
        }
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        self.access.request("PATCH", path, {"status": status}, "application/merge-patch+json")


def measure(truth: Truth, plan: Object) -> BlockReport:
    """What a supervisor would report of a plan."""
    windows = []
    runner = SimulatedRunner(truth)
    for window in plan["windows"]:
        knobs = Knobs.model_validate(window["knobs"])
        request = WindowRequest(
            arm=Arm(window["arm"]),
            index=window["index"],
            knobs=knobs,
            **{
                k: window[k] for k in ("scored", "offset", "seed", "warmup_s", "warmup_steps", "measure_s", "min_steps")
            },
            steps=window["steps"],
            save_every=window["save_every"],
        )
        windows.append(runner.measure(plan["run"], request))
    return BlockReport(run=plan["run"], state="done", live=False, cpus=4, windows=tuple(windows))


def _serve(address: str, program: Program) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = program.render().encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Quiet."""

    server = ThreadingHTTPServer((address, METRICS_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _trainer(pod: Object) -> Object:
    return next(container for container in pod["spec"]["containers"] if container["name"] == "trainer")


_KNOBS = {"AMDAHL_" + "".join("_" + c if c.isupper() else c.upper() for c in knob.value): knob for knob in KnobName}


def _now() -> str:
    return _write_time(time.time())


def _write_time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""A job on a real API server, and the controllers that such a server lacks, played by hand."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.probe import Probe
from amdahl_loop.adapters.kube.running import RunningJob, RunningState
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.kube.scrape import Fetch
from amdahl_loop.adapters.kube.transport import open_transport
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.telemetry import Malformed
from amdahl_probe.metrics import Metrics
from kube_builders import FaultyTransport, impatient
from pod_builders import make_template
from testbed.cluster import Cluster

Result = TypeVar("Result")
KINDS = (Kind.CONFIG_MAP, Kind.SERVICE, Kind.JOB)
"""What a running job is made of."""
PRIORITY_CLASS = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "amdahl-loop-trial"},
    "value": -1000,
    "preemptionPolicy": "Never",
}


@dataclass
class Scene:
    """One namespace of a real server, seen by the operator's own client through a way that can fail."""

    cluster: Cluster
    namespace: str
    transport: FaultyTransport
    now_s: float = field(default_factory=lambda: float(int(time.time())))
    probe: Probe = field(default_factory=lambda: Probe(b"a zip of the probe"))
    saves: SaveCounts = field(default_factory=SaveCounts)
    metrics: Metrics | None = None
    ahead_s: float = 0.0

    def __post_init__(self) -> None:
        self.client = impatient(self.transport)

    async def create_job(self, name: str = "pydocs", **manifest: Any) -> TrainingJob:
        """A TrainingJob on the server; what it says is in `manifest`."""
        body = {"metadata": {"name": name, "namespace": self.namespace, **manifest.pop("metadata", {})}, **manifest}
        made = await self.client.create(Kind.TRAINING_JOB, self.namespace, body)
        assert isinstance(made, dict), made
        return parse_training_job({key: made[key] for key in ("apiVersion", "kind", "metadata", "spec")})

    async def fetch(self, address: str, port: int) -> str | Malformed:
        """What the job's first pod serves."""
        del address, port
        return Malformed(reason="nobody answers") if self.metrics is None else self.metrics.render()

    def clock(self) -> float:
        """The time of the machine, where pods are real; ahead of it where a test skips a wait."""
        return time.time() + self.ahead_s

    def running(self, job: TrainingJob, live: bool = False, measured: bool = False) -> RunningJob:
        """The running job, as a fresh pass of the operator sees it."""
        fetch: Fetch = self.fetch
        return RunningJob(
            self.client,
            job,
            self.probe,
            self.saves,
            clock=lambda: self.now_s,
            live=live,
            measured=measured,
            fetch=fetch,
        )

    async def settle(self, job: TrainingJob, live: bool = False, passes: int = 20) -> RunningState:
        """Passes until one of them does nothing."""
        for _ in range(passes):
            state = await self.running(job, live).ensure()
            if not state.acted:
                return state
        raise AssertionError(f"the job does not settle: {state}")

    async def objects(self, kind: Kind) -> dict[str, Object]:
        """Every object of a kind, by name."""
        return {item["metadata"]["name"]: item async for item in self.client.list(kind, self.namespace)}

    async def play_pods(self, job_name: str, node: str = "node-a", address: str = "10.0.0.7") -> list[str]:
        """The Job controller, the scheduler and a kubelet: a running pod for each rank of a Job."""
        job = (await self.objects(Kind.JOB))[job_name]
        template, names = job["spec"]["template"], []
        for index in range(job["spec"]["completions"]):
            metadata = {
                "name": f"{job_name}-{index}-x7x7x"[-63:].lstrip("-"),
                "namespace": self.namespace,
                "labels": {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": job_name},
                "annotations": {
                    **(template["metadata"].get("annotations") or {}),
                    "batch.kubernetes.io/job-completion-index": str(index),
                },
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": job_name,
                        "uid": job["metadata"]["uid"],
                        "controller": True,
                    }
                ],
            }
            spec = {key: value for key, value in template["spec"].items() if key != "affinity"} | {"nodeName": node}
            made = await self.client.create(Kind.POD, self.namespace, {"metadata": metadata, "spec": spec})
            assert isinstance(made, dict), made
            names.append(made["metadata"]["name"])
            await self.set_pod(names[-1], "Running", {"running": {"startedAt": stamp(self.now_s)}}, podIP=address)
        await self.set_job(job_name, active=len(names), ready=len(names))
        return names

    async def restart_trainer(self, name: str, lasted_s: float, times: int) -> None:
        """A kubelet's word on a pod whose trainer ended with 1 so soon, so many times, and was restarted in place."""
        began_s = self.now_s - lasted_s
        last = {"exitCode": 1, "reason": "Error", "startedAt": stamp(began_s), "finishedAt": stamp(self.now_s)}
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        await self.set_pod(name, "Running", waiting, restartCount=times, lastState={"terminated": last})

    async def set_pod(self, name: str, phase: str, trainer: Object, **status: Any) -> None:
        """A kubelet's word on a pod; what is said of the trainer's past is the container's, all else the pod's."""
        past = {key: status.pop(key) for key in ("restartCount", "lastState") if key in status}
        container = {
            "name": "trainer",
            "state": trainer,
            "restartCount": 0,
            "ready": phase == "Running",
            "image": "example/trainer:1",
            "imageID": "",
            **past,
        }
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(self.now_s)}
        body = {"status": {"phase": phase, "conditions": [condition], "containerStatuses": [container], **status}}
        done = await self.client.patch_status(Kind.POD, self.namespace, name, body)
        assert isinstance(done, dict), done

    async def set_job(self, name: str, **status: Any) -> None:
        """The Job controller's word on a Job."""
        body = {"status": {"startTime": stamp(self.now_s), "terminating": 0, **status}}
        done = await self.client.patch_status(Kind.JOB, self.namespace, name, body)
        assert isinstance(done, dict), done

    async def delete_pods(self, *names: str) -> None:
        """The garbage collector and a kubelet: these pods are gone."""
        for name in names:
            self.cluster.admin.kubectl(
                "delete",
                "pod",
                name,
                "--namespace",
                self.namespace,
                "--force",
                "--grace-period=0",
                "--wait=false",
                "--ignore-not-found",
            )


def stamp(seconds: float) -> str:
    """RFC 3339 to the second, as controllers write it."""
    return to_timestamp(float(int(seconds)))


def play(cluster: Cluster, namespace: str, scenario: Callable[[Scene], Coroutine[Any, Any, Result]]) -> Result:
    """Run a scenario in a namespace, with the operator's own client."""

    async def go() -> Result:
        transport = FaultyTransport(await open_transport(cluster.admin.kubeconfig))
        try:
            return await scenario(Scene(cluster, namespace, transport))
        finally:
            await transport.close()

    return asyncio.run(go())


def spec(**fields: Any) -> dict[str, Any]:
    """A job's spec."""
    return {"template": make_template(), "knobs": {"dataloaderWorkers": 0}, **fields}


async def inventory(scene: Scene) -> dict[str, list[str]]:
    """Names of the objects by kind."""
    return {kind.value.kind: sorted(await scene.objects(kind)) for kind in KINDS}

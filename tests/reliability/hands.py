"""Who makes pods, ends blocks and collects garbage on an API server that has nothing beside it? Hands that play the controllers.

The Job controller, the scheduler, kubelets and the garbage collector, as far as the operator can see them, all at once and without
waiting: a whole experiment takes seconds. What a program does under given knobs is a formula (`fakes.Truth`); what becomes of a
block's pod can be told by the test. Every object lies on the real API server.
"""

import asyncio
import itertools
import json
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from amdahl_loop.adapters.recorded import encode_report
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL, read_run
from amdahl_loop.domain.knob_values import KnobName, Knobs
from fakes import Truth
from reliability.programs import Program, measure, pod_status, read_windows, stamp
from reliability.wire import Object, Wire

METRICS_PORT = 9178
NODE = "hollow-0"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
WATCHED = ("/apis/batch/v1/jobs", "/api/v1/pods", "/apis/amdahl-loop.io/v1alpha1/trainingjobs")
BLOCK_S = 30
"""What every block is said to have held: charges can be counted."""
BACK_OFF_S = 1.0
"""Pause of the Job controller after a pod that failed."""


@dataclass
class Behaviour:
    """What pods of one namespace do."""

    truth: Truth
    crashes: Callable[[Knobs], bool] = lambda _: False
    """Whether the running job's program dies under these values."""
    end: Callable[["Hands", str, Object], Object | None] = lambda hands, block, plan: hands.succeed(block, plan)
    """The status of a block's pod."""


@dataclass
class Village:
    """One namespace as the hands see it."""

    behaviour: Behaviour
    queue: asyncio.Queue[Object] = field(default_factory=asyncio.Queue)
    started: list[str] = field(default_factory=list)
    """Every block whose pod was started, by run, in order: what must not hold anything twice."""
    pods: dict[str, dict[str, str]] = field(default_factory=dict)
    """By UID of the Job: addresses of its pods by name; empty where it has none of its own."""
    counted: set[str] = field(default_factory=set)
    """UIDs of the pods of these blocks."""
    failures: dict[str, int] = field(default_factory=dict)
    broken: str = ""
    """What went wrong with the hands themselves."""


class Hands:
    """Plays every controller for the namespaces that it was given."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.villages: dict[str, Village] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._programs: dict[str, Program] = {}
        self._addresses = itertools.count(1)
        self._subnet = 64 + os.getpid() % 128
        self._second = 0
        application = web.Application()
        application.router.add_get("/metrics", self._tell)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        self._sites: dict[str, web.TCPSite] = {}

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to watch."""
        await self._runner.setup()
        self._watchers = [asyncio.create_task(self._watch(path)) for path in WATCHED]

    async def close(self) -> None:
        """Let go of everything."""
        tasks = [*self._watchers, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runner.cleanup()

    def settle(self, namespace: str, behaviour: Behaviour) -> Village:
        """Play for one more namespace."""
        village = self.villages[namespace] = Village(behaviour)
        self._tasks.append(asyncio.create_task(self._work(namespace, village)))
        return village

    def forget(self, namespace: str) -> None:
        """The store was put back: kubelets end what it does not know, and the controllers look at everything anew."""
        village = self.villages[namespace]
        village.pods.clear()
        for task in self._watchers:
            task.cancel()
        self._watchers = [asyncio.create_task(self._watch(path)) for path in WATCHED]

    async def _watch(self, path: str) -> None:
        """List, then follow; anew whenever the server ends it, or is away."""
        while True:
            with suppress(aiohttp.ClientError, OSError, AssertionError, TimeoutError):
                listed = await self.wire.get(path) or {}
                for item in listed["items"]:
                    self._hand_on({"type": "MODIFIED", "object": item, "path": path})
                version = listed["metadata"]["resourceVersion"]
                url = f"{self.wire.url}{path}?watch=1&resourceVersion={version}&timeoutSeconds=600"
                async with self.wire.session.get(url) as answer:
                    rest = b""
                    async for chunk in answer.content.iter_any():
                        *whole, rest = (rest + chunk).split(b"\n")
                        for line in whole:
                            self._hand_on(json.loads(line) | {"path": path})
            await asyncio.sleep(0.2)

    def _hand_on(self, event: Object) -> None:
        village = self.villages.get(event["object"].get("metadata", {}).get("namespace", ""))
        if village is not None:
            village.queue.put_nowait(event)

    async def _work(self, namespace: str, village: Village) -> None:
        """The controllers of one namespace, one thing after another; what fails is tried again."""
        while True:
            event = await village.queue.get()
            try:
                await self._take(namespace, village, event)
            except (aiohttp.ClientError, OSError, TimeoutError):
                village.pods.pop(
                    event["object"]["metadata"]["uid"], None
                )  # a Job whose pod may be half made: once more
                self._later(village, event, 0.5)
            except Exception:  # noqa: BLE001  # told by whoever waits for what will never come
                village.broken = traceback.format_exc()
                return

    def _later(self, village: Village, event: Object, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, village.queue.put_nowait, event)

    async def _take(self, namespace: str, village: Village, event: Object) -> None:
        item, is_gone = event["object"], event["type"] == "DELETED"
        if event["path"].endswith("/trainingjobs"):
            if is_gone:
                await self._collect(namespace, item["metadata"]["uid"])
        elif event["path"].endswith("/pods"):
            await self._take_pod(namespace, village, item, is_gone)
        elif event["type"] == "RETRY":
            if village.pods.pop(item["metadata"]["uid"], None) is not None:
                await self._start(namespace, village, item)
        elif is_gone or "deletionTimestamp" in item["metadata"] or (item.get("spec") or {}).get("suspend"):
            await self._clear(namespace, village, item["metadata"]["uid"])
        elif JOB_LABEL in item["metadata"].get("labels", {}) and item["metadata"]["uid"] not in village.pods:
            await self._start(namespace, village, item)

    async def _take_pod(self, namespace: str, village: Village, pod: Object, is_gone: bool) -> None:
        if is_gone:
            await self._lose_pod(namespace, village, pod)
        elif "deletionTimestamp" in pod["metadata"]:
            await self._delete_pod(namespace, pod["metadata"]["name"])
        elif _owner(pod) and _owner(pod) not in village.pods:
            await self._collect_pod(namespace, pod)

    # --- the garbage collector ----------------------------------------------------------------------------------------

    async def _collect(self, namespace: str, uid: str) -> None:
        """Delete what an object owned that is gone."""
        for collection in ("/apis/batch/v1/{}/jobs", "/api/v1/{}/configmaps", "/api/v1/{}/services"):
            path = collection.format(f"namespaces/{namespace}")
            for item in await self.wire.items(path):
                if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences") or ()):
                    name = item["metadata"]["name"]
                    await self.wire.delete(f"{path}/{name}", propagationPolicy="Background")

    async def _collect_pod(self, namespace: str, pod: Object) -> None:
        """Delete a pod whose Job is gone."""
        name = pod["metadata"]["labels"].get(JOB_NAME_LABEL, "")
        job = await self.wire.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
        if job is None or job["metadata"]["uid"] != _owner(pod):
            await self._delete_pod(namespace, pod["metadata"]["name"])

    async def _clear(self, namespace: str, village: Village, uid: str) -> None:
        """Delete the pods of a Job that is gone or suspended."""
        for name in village.pods.pop(uid, {}):
            await self._delete_pod(namespace, name)

    async def _delete_pod(self, namespace: str, name: str) -> None:
        await self.wire.delete(f"/api/v1/namespaces/{namespace}/pods/{name}", gracePeriodSeconds=0)

    # --- the Job controller -------------------------------------------------------------------------------------------

    async def _start(self, namespace: str, village: Village, job: Object) -> None:
        """One pod for each rank of a Job, and what becomes of it."""
        metadata = job["metadata"]
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{metadata['name']}"
        present = await self.wire.get(path)
        if present is None or present["metadata"]["uid"] != metadata["uid"] or present["spec"].get("suspend"):
            return
        village.pods[metadata["uid"]] = {}
        conditions = (present.get("status") or {}).get("conditions") or ()
        if any(c["type"] in ("Failed", "Complete") and c["status"] == "True" for c in conditions):
            return
        for index in range(job["spec"]["completions"]):
            pod = await self._make_pod(namespace, present, index, village.failures.get(metadata["uid"], 0))
            if pod is None:
                continue
            name = pod["metadata"]["name"]
            village.pods[metadata["uid"]][name] = ""
            if (pod.get("status") or {}).get("phase") not in (None, "Pending"):
                continue
            if EXPERIMENT_LABEL in metadata["labels"]:
                await self._run_block(namespace, village, pod, index)
            else:
                await self._run_program(namespace, village, present, pod)

    async def _make_pod(self, namespace: str, job: Object, index: int, attempt: int) -> Object | None:
        """A pod with a node, or the one that was made before the store was put back; None where the namespace is going."""
        metadata, template = job["metadata"], job["spec"]["template"]
        index_annotation = {"batch.kubernetes.io/job-completion-index": str(index)}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {key: value for key, value in template["spec"].items() if key != "affinity"}
        body = {
            "metadata": {
                "name": f"{metadata['name'][-50:].lstrip('-')}-{index}-{metadata['uid'][:4]}{attempt}",
                "labels": {**template["metadata"]["labels"], JOB_NAME_LABEL: metadata["name"]},
                "annotations": {**(template["metadata"].get("annotations") or {}), **index_annotation},
                "ownerReferences": [owner | {"controller": True}],
            },
            "spec": spec | {"nodeName": NODE},
        }
        path = f"/api/v1/namespaces/{namespace}/pods"
        made = await self.wire.post(path, body)
        assert made.status in (201, 403, 404, 409), made.content
        if made.status == 409:
            return await self.wire.get(f"{path}/{body['metadata']['name']}")
        return made.body if made.status == 201 else None

    async def _lose_pod(self, namespace: str, village: Village, pod: Object) -> None:
        """Somebody took a pod away: a running job gets another one, a block has failed."""
        uid = _owner(pod)
        if pod["metadata"]["name"] not in village.pods.get(uid, {}):
            return
        del village.pods[uid]
        labels = pod["metadata"]["labels"]
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{labels[JOB_NAME_LABEL]}"
        job = await self.wire.get(path)
        if job is None or job["metadata"]["uid"] != uid:
            return
        village.failures[uid] = village.failures.get(uid, 0) + 1
        if EXPERIMENT_LABEL not in labels:
            await self._start(namespace, village, job)
            return
        village.pods[uid] = {}
        failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": stamp()}
        conditions = [failed | {"type": "FailureTarget"}, failed]
        await self._set_job(path, {"failed": 1, "active": 0, "conditions": conditions})

    async def _set_job(self, path: str, status: Object) -> None:
        """The Job controller's word; a Job starts once."""
        present = await self.wire.get(path)
        has_started = "startTime" in ((present or {}).get("status") or {})
        status = status if has_started else status | {"startTime": stamp()}
        done = await self.wire.merge(f"{path}/status", {"status": {"terminating": 0, **status}})
        assert done.status in (200, 404), done.content

    # --- kubelets -----------------------------------------------------------------------------------------------------

    async def _run_block(self, namespace: str, village: Village, pod: Object, index: int) -> None:
        """End at once, as the test has told."""
        text = next(v["value"] for v in _trainer(pod)["env"] if v["name"] == "AMDAHL_PLAN")
        plan = json.loads(text.replace("$$", "$"))
        block = read_run(plan["run"])
        assert block is not None, plan["run"]
        if index == 0 and pod["metadata"]["uid"] not in village.counted:
            village.counted.add(pod["metadata"]["uid"])
            village.started.append(plan["run"])
        status = village.behaviour.end(self, plan["run"].removeprefix(f"{block.experiment}-"), plan)
        if status is not None:
            await self.set_pod(namespace, pod["metadata"]["name"], status)

    async def _run_program(self, namespace: str, village: Village, job: Object, pod: Object) -> None:
        """Start counting with the values that the ConfigMap holds now, or die of them."""
        metadata, knobs = job["metadata"], await self._read_knobs(namespace, pod)
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{metadata['name']}"
        if village.behaviour.crashes(knobs):
            failures = village.failures[metadata["uid"]] = village.failures.get(metadata["uid"], 0) + 1
            ended = {"exitCode": 1, "reason": "Error", "startedAt": stamp(), "finishedAt": stamp()}
            await self.set_pod(namespace, pod["metadata"]["name"], pod_status("Failed", {"terminated": ended}))
            await self._set_job(path, {"failed": failures, "active": 0, "ready": 0})
            self._later(village, {"type": "RETRY", "object": job, "path": "/apis/batch/v1/jobs"}, BACK_OFF_S)
            return
        address = await self._listen(Program(village.behaviour.truth, knobs))
        village.pods[metadata["uid"]][pod["metadata"]["name"]] = address
        running = pod_status("Running", {"running": {"startedAt": stamp()}}, podIP=address, podIPs=[{"ip": address}])
        await self.set_pod(namespace, pod["metadata"]["name"], running)
        count = job["spec"]["completions"]
        await self._set_job(path, {"active": count, "ready": count})

    async def _read_knobs(self, namespace: str, pod: Object) -> Knobs:
        values: dict[KnobName, int | bool] = {}
        for variable in _trainer(pod).get("env", []):
            source = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            knob = _KNOBS.get(variable["name"])
            if source is not None and knob is not None:
                found = await self.wire.get(f"/api/v1/namespaces/{namespace}/configmaps/{source['name']}")
                assert found is not None, "a kubelet starts no container without its ConfigMap"
                values[knob] = int(found["data"][source["key"]])
        return Knobs().with_values(values)

    async def set_pod(self, namespace: str, name: str, status: Object) -> None:
        """A kubelet's word on a pod."""
        done = await self.wire.merge(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})
        assert done.status in (200, 404), done.content

    def succeed(self, block: str, plan: Object) -> Object:
        """The status of a block's pod that measured what the formula says."""
        village = next(v for v in self.villages.values() if plan["run"] in v.started)
        return self.end_pod(encode_report(measure(village.behaviour.truth, block, plan["run"], read_windows(plan))))

    def end_pod(self, message: str, exit_code: int = 0, reason: str = "Completed") -> Object:
        """The status of a block's pod that has ended; no two blocks share a second, and each held `BLOCK_S`."""
        self._second = max(int(time.time()), self._second + 1)
        began, over = stamp(self._second - BLOCK_S), stamp(self._second)
        ended = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": began, "finishedAt": over}
        phase = "Failed" if exit_code else "Succeeded"
        return pod_status(phase, {"terminated": ended}, at=began)

    # --- programs -----------------------------------------------------------------------------------------------------

    async def _listen(self, program: Program) -> str:
        """An address of loopback of its own, at which a program answers."""
        number = next(self._addresses)
        address = f"127.{self._subnet}.{number // 250}.{number % 250 + 1}"
        self._programs[address] = program
        self._sites[address] = web.TCPSite(self._runner, address, METRICS_PORT)
        await self._sites[address].start()
        return address

    async def _tell(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        return web.Response(text=self._programs[address].render())


@asynccontextmanager
async def playing(wire: Wire) -> AsyncIterator[Hands]:
    """Hands for as long as the context lasts."""
    hands = Hands(wire)
    await hands.open()
    try:
        yield hands
    finally:
        await hands.close()


def _owner(pod: Object) -> str:
    """UID of the Job that a pod belongs to."""
    return next((str(owner["uid"]) for owner in pod["metadata"].get("ownerReferences") or ()), "")


def _trainer(pod: Object) -> Object:
    return next(container for container in pod["spec"]["containers"] if container["name"] == "trainer")


_KNOBS = {"AMDAHL_" + "".join("_" + c if c.isupper() else c.upper() for c in knob.value): knob for knob in KnobName}

"""A real API server with our definitions, jobs on it, and a way to it that fails as told."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.jobs import SeenJob, look_up
from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.transport import Answer, Request, Transport, UnreachableError, open_transport
from builders import make_manifest
from testbed.cluster import Cluster, wait_for

CRDS = Path(__file__).parents[1] / "crds"


def install_crds(cluster: Cluster) -> None:
    """Our three kinds, served."""
    cluster.admin.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for plural in ("trainingjobs", "experiments", "tuningpolicies"):
        cluster.admin.kubectl("wait", "--for=condition=Established", f"crd/{plural}.amdahl-loop.io", "--timeout=60s")
        path = f"/apis/amdahl-loop.io/v1alpha1/{plural}"
        wait_for(lambda path=path: cluster.admin.get(path).status == 200, 60, f"the server lists {plural}")


def job_path(namespace: str, name: str = "pydocs") -> str:
    """Where a TrainingJob is."""
    return f"/apis/amdahl-loop.io/v1alpha1/namespaces/{namespace}/trainingjobs/{name}"


def create_job(cluster: Cluster, namespace: str, **manifest: Any) -> dict[str, Any]:
    """A TrainingJob on the server, as somebody at a keyboard made it; returns the object."""
    document = make_manifest(**manifest)
    document["metadata"]["namespace"] = namespace
    cluster.admin.kubectl("apply", "-f", "-", stdin=document)
    found: dict[str, Any] = cluster.admin.get(job_path(namespace)).body
    return found


async def see_job(client: KubeClient, namespace: str, name: str = "pydocs") -> SeenJob:
    """The job as it stands; it must be there."""
    seen = await look_up(client, namespace, name)
    assert seen is not None
    return seen


async def connect(cluster: Cluster) -> KubeClient:
    """The operator's client, as an administrator, without pauses."""
    return impatient(await open_transport(cluster.admin.kubeconfig))


def impatient(transport: Transport) -> KubeClient:
    """A client that retries at once."""

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    return KubeClient(transport, sleep=sleep)


Fault = Callable[[Request, Callable[[Request], Awaitable[Answer]]], Awaitable[Answer]]


@dataclass
class FaultyTransport:
    """A transport in whose way a fault stands; `fault` decides what becomes of each request."""

    inner: Transport
    fault: Fault | None = None
    requests: list[Request] = field(default_factory=list)

    async def send(self, request: Request) -> Answer:
        """Send it, or what the fault makes of it."""
        self.requests.append(request)
        if self.fault is None:
            return await self.inner.send(request)
        return await self.fault(request, self.inner.send)

    def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """A watch, which no fault meets."""
        self.requests.append(request)
        return self.inner.stream(request)

    async def close(self) -> None:
        """Close every connection."""
        await self.inner.close()

    @property
    def writes(self) -> list[Request]:
        """Requests that change something."""
        return [request for request in self.requests if request.method != "GET"]


class ListsOnly:
    """A server that streams nothing, as those do on which the feature is off."""

    async def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """Its refusal."""
        del request
        yield {"type": "ERROR", "object": {"code": 422, "message": "sendInitialEvents is forbidden"}}


def lose_answers(*methods: str, times: int = 1) -> Fault:
    """The first so many requests by these methods are done, and their answers are lost."""
    left = [times]

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        answer = await send(request)
        if request.method in methods and left[0] > 0:
            left[0] -= 1
            raise UnreachableError("the answer was lost")
        return answer

    return fault


def refuse(status: int, *methods: str, times: int = 1, reason: str = "") -> Fault:
    """The first so many requests by these methods are answered with an error and never arrive."""
    left = [times]

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if request.method in methods and left[0] > 0:
            left[0] -= 1
            return Answer(status=status, body={"reason": reason, "message": f"injected {status}"})
        return await send(request)

    return fault


def show_the_past() -> Fault:
    """Every read by name gets what the first such read got."""
    first: dict[str, str] = {}

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        answer = await send(request)
        if request.method != "GET" or answer.status != 200:
            return answer
        body = first.setdefault(request.path, json.dumps(answer.body))
        return Answer(status=answer.status, body=json.loads(body))

    return fault


class Died(Exception):  # noqa: N818 (an end, not an error)
    """The operator was killed here."""


def cut_at(number: int, before: bool) -> Fault:
    """The operator dies at its nth write: the server has not seen it, or has and the answer is lost."""
    seen = [0]

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if request.method == "GET":
            return await send(request)
        seen[0] += 1
        if seen[0] != number:
            return await send(request)
        if not before:
            await send(request)
        raise Died

    return fault


@contextmanager
def failing(transport: FaultyTransport, fault: Fault) -> Iterator[None]:
    """The fault stands in the way for a while."""
    transport.fault = fault
    try:
        yield
    finally:
        transport.fault = None

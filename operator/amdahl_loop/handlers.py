"""Which events wake which job? kopf watches the API server, and does nothing else.

No finalizer, no annotation, no state of kopf's own: events only put a job's key into our queue, and a pass reads what
is there. Deleting a job never waits for us, and an event that was lost is made up for by the next resync.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import kopf

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.experiments import load_index
from amdahl_loop.adapters.kube.index import Key
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.policies import read_policy
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.transport import USER_AGENT, Answer, Request, Transport, open_transport
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.domain.api.kinds import GROUP, VERSION
from amdahl_loop.domain.children import JOB_LABEL
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.settings import LogFormat, Settings, SettingsError, read_settings
from amdahl_loop.workqueue import WorkQueue

MAX_LOG_CHARS = 2000
"""A line of the log holds no more of what servers, templates and pods have said."""
STALE_S = 120.0
"""Without a pass for so long while jobs are due, the operator is not well."""

_log = logging.getLogger("amdahl_loop")


@dataclass
class Roster:
    """The TrainingJobs that were seen and not yet deleted: whom a change of a policy concerns."""

    keys: set[JobKey] = field(default_factory=set)

    def of(self, namespace: str) -> list[JobKey]:
        """The jobs of a namespace, by name."""
        return sorted(key for key in self.keys if key.namespace == namespace)


@dataclass
class Pulse:
    """When the operator last did something; the kubelet restarts one that only seems to live."""

    clock: Callable[[], float] = time.monotonic
    at_s: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Something was done."""
        self.at_s = self.clock()

    @property
    def age_s(self) -> float:
        """Seconds since something was done."""
        return self.clock() - self.at_s


class Desk:
    """What events touch: the queue, the jobs that are known, and the policies in force."""

    def __init__(self, queue: WorkQueue[JobKey], recollection: Recollection, pulse: Pulse) -> None:
        self.queue, self.recollection, self.pulse = queue, recollection, pulse
        self.roster = Roster()

    def see_job(self, key: JobKey, is_gone: bool) -> None:
        """A TrainingJob was made, changed or deleted."""
        (self.roster.keys.discard if is_gone else self.roster.keys.add)(key)
        self.queue.add(key)

    def see_child(self, namespace: str, job: str) -> None:
        """Something of a job changed."""
        if job:
            self.queue.add(JobKey(namespace, job))

    def see_experiment(self, key: Key, job: str, is_gone: bool) -> None:
        """An Experiment was made, changed or deleted; what a user deletes is no longer remembered."""
        if is_gone:
            self.recollection.index.forget(key)
        self.see_child(key.namespace, job)

    def see_policy(self, namespace: str, name: str, spec: Mapping[str, Any] | None) -> None:
        """A TuningPolicy was made or changed, or (None) deleted: every job of its namespace is looked at."""
        known = self.recollection.policies.setdefault(namespace, {})
        if spec is None:
            known.pop(name, None)
        else:
            known[name] = read_policy(namespace, name, spec)
        for key in self.roster.of(namespace):
            self.queue.add(key)


def build_registry(desk: Desk) -> kopf.OperatorRegistry:
    """Kopf's handlers: each only turns an event into keys."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def log_in(**known: Any) -> kopf.AiohttpSession:
        return open_session(kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known))

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_watching(settings)

    @kopf.on.event(GROUP, VERSION, "trainingjobs", registry=registry)
    async def see_job(**event: Any) -> None:
        desk.see_job(JobKey(event["namespace"], event["name"]), is_gone=event["type"] == "DELETED")

    @kopf.on.event(GROUP, VERSION, "experiments", registry=registry)
    async def see_experiment(**event: Any) -> None:
        key = Key(event["namespace"], event["name"])
        desk.see_experiment(key, str(event["spec"].get("job", "")), is_gone=event["type"] == "DELETED")

    @kopf.on.event("batch", "v1", "jobs", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def see_block(**event: Any) -> None:
        desk.see_child(event["namespace"], event["labels"][JOB_LABEL])

    @kopf.on.event("", "v1", "pods", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def see_pod(**event: Any) -> None:
        desk.see_child(event["namespace"], event["labels"][JOB_LABEL])

    @kopf.on.event(GROUP, VERSION, "tuningpolicies", registry=registry)
    async def see_policy(**event: Any) -> None:
        spec = None if event["type"] == "DELETED" else dict(event["spec"])
        desk.see_policy(event["namespace"], event["name"], spec)

    @kopf.on.probe(registry=registry, id="secondsSinceLastPass")
    async def tell_age(**_: Any) -> float:
        if desk.pulse.age_s > STALE_S and desk.queue.is_overdue(STALE_S):
            raise kopf.PermanentError(f"no pass for {desk.pulse.age_s:.0f} s although jobs are due")
        return round(desk.pulse.age_s, 1)

    return registry


def configure_watching(settings: kopf.OperatorSettings) -> None:
    """Time limits on every request and watch; children are selected by the server; kopf keeps and posts nothing."""
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.enforce_retry_after = True
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["jobs"] = JOB_LABEL
    settings.watching.label_selectors["pods"] = JOB_LABEL
    settings.posting.enabled = False
    settings.scanning.disabled = True


def open_session(info: kopf.ConnectionInfo | None) -> kopf.AiohttpSession:
    """Kopf's own connection under our User-Agent, so that audit logs and field managers name us."""
    if info is None:
        raise kopf.LoginError("no cluster: neither a service account nor a kubeconfig was found; set KUBECONFIG")
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers={**info.as_http_headers(), "User-Agent": USER_AGENT},
        proxy=info.proxy_url,
    )
    return kopf.AiohttpSession(server=info.server, default_namespace=info.default_namespace, aiohttp_session=session)


class Counted:
    """A transport whose answers are counted."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.metrics: Metrics | None = None

    async def send(self, request: Request) -> Answer:
        """Send, and count the answer, or that there was none."""
        code = 0
        try:
            answer = await self._transport.send(request)
            code = answer.status
        finally:
            if self.metrics is not None:
                self.metrics.count_request(request.method, code)
        return answer

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()


async def timed(passing: Awaitable[float | None], metrics: Metrics) -> float | None:
    """A pass, counted with its duration."""
    begun_s, result = time.monotonic(), "error"
    try:
        rest_s = await passing
        result = "ok"
    except ApiUnavailable:
        result = "conflict"
        raise
    finally:
        metrics.count_tick(result, time.monotonic() - begun_s)
    return rest_s


@contextlib.asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """Connect, read the ledger once, and let the queue work for as long as the context lasts."""
    transport = Counted(await open_transport(settings.kubeconfig))
    async with KubeClient(transport) as client:
        namespaces = settings.namespaces or (None,)
        index = await load_index(client, namespaces)
        recollection = Recollection(since_s=client.now_s(), index=index)
        pulse = Pulse()

        async def take(key: JobKey) -> float | None:
            pulse.beat()
            return await timed(operator.advance(key), metrics)

        queue = WorkQueue(take, settings.workers)
        metrics = Metrics(
            lambda: [(key.namespace, status) for key, status in list(recollection.statuses.items())],
            lambda: (len(queue), queue.oldest_s),
        )
        transport.metrics = metrics
        operator = Operator(
            client=client,
            settings=settings,
            probe=pack_probe(),
            recollection=recollection,
            clock=client.now_s,
            metrics=metrics,
        )
        desk = Desk(queue, recollection, pulse)
        for namespace in namespaces:  # policies bind from the first pass on, not from their first event
            async for raw in client.list(Kind.TUNING_POLICY, namespace):
                metadata = raw["metadata"]
                desk.see_policy(metadata["namespace"], metadata["name"], raw.get("spec") or {})
        working = asyncio.create_task(queue.run())
        server = metrics.serve(settings.metrics_port) if settings.metrics_port else None
        try:
            yield desk
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            if server is not None:
                server.shutdown()
                server.server_close()


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run the operator until it is stopped."""
    async with open_desk(settings) as desk:
        await kopf.operator(
            registry=build_registry(desk),
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
            stop_flag=stop,
        )


def cut_line(record: logging.LogRecord) -> bool:
    """Keep a message on one line of bounded length: what others wrote can neither flood the log nor forge a line."""
    message = record.getMessage()
    line = message[:MAX_LOG_CHARS] + ("…" if len(message) > MAX_LOG_CHARS else "")
    record.msg, record.args = "".join(c if c.isprintable() else " " for c in line), ()
    return True


def configure_logging(log_format: LogFormat) -> None:
    """Lines as kopf writes them, each of them cut; events are not told one by one."""
    kopf.configure(log_format=kopf.LogFormat.JSON if log_format is LogFormat.JSON else kopf.LogFormat.FULL)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(cut_line)


def main() -> None:
    """The command `amdahl-loop-operator`."""
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    if settings.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(settings.kubeconfig)  # kopf's own connection reads nothing else
    os.environ.setdefault("POD_ID", "amdahl-loop")  # or kopf asks for the user's name, and a numbered user has none
    configure_logging(settings.log_format)
    try:
        asyncio.run(serve(settings))
    except ApiUnavailable as error:
        sys.exit(f"the API server cannot be used: {error}")


if __name__ == "__main__":
    main()

"""Which events wake which job? kopf watches the API server, and does nothing else.

No finalizer, no annotation, no state of kopf's own: events only put a job's key into our queue, and a pass reads what
is there. Deleting a job never waits for us, and an event that was lost is made up for by the next resync.
"""

import asyncio
import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import aiohttp
import kopf

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.closed import follow_closed
from amdahl_loop.adapters.kube.closing import OPEN
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.scrape import open_scrapes
from amdahl_loop.adapters.kube.transport import USER_AGENT, Answer, Request, Transport, open_transport
from amdahl_loop.adapters.kube.watches import StorePutBackError, Watch
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.desk import Desk, Echoes
from amdahl_loop.domain.api.kinds import GROUP, VERSION
from amdahl_loop.domain.children import JOB_LABEL
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import Recollection
from amdahl_loop.settings import LogFormat, Settings, SettingsError, read_settings

MAX_LOG_CHARS = 2000
"""A line of the log holds no more of what servers, templates and pods have said."""
STALE_S = 120.0
"""Without a pass for so long while jobs are due, the operator is not well."""


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
    async def see_job(event: kopf.RawEvent, **_: Any) -> None:
        desk.see_job(*_read(event))

    @kopf.on.event(GROUP, VERSION, "experiments", registry=registry)
    async def see_experiment(event: kopf.RawEvent, **_: Any) -> None:
        await desk.see_experiment(*_read(event))

    @kopf.on.event(GROUP, VERSION, "tuningpolicies", registry=registry)
    async def see_policy(event: kopf.RawEvent, **_: Any) -> None:
        desk.see_policy(*_read(event))

    @kopf.on.probe(registry=registry, id="secondsSinceLastPass")
    async def tell_age(**_: Any) -> float:
        if desk.pulse.age_s > STALE_S and desk.queue.is_overdue(STALE_S):
            raise kopf.PermanentError(f"no pass for {desk.pulse.age_s:.0f} s although jobs are due")
        return round(desk.pulse.age_s, 1)

    return registry


def _read(event: kopf.RawEvent) -> tuple[Object, bool]:
    """The object as the server sent it, which is not copied, and whether it is gone or no longer selected."""
    return cast("Object", event["object"]), event["type"] == "DELETED"


def configure_watching(settings: kopf.OperatorSettings) -> None:
    """Time limits on every request and watch; closed experiments are not selected; kopf keeps and posts nothing."""
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.enforce_retry_after = True
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.chunk_size = 100
    settings.watching.label_selectors["experiments"] = OPEN
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 0.1  # so long after an event kopf keeps a task and the object; 5 s by default
    settings.persistence.diffbase_storage = NoDifference()
    settings.persistence.progress_storage = NoProgress()


class NoDifference(kopf.DiffBaseStorage):
    """Nobody asks kopf what has changed: without this it copies each object at each event to be able to say."""

    def fetch(self, **_: Any) -> None:
        """Nothing was kept."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object is compared."""
        return kopf.BodyEssence()

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


class NoProgress(kopf.ProgressStorage):
    """No handler of ours is ever half done."""

    def fetch(self, **_: Any) -> None:
        """Nothing was kept."""

    def store(self, **_: Any) -> None:
        """Nothing is kept."""

    def purge(self, **_: Any) -> None:
        """There is nothing to remove."""

    def touch(self, **_: Any) -> None:
        """Nothing is touched."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """There is nothing to remove."""
        return essence


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
    """A transport whose answers are counted, and whose writes are noted: their events say nothing new."""

    def __init__(self, transport: Transport, echoes: Echoes) -> None:
        self._transport, self._echoes = transport, echoes
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
        if request.body is not None and code < HTTPStatus.MULTIPLE_CHOICES:
            self._echoes.note(request, answer.body)
        return answer

    def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """The events of a watch; what writes have done is not told again."""
        return self._transport.stream(request)

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
    echoes = Echoes()
    transport = Counted(await open_transport(settings.kubeconfig), echoes)
    async with KubeClient(transport) as client, contextlib.AsyncExitStack() as stack:
        namespaces = settings.namespaces or (None,)
        index, probe = await asyncio.gather(load_index(client, namespaces), asyncio.to_thread(pack_probe))
        gc.freeze()  # what was loaded stays: the collector need not look through it again and again
        recollection = Recollection(since_s=client.now_s(), index=index)
        desk = Desk(client, recollection, echoes, lambda key: timed(operator.advance(key), metrics), settings.workers)
        metrics = Metrics(lambda: list(recollection.told.values()), lambda: (len(desk.queue), desk.queue.oldest_s))
        transport.metrics = metrics
        operator = Operator(
            client=client,
            settings=settings,
            probe=probe,
            recollection=recollection,
            clock=client.now_s,
            metrics=metrics,
            fetch=await stack.enter_async_context(open_scrapes()),
        )
        for namespace in namespaces:  # policies bind from the first pass on, not from their first event
            await desk.read_policies(namespace)
        if settings.metrics_port:
            server = metrics.serve(settings.metrics_port)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        works = [desk.queue.run()]
        works += [follow_closed(client, index, namespace, desk.see_ledger) for namespace in namespaces]
        works += [desk.keep_reading_policies(namespace) for namespace in namespaces]
        for namespace in namespaces:  # before the first pass: kopf's list of jobs has each looked at
            version = await recollection.finished.load(client, namespace)
            runs = Watch(client, Kind.JOB, namespace, JOB_LABEL, version=version)
            works.append(runs.follow(desk.see_run, partial(desk.see_runs, namespace)))
            version = await recollection.finished.load_pods(client, namespace)
            pods = Watch(client, Kind.POD, namespace, JOB_LABEL, version=version)
            works.append(pods.follow(desk.see_pod, desk.see_pods))
        desk.works = tuple(asyncio.create_task(work) for work in works)
        try:
            yield desk
        finally:
            for task in desk.works:
                task.cancel()
            await asyncio.gather(*desk.works, return_exceptions=True)


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run the operator until it is stopped, or until a part of it fails. StorePutBackError: start it anew."""
    async with open_desk(settings) as desk:
        watching = asyncio.create_task(
            kopf.operator(
                registry=build_registry(desk),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
                stop_flag=stop,
            )
        )
        try:
            ended, _ = await asyncio.wait((watching, *desk.works), return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


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
    except StorePutBackError as error:
        sys.exit(f"the API server's store was put back to an older state, so nothing is remembered any more: {error}")


if __name__ == "__main__":
    main()

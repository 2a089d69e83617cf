"""How does one request reach the API server, and as whom?

The only place that imports the Kubernetes client library. It gives connections, certificates, token refresh and exec
plugins; which requests are sent, and how often, is `client.py`'s answer.
"""

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, list_kube_config_contexts, load_incluster_config, load_kube_config
from pydantic_core import from_json
from yaml import YAMLError

from amdahl_loop import __version__
from amdahl_loop.adapters.kube.kinds import Object

USER_AGENT = f"amdahl-loop/{__version__}"
CONNECT_S = 5.0
ANSWER_S = 30.0
"""Longest wait for an answer: the server itself gives up a request after 60 s, and a list page takes far less."""
SILENCE_S = 150.0
"""Longest silence of a watch: the server marks its place about once a minute, however little happens."""
WHOLE = "application/json"
BARE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
BARE_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""What is asked for: whole objects, or their metadata alone."""

_UNPACKED = {"Accept-Encoding": "identity"}
"""The server would pack each page of a list, at more CPU time on both sides than the way within a cluster is worth."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class AccessError(ValueError):
    """There is no way into a cluster from here; the message names what was tried and the fix."""


class UnreachableError(Exception):
    """No answer: no connection, a broken one, or none in time. What was asked may or may not have been done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to the API server."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Object | None = None
    content_type: str = "application/json"
    accept: str = WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said: the HTTP status, the JSON body ({} where there is none) and Retry-After in seconds.

    `at_s` is the server's own clock, in whole seconds since the epoch; None where it does not tell.
    """

    status: int
    body: Object
    retry_after_s: float | None = None
    at_s: float | None = None


class Transport(Protocol):
    """Sends requests, one answer each."""

    async def send(self, request: Request) -> Answer:
        """Send it once. UnreachableError when there is no answer."""

    def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """The events of one watch. UnreachableError when there is no answer, or it breaks off."""

    async def close(self) -> None:
        """Close every connection."""


class KubeTransport:
    """The `Transport` over the Kubernetes client library."""

    def __init__(self, configuration: Configuration) -> None:
        # Left to itself the library asks the environment for each request, each time in two other threads.
        configuration.proxy = configuration.proxy or find_proxy(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        self._api: Any = ApiClient(configuration)
        self._api.user_agent = USER_AGENT
        self._timeout = aiohttp.ClientTimeout(total=ANSWER_S, connect=CONNECT_S)

    async def send(self, request: Request) -> Answer:
        """Send it once, as the user of the configuration."""
        try:
            response = await self._call(request, self._timeout)
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from error
        return Answer(
            status=response.status,
            body=_parse(content),
            retry_after_s=_parse_retry_after_s(response.headers.get("Retry-After")),
            at_s=_parse_date_s(response.headers.get("Date")),
        )

    async def stream(self, request: Request) -> AsyncGenerator[Object, None]:
        """The events of a watch until the server ends it; a refusal is one event `ERROR` with the server's `Status`."""
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
        response: Any = None
        try:
            response = (await self._call(request, timeout)).response
            if response.status != HTTPStatus.OK:
                yield {"type": "ERROR", "object": _parse(await response.read())}
                return
            async for line in response.content:  # up to 4 MiB, by the library's own buffer; an object has 1.5 at most
                yield _parse(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from error
        finally:
            if response is not None:
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()  # a farewell would outlive the loop that is being closed
                response.close()

    async def _call(self, request: Request, timeout: aiohttp.ClientTimeout) -> Any:
        """The library's response, not read yet. Our bodies are plain JSON: the library need not look through them."""
        method, url, headers, _, posted = await self._api.param_serialize(
            request.method,
            request.path,
            query_params=list(request.query),
            header_params={"Accept": request.accept, "Content-Type": request.content_type, **_UNPACKED},
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(method, url, headers, request.body, posted, _request_timeout=timeout)

    async def close(self) -> None:
        """Close every connection."""
        await self._api.close()


async def open_transport(
    kubeconfig: Path | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> KubeTransport:
    """The way in: the named kubeconfig, else the pod's own service account, else kubectl's own configuration.

    AccessError names the file and what is wrong with it.
    """
    configuration = Configuration()
    in_cluster = kubeconfig is None and "KUBERNETES_SERVICE_HOST" in environ
    source = "the pod's service account" if in_cluster else f"kubeconfig {kubeconfig or _default_kubeconfig(environ)}"
    try:
        if in_cluster:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # library
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]  # library
                config_file=str(kubeconfig or _default_kubeconfig(environ)),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except (ConfigException, OSError, YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise AccessError(f"{source}: {error}; name a file with --kubeconfig, or set KUBECONFIG") from error
    return KubeTransport(configuration)


def default_namespace(
    kubeconfig: Path | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> str:
    """The namespace that kubectl would take: the context's own, the pod's, else `default`; of a way in that opens."""
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in environ:
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip() if _POD_NAMESPACE.exists() else "default"
    file = str(kubeconfig or _default_kubeconfig(environ))
    contexts, current = list_kube_config_contexts(config_file=file)  # type: ignore[no-untyped-call]  # library
    chosen = next((known for known in contexts if known["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def find_proxy(server: str) -> str | None:
    """The proxy that the environment names for a server's address, by HTTPS_PROXY and NO_PROXY; None: there is none."""
    url = urlsplit(server)
    return None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)


def _default_kubeconfig(environ: Mapping[str, str]) -> str:
    """Where kubectl looks."""
    return environ.get("KUBECONFIG") or str(Path(environ.get("HOME", "/")) / ".kube/config")


def _parse(content: bytes) -> Object:
    """The body as JSON; what a proxy in between may have written instead becomes a message."""
    try:
        body = from_json(content) if content else {}
    except ValueError:
        return {"message": content[:500].decode(errors="replace")}
    return body if isinstance(body, dict) else {"message": str(body)[:500]}


def _parse_retry_after_s(text: str | None) -> float | None:
    """Seconds that the server asks to wait; it never sends a date."""
    return float(text) if text and text.isdecimal() else None


def _parse_date_s(text: str | None) -> float | None:
    """Seconds since the epoch; None where the server tells no time, or none that can be read."""
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None

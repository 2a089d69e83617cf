"""What is a server, and when is it ready?"""

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import processes
from testbed.pki import KeyPair


class StartError(Exception):
    """A server did not become ready; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Server:
    """One process to run: its name, its command, and how to see that it is ready."""

    name: str
    command: tuple[str | Path, ...]
    is_ready: Callable[[], bool]
    is_in_node: bool = False  # run through nsenter, whose child is the process that signals are meant for


def free_port() -> int:
    """A TCP port that nobody on loopback listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


def answers_ok(host: str, port: int, path: str, authority: Path | None, client: KeyPair | None = None) -> bool:
    """Whether a server answers 200 for a path: over HTTPS under this authority, or over plain HTTP where none is given."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    if authority is not None:
        context = ssl.create_default_context(cafile=str(authority))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(
    condition: Callable[[], bool], timeout_s: float, is_alive: Callable[[], bool], what: str, log: Path
) -> None:
    """Poll ten times a second.

    Raises:
        StartError: the process ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not is_alive():
            raise StartError(f"{what} ended before it was ready; its log {log} ends with:\n{processes.tail(log)}")
        if time.monotonic() > deadline:
            raise StartError(
                f"{what} was not ready after {timeout_s:.0f} s; its log {log} ends with:\n{processes.tail(log)}"
            )
        time.sleep(0.1)

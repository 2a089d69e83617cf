"""Who looks after a cluster's servers while nobody is at the keyboard?

The keeper is one process with one thread. It starts every server as its child, so that the kernel kills them when the keeper is killed. It ends the
cluster when its owner ends, when its time is over, or when it is told to; until then it sleeps, and takes orders on a socket: stop, kill or start
one server, for the tests of faults.

    python -m testbed.keeper STATE_FOLDER
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from testbed import control_plane, processes, teardown
from testbed.layout import Facts, Folder, Plan, read_plan, write_json
from testbed.servers import Server, StartError, wait_until

START_TIMEOUT_S = 90.0  # an API server is ready after 3 s on two idle cores; a busy machine may take many times that


class Told(Exception):  # noqa: N818 - an order to end, not an error
    """SIGTERM came: the cluster is to end."""


@dataclass
class Running:
    """A started server with the handle to reap it."""

    server: Server
    process: subprocess.Popen[bytes]


class Keeper:
    """The servers of one cluster, by name."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.running: dict[str, Running] = {}

    def start(self, server: Server) -> None:
        """Start a server and wait until it is ready.

        Raises:
            StartError: it did not become ready.
        """
        process = processes.spawn(server.command, self.folder.log(server.name))
        self.running[server.name] = Running(server, process)
        known = processes.identify(process.pid)
        if known is not None:
            write_json(self.folder.processes / f"{server.name}.json", known)
        wait_until(
            server.is_ready, START_TIMEOUT_S, lambda: process.poll() is None, server.name, self.folder.log(server.name)
        )

    def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server and wait until it has ended."""
        process = self.running[name].process
        process.send_signal(number)
        process.wait(START_TIMEOUT_S)
        (self.folder.processes / f"{name}.json").unlink(missing_ok=True)

    def start_again(self, name: str) -> None:
        """Start a server that has ended, with the command that it had."""
        running = self.running[name]
        if running.process.poll() is None:
            raise StartError(f"{name} runs already: stop it first")
        self.start(running.server)


def bring_up(keeper: Keeper) -> Facts:
    """Start everything in order; returns what then runs."""
    folder, plan = keeper.folder, keeper.plan
    addresses = control_plane.ALONE
    authority, url, port = control_plane.prepare(folder, addresses)
    store, etcd_port = control_plane.etcd(folder, plan, authority)
    keeper.start(store)
    keeper.start(control_plane.api_server(folder, plan, authority, addresses, (port, etcd_port)))
    itself = processes.identify(os.getpid())
    assert itself is not None
    return Facts(itself, plan.api_only, url, (), time.time() + plan.time_limit_s)


def serve(keeper: Keeper, orders: socket.socket) -> str:
    """Sleep until the cluster is to end; returns why."""
    deadline = time.monotonic() + keeper.plan.time_limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ, "order")
        if keeper.plan.owner is not None:
            descriptor = processes.open_pidfd(keeper.plan.owner)
            if descriptor is None:
                return "the process that started it has ended"
            selector.register(descriptor, selectors.EVENT_READ, "owner")
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data == "owner":
                    return "the process that started it has ended"
                take_order(keeper, orders)
    return "its time is over"


def take_order(keeper: Keeper, orders: socket.socket) -> None:
    """Answer one order: a JSON line `{"verb": "stop" | "kill" | "start", "server": NAME}`; the answer is `{"error": null | TEXT}`."""
    connection, _ = orders.accept()
    with connection, connection.makefile("rw") as stream:
        error = None
        try:
            order = json.loads(stream.readline())
            verbs = {
                "stop": lambda name: keeper.end(name, signal.SIGTERM),
                "kill": lambda name: keeper.end(name, signal.SIGKILL),
                "start": keeper.start_again,
            }
            verbs[order["verb"]](order["server"])
        except (KeyError, ValueError, StartError, subprocess.TimeoutExpired) as problem:
            error = f"{type(problem).__name__}: {problem}"
        with contextlib.suppress(OSError):  # the asker may have gone
            stream.write(json.dumps({"error": error}) + "\n")


def keep(folder: Folder) -> None:
    """The life of one cluster, from its plan to its removal."""
    signal.signal(signal.SIGTERM, _raise_told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the starter's terminal is the starter's business
    keeper = Keeper(folder, read_plan(folder))
    try:
        with socket.socket(socket.AF_UNIX) as orders:
            orders.bind(str(folder.control))
            orders.listen()
            write_json(folder.facts, bring_up(keeper))
            say(f"up; ending because {serve(keeper, orders)}")
    except Told:
        say("told to end")
    except Exception:
        # Whatever went wrong must reach the starter, who waits for one of two files.
        folder.failure.write_text(traceback.format_exc())
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        folder.facts.unlink(missing_ok=True)
        teardown.remove(folder)
        say("down")


def say(text: str) -> None:
    """One line into the keeper's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _raise_told(*_: object) -> NoReturn:
    raise Told


def main() -> None:
    """Detach from the starter, write down who keeps, and keep."""
    folder = Folder(Path(sys.argv[1]))
    child = os.fork()
    if child:
        known = processes.identify(child)
        if known is not None:
            write_json(folder.keeper, known)
        os._exit(0)
    os.setsid()
    keep(folder)


if __name__ == "__main__":
    main()

"""Who looks after a cluster's servers while nobody is at the keyboard?

The keeper is one process with one thread. It starts every server as its child, so that the kernel kills them when the keeper is killed. It ends the
cluster when its owner ends, when its time is over, or when it is told to; until then it sleeps, and takes orders on a socket: stop, kill or start
one server, cut a node off or join it again, for the tests of faults.

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
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from testbed import assembly, processes, teardown
from testbed.layout import Folder, read_plan, write_json
from testbed.running import Servers
from testbed.servers import StartError


class Told(Exception):  # noqa: N818 - an order to end, not an error
    """SIGTERM came: the cluster is to end."""


def keep(folder: Folder) -> None:
    """The life of one cluster, from its plan to its removal."""
    signal.signal(signal.SIGTERM, _raise_told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the starter's terminal is the starter's business
    plan = read_plan(folder)
    servers = Servers(folder)
    with contextlib.ExitStack() as at_end:
        try:
            orders = at_end.enter_context(socket.socket(socket.AF_UNIX))
            orders.bind(str(folder.control))
            orders.listen()
            cluster = assembly.assemble(folder, plan, servers, at_end)
            write_json(folder.facts, cluster.facts)
            say(f"up; ending because {serve(cluster, orders)}")
        except Told:
            say("told to end")
        except Exception:
            # Whatever went wrong must reach the starter, who waits for one of two files.
            folder.failure.write_text(traceback.format_exc())
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            folder.facts.unlink(missing_ok=True)
            teardown.end_processes(folder)
    teardown.remove_data(folder)
    say("down")


def serve(cluster: assembly.Cluster, orders: socket.socket) -> str:
    """Sleep until the cluster is to end; returns why."""
    deadline = time.monotonic() + cluster.plan.time_limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ, "order")
        if cluster.plan.owner is not None:
            descriptor = processes.open_pidfd(cluster.plan.owner)
            if descriptor is None:
                return "the process that started it has ended"
            selector.register(descriptor, selectors.EVENT_READ, "owner")
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data == "owner":
                    return "the process that started it has ended"
                take_order(cluster, orders)
    return "its time is over"


def take_order(cluster: assembly.Cluster, orders: socket.socket) -> None:
    """Answer one order: a JSON line `{"verb": VERB, "name": SERVER_OR_NODE}`; the answer is `{"error": null | TEXT}`."""
    verbs: dict[str, Callable[[str], None]] = {
        "stop": lambda name: cluster.servers.end(name, signal.SIGTERM),
        "kill": lambda name: cluster.servers.end(name, signal.SIGKILL),
        "start": cluster.start_again,
        "cut": cluster.cut,
        "join": cluster.join,
    }
    connection, _ = orders.accept()
    with connection, connection.makefile("rw") as stream:
        error = None
        try:
            order = json.loads(stream.readline())
            verbs[order["verb"]](order["name"])
        except (KeyError, ValueError, StartError, subprocess.SubprocessError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        with contextlib.suppress(OSError):  # the asker may have gone
            stream.write(json.dumps({"error": error}) + "\n")


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

"""Which servers of a cluster run as children of this process, and how are they started and ended one by one?"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from testbed import processes
from testbed.layout import Folder, write_json
from testbed.namespaces import Namespaces, first_child, holder_command
from testbed.servers import Server, StartError, wait_until

START_TIMEOUT_S = 180.0  # an API server is ready after 3 s on two idle cores; a busy machine may take many times that


@dataclass
class Running:
    """A started server with the handle to reap it."""

    server: Server
    process: subprocess.Popen[bytes]


class Servers:
    """The servers of one cluster, by name; call it from one thread only, for their lives hang on it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._running: dict[str, Running] = {}

    def start(self, server: Server) -> None:
        """Start a server and wait until it is ready.

        Raises:
            StartError: it did not become ready.
        """
        process = self._spawn(server)
        wait_until(
            server.is_ready, START_TIMEOUT_S, lambda: process.poll() is None, server.name, self._folder.log(server.name)
        )

    def hold(self, name: str, pause: Path, *, is_node: bool) -> Namespaces:
        """Make new namespaces, held by a process under this name until it is ended."""
        process = self._spawn(Server(name, holder_command(pause, is_node=is_node), lambda: True))

        def first() -> int | None:
            return first_child(process.pid) if is_node else process.pid

        def is_held() -> bool:
            pid = first()
            return pid is not None and Path(f"/proc/{pid}/comm").read_text().strip() == pause.name

        wait_until(is_held, START_TIMEOUT_S, lambda: process.poll() is None, name, self._folder.log(name))
        pid = first()
        assert pid is not None
        return Namespaces(pid)

    def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server and wait until it has ended.

        Raises:
            KeyError: there is no server of this name.
        """
        running = self._running[name]
        child = first_child(running.process.pid) if running.server.is_in_node else None
        if child is not None:
            os.kill(child, number)
        else:
            running.process.send_signal(number)
        running.process.wait(START_TIMEOUT_S)
        (self._folder.processes / f"{name}.json").unlink(missing_ok=True)

    def start_again(self, name: str) -> None:
        """Start a server that has ended, with the command that it had.

        Raises:
            KeyError: there was no server of this name.
            StartError: it runs, or did not become ready.
        """
        self.start(self._running[name].server)

    def _spawn(self, server: Server) -> subprocess.Popen[bytes]:
        before = self._running.get(server.name)
        if before is not None and before.process.poll() is None:
            raise StartError(f"{server.name} runs already: stop it first")
        process = processes.spawn(server.command, self._folder.log(server.name))
        self._running[server.name] = Running(server, process)
        known = processes.identify(process.pid)
        if known is not None:
            write_json(self._folder.processes / f"{server.name}.json", known)
        return process

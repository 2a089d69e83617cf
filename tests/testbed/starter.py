"""How is a cluster brought up, found, told things, and taken down?"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from testbed import packages, processes, teardown
from testbed.binaries import API_SERVER_BINARIES, CONTROLLER_BINARIES, NODE_BINARIES, binary
from testbed.layout import Facts, Folder, Plan, StateError, create_folder, read_facts, read_process, write_json
from testbed.namespaces import Namespaces, first_child
from testbed.servers import StartError

READY_TIMEOUT_S = 600.0  # the keeper bounds each step itself; this only ends a wait for a keeper that hangs
END_TIMEOUT_S = (
    180.0  # a keeper needs 2 s on an idle machine and 70 s on a starved one; then it is killed and its work done here
)
Verb = Literal["stop", "kill", "start", "cut", "join"]


def up(folder: Folder, plan: Plan) -> Facts:
    """Start a cluster and wait until all of it is ready.

    Raises:
        StateError: one is up already in this folder.
        StartError: it did not come up; what was started is gone again.
    """
    create_folder(folder)
    with _locked(folder):
        if status(folder) is not None:
            raise StateError(
                f"a cluster is up already in {folder.path}: take it down first (python -m testbed down), or give another folder by --state"
            )
        _end(folder)
        _empty(folder)
        if plan.nodes:
            packages.ensure()
        write_json(folder.plan, replace(plan, binaries={name: str(binary(name)) for name in _needed(plan)}))
        tests = str(Path(__file__).parents[1])
        with folder.log("keeper").open("ab") as log:
            command = [sys.executable, "-m", "testbed.keeper", str(folder.path)]
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": tests},
                check=True,
            )
        try:
            return _wait_ready(folder)
        except BaseException:
            _end(folder)
            raise


def down(folder: Folder) -> bool:
    """End the cluster of this folder and remove all it made; False when there was none. Logs stay."""
    if not folder.lock.exists():  # nothing was ever up here, and to lock it would claim somebody's folder
        return False
    with _locked(folder):
        return _end(folder)


def status(folder: Folder) -> Facts | None:
    """What runs in this folder; None when nothing does."""
    facts = read_facts(folder)
    return facts if facts is not None and processes.is_alive(facts.keeper) else None


def order(folder: Folder, verb: Verb, name: str) -> None:
    """Have the keeper stop (SIGTERM), kill (SIGKILL) or start a server or node, or cut or join a node; returns when that is done, or ready.

    Raises:
        StartError: the keeper could not do it; the message says why.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder.control))
        with connection.makefile("rw") as stream:
            stream.write(json.dumps({"verb": verb, "name": name}) + "\n")
            stream.flush()
            error = json.loads(stream.readline())["error"]
    if error is not None:
        raise StartError(f"{verb} {name}: {error}")


def namespaces_of(folder: Folder, node_name: str) -> Namespaces:
    """A running node's namespaces.

    Raises:
        StateError: the node does not run.
    """
    holder = read_process(folder.processes / f"{node_name}.json")
    pid = first_child(holder.pid) if holder is not None and processes.is_alive(holder) else None
    if pid is None:
        raise StateError(f"{node_name} does not run in {folder.path}")
    return Namespaces(pid)


def _needed(plan: Plan) -> list[str]:
    return [
        *API_SERVER_BINARIES,
        *(() if plan.api_only else CONTROLLER_BINARIES),
        *(NODE_BINARIES if plan.nodes else ()),
    ]


def _wait_ready(folder: Folder) -> Facts:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        facts = read_facts(folder)
        if facts is not None:
            return facts
        keeper = read_process(folder.keeper)
        if folder.failure.exists() or keeper is None or not processes.is_alive(keeper):
            why = folder.failure.read_text() if folder.failure.exists() else processes.tail(folder.log("keeper"))
            raise StartError(f"the cluster did not come up; logs are in {folder.logs}\n{why}")
        time.sleep(0.05)
    raise StartError(f"the cluster was not ready after {READY_TIMEOUT_S:.0f} s; logs are in {folder.logs}")


def _end(folder: Folder) -> bool:
    """Tell the keeper to end and wait; where it is gone or does not end, clean up in its place."""
    keeper = read_process(folder.keeper)
    was_up = keeper is not None and processes.is_alive(keeper)
    if keeper is not None:
        processes.stop(keeper, grace_s=END_TIMEOUT_S)
        folder.keeper.unlink()
    folder.facts.unlink(missing_ok=True)
    teardown.remove_all(folder)
    return was_up


def _empty(folder: Folder) -> None:
    """Remove what the last cluster left to read."""
    for entry in folder.path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != folder.lock:
            entry.unlink()
    create_folder(folder)


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""What was asked for, and where does everything of one cluster lie?

`Plan` is written by whoever starts a cluster and read by its keeper; `Facts` is written by the keeper when all is ready and read by everybody.
Both are JSON files in the state folder.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed.processes import Process

# A unix socket's path may hold 107 bytes; ours adds "/control.sock".
LONGEST_FOLDER = 90
MOST_NODES = 32


class StateError(Exception):
    """The state folder does not allow what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What to start, and until when."""

    api_only: bool
    nodes: int
    time_limit_s: float
    owner: Process | None  # when it ends, the cluster ends; None for a cluster that only its time limit ends
    binaries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be brought up."""
        if not 0 <= self.nodes <= MOST_NODES:
            raise StateError(f"nodes is {self.nodes}: give 0 (controllers only) to {MOST_NODES}")
        if self.time_limit_s <= 0:
            raise StateError(f"the time limit is {self.time_limit_s:g} s: give more than 0 hours")


@dataclass(frozen=True)
class Facts:
    """What runs."""

    keeper: Process
    api_only: bool
    server: str  # https://address:port
    machine: str  # this machine's address, as the API server and pods see it
    node_names: tuple[str, ...]
    ends_at: float  # Unix time, s


@dataclass(frozen=True)
class Folder:
    """The state folder of one cluster, by the names of its files."""

    path: Path

    @property
    def plan(self) -> Path:
        """The `Plan`."""
        return self.path / "plan.json"

    @property
    def facts(self) -> Path:
        """The `Facts`; there only while everything is ready."""
        return self.path / "facts.json"

    @property
    def keeper(self) -> Path:
        """The keeper's `Process`."""
        return self.path / "keeper.json"

    @property
    def failure(self) -> Path:
        """Why the start failed, in one text."""
        return self.path / "failure.txt"

    @property
    def control(self) -> Path:
        """The socket on which the keeper takes orders."""
        return self.path / "control.sock"

    @property
    def lock(self) -> Path:
        """Held while somebody starts or stops this cluster; its presence says that the folder is the testbed's."""
        return self.path / "testbed.lock"

    @property
    def logs(self) -> Path:
        """One log per server, and the keeper's own."""
        return self.path / "logs"

    @property
    def pki(self) -> Path:
        """The cluster's authority and what it signed."""
        return self.path / "pki"

    @property
    def processes(self) -> Path:
        """One `Process` per running server, `NAME.json`."""
        return self.path / "processes"

    @property
    def users(self) -> Path:
        """Kubeconfig files made for tests' users."""
        return self.path / "users"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.path / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one JSON event per line, every request at level Metadata."""
        return self.path / "audit.log"

    @property
    def etcd(self) -> Path:
        """The data of etcd."""
        return self.path / "etcd"

    @property
    def nodes(self) -> Path:
        """One folder per node: its configuration, images, pods and their logs."""
        return self.path / "nodes"

    @property
    def images(self) -> Path:
        """OCI layouts made for this cluster."""
        return self.path / "images"

    @property
    def slot(self) -> Path:
        """The number of the cluster's slot, while it holds one."""
        return self.path / "slot"

    def log(self, name: str) -> Path:
        """The log of one server."""
        return self.logs / f"{name}.log"


def default_folder() -> Folder:
    """Where `python -m testbed up` keeps its cluster: `$XDG_STATE_HOME/amdahl-loop/testbed`."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Folder(home / "amdahl-loop" / "testbed")


def create_folder(folder: Folder) -> None:
    """Make the folders that everything else writes into.

    Raises:
        StateError: the folder is somebody else's, or its path is too long for the sockets below it.
    """
    if folder.path.exists() and not folder.lock.exists() and any(folder.path.iterdir()):
        raise StateError(
            f"state folder {folder.path} holds something else, and the testbed empties its folder: give an empty or new one by --state"
        )
    if len(bytes(folder.path)) > LONGEST_FOLDER:
        raise StateError(
            f"state folder {folder.path} is too long for the sockets in it (at most {LONGEST_FOLDER} bytes): give a shorter one by --state"
        )
    for path in (folder.path, folder.logs, folder.processes, folder.users, folder.images):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_json(path: Path, value: Plan | Facts | Process) -> None:
    """Write a value so that a reader finds the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(dataclasses.asdict(value)))
    beside.replace(path)


def read_plan(folder: Folder) -> Plan:
    """The plan that the starter wrote."""
    known = json.loads(folder.plan.read_text())
    return Plan(**known | {"owner": Process(**known["owner"]) if known["owner"] else None})


def read_facts(folder: Folder) -> Facts | None:
    """What runs; None while nothing is ready."""
    try:
        known = json.loads(folder.facts.read_text())
    except FileNotFoundError:
        return None
    return Facts(**known | {"keeper": Process(**known["keeper"]), "node_names": tuple(known["node_names"])})


def read_process(path: Path) -> Process | None:
    """A recorded process; None where none is recorded."""
    try:
        return Process(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None

"""How do several clusters share a machine? Each holds a slot: a number from which follow its address range, its interface and its cgroup.

The lock of a slot is held by the keeper, so a slot whose keeper was killed is free again, and whoever takes it first removes what was left in it.
"""

import contextlib
import fcntl
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed import cgroups

LOCKS = Path("/run/lock")
SLOTS = range(8)


class NoSlotError(Exception):
    """Every slot is taken, or its addresses are in use by something else."""


@dataclass(frozen=True)
class Slot:
    """One cluster's share of the machine: 10.(200 + number).0.0/16 and names that hold the number."""

    number: int

    @property
    def network(self) -> str:
        """Everything below, CIDR."""
        return f"10.{200 + self.number}.0.0/16"

    @property
    def machine(self) -> str:
        """The machine itself, as the cluster sees it."""
        return f"10.{200 + self.number}.0.1"

    @property
    def control_plane(self) -> str:
        """The API server and the cluster's DNS."""
        return f"10.{200 + self.number}.0.2"

    def node(self, index: int) -> str:
        """A node's address; the first node has index 1."""
        return f"10.{200 + self.number}.0.{10 + index}"

    def pods_of(self, index: int) -> str:
        """A node's pods, CIDR."""
        return f"10.{200 + self.number}.{64 + index}.0/24"

    @property
    def pods(self) -> str:
        """All pods, CIDR."""
        return f"10.{200 + self.number}.64.0/18"

    @property
    def services(self) -> str:
        """Cluster IPs, CIDR."""
        return f"10.{200 + self.number}.128.0/20"

    @property
    def first_service(self) -> str:
        """The cluster IP of `kubernetes.default`."""
        return f"10.{200 + self.number}.128.1"

    @property
    def interface(self) -> str:
        """The one interface that the cluster adds to the machine."""
        return f"amdahl{self.number}"

    @property
    def cgroup(self) -> str:
        """Where all its pods stand."""
        return f"amdahl-testbed-{self.number}"


@contextlib.contextmanager
def held() -> Iterator[Slot]:
    """Take the first free slot, clean; give it back, clean.

    Raises:
        NoSlotError: there is none.
    """
    for slot in map(Slot, SLOTS):
        with _lock(slot) as is_ours:
            if not is_ours:
                continue
            clear(slot)
            if _is_range_in_use(slot):
                continue
            try:
                yield slot
            finally:
                clear(slot)
            return
    raise NoSlotError(
        f"no free address range for a cluster: {len(SLOTS)} are up, or 10.200.0.0/16 and the next {len(SLOTS) - 1} have routes already"
    )


def clear_if_free(slot: Slot) -> None:
    """Remove what a killed keeper left in its slot, unless another has it by now."""
    with _lock(slot) as is_ours:
        if is_ours:
            clear(slot)


def clear(slot: Slot) -> None:
    """Remove the slot's interface, and with it its routes, and its cgroups."""
    if Path(f"/sys/class/net/{slot.interface}").exists():
        # Its other end goes with the cluster's network namespace, so it may vanish on its own between the two lines.
        subprocess.run(["ip", "link", "delete", slot.interface], check=False, capture_output=True)
    cgroups.remove(slot.cgroup)


@contextlib.contextmanager
def _lock(slot: Slot) -> Iterator[bool]:
    with (LOCKS / slot.cgroup).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _is_range_in_use(slot: Slot) -> bool:
    """Whether the machine has a route, other than the default one, into the slot's range."""
    routes = json.loads(
        subprocess.run(
            ["ip", "-json", "-4", "route", "show", "table", "all"], check=True, capture_output=True, text=True
        ).stdout
    )
    ours = ipaddress.ip_network(slot.network)
    return any(
        ipaddress.ip_network(route["dst"], strict=False).overlaps(ours) for route in routes if route["dst"] != "default"
    )

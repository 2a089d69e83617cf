"""In which order does a cluster come up?

etcd, API server; then controller manager and scheduler; with nodes the fabric goes before all of them, and DNS and the nodes come last.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from testbed import access, control_plane, network, node, pki, processes, slots
from testbed.control_plane import Site
from testbed.images import write_layout
from testbed.layout import Facts, Folder, Plan
from testbed.namespaces import Namespaces
from testbed.node import Node
from testbed.running import Servers
from testbed.slots import Slot


@dataclass
class Cluster:
    """What has been started, and what it takes to start parts of it again."""

    folder: Folder
    plan: Plan
    servers: Servers
    site: Site
    authority: pki.Authority
    slot: Slot | None
    nodes: dict[str, Node] = field(default_factory=dict)

    @property
    def admin(self) -> access.Access:
        """The administrator's access."""
        return access.Access(self.folder.kubeconfig, Path(self.plan.binaries["kubectl"]))

    @property
    def facts(self) -> Facts:
        """What runs, for everybody to read."""
        itself = processes.identify(os.getpid())
        assert itself is not None
        machine = control_plane.LOOPBACK if self.slot is None else self.slot.machine
        return Facts(
            itself, self.plan.api_only, self.site.url, machine, tuple(self.nodes), time.time() + self.plan.time_limit_s
        )

    def start_again(self, name: str) -> None:
        """Start a server, or a whole node, that was ended."""
        if name in self.nodes:
            start_node(self, self.nodes[name])
        else:
            self.servers.start_again(name)

    def cut(self, name: str) -> None:
        """Pull a node's network cable; its pods run on, unseen."""
        self._fabric.run("ip", "link", "set", network.cable_of(self.nodes[name].index), "down", network_only=True)

    def join(self, name: str) -> None:
        """Plug the cable in again."""
        self._fabric.run("ip", "link", "set", network.cable_of(self.nodes[name].index), "up", network_only=True)

    @property
    def _fabric(self) -> Namespaces:
        assert self.site.fabric is not None
        return self.site.fabric


def assemble(folder: Folder, plan: Plan, servers: Servers, at_end: contextlib.ExitStack) -> Cluster:
    """Start everything that the plan asks for; `at_end` gives the machine's share back."""
    slot, site = None, control_plane.on_loopback()
    if plan.nodes:
        slot = at_end.enter_context(slots.held())
        folder.slot.write_text(str(slot.number))
        fabric = servers.hold("fabric", Path(plan.binaries["pause"]), is_node=False)
        network.wire_fabric(slot, fabric, plan.nodes)
        site = control_plane.in_fabric(slot, fabric)
    cluster = Cluster(folder, plan, servers, site, control_plane.prepare(folder, site), slot)
    servers.start(control_plane.etcd(folder, plan, cluster.authority, site))
    servers.start(control_plane.api_server(folder, plan, cluster.authority, site))
    if not plan.api_only:
        servers.start(control_plane.controller_manager(folder, plan, cluster.authority, site))
        servers.start(control_plane.scheduler(folder, plan, cluster.authority, site))
    if slot is not None:
        servers.start(control_plane.dns(folder, plan, site, cluster.admin))
        write_layout(node.pause_image(plan), folder.images / "pause")
        for one in node.nodes_of(folder, slot, plan.nodes):
            cluster.nodes[one.name] = one
            node.write_files(one, cluster.authority, site.url)
            start_node(cluster, one)
    return cluster


def start_node(cluster: Cluster, one: Node) -> None:
    """Switch a node on, for the first time or again after it was killed."""
    servers, plan = cluster.servers, cluster.plan
    assert cluster.site.fabric is not None
    inside = servers.hold(one.name, Path(plan.binaries["pause"]), is_node=True)
    network.wire_node(one.slot, cluster.site.fabric, inside, one.index, plan.nodes)
    node.prepare(one, inside)
    servers.start(node.containerd(one, inside))
    node.import_image(cluster.folder.images / "pause", inside)
    servers.start(node.kube_proxy(one, plan, inside))
    servers.start(node.kubelet(one, plan, inside, cluster.admin))

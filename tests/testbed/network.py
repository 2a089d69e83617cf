"""How are machine, control plane and nodes wired?

One network namespace, the fabric, holds a bridge with an address for the control plane. The machine and every node hang on it by one cable (a veth
pair) each. The machine gets one interface, three routes and no firewall rule; nothing has a way to the outside. All of it goes with the fabric.
"""

from testbed.namespaces import Namespaces, run
from testbed.slots import Slot

BRIDGE = "fabric"
# Where services are reached from the machine: the first node's kube-proxy answers for them.
GATEWAY_NODE = 1


def wire_fabric(slot: Slot, fabric: Namespaces, node_count: int) -> None:
    """Build the bridge and plug the machine in."""
    inside = ("nsenter", "--target", str(fabric.pid), "--net", "ip")
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "link", "add", BRIDGE, "type", "bridge"])
    run([*inside, "address", "add", f"{slot.control_plane}/24", "dev", BRIDGE])
    run([*inside, "link", "set", BRIDGE, "up"])
    run(["ip", "link", "add", slot.interface, "type", "veth", "peer", "name", "machine", "netns", str(fabric.pid)])
    run([*inside, "link", "set", "machine", "master", BRIDGE, "up"])
    run(["ip", "address", "add", f"{slot.machine}/24", "dev", slot.interface])
    run(["ip", "link", "set", slot.interface, "up"])
    for route in _routes(slot, node_count, but=None):
        run(["ip", "route", "add", *route])
        run([*inside, "route", "add", *route])


def wire_node(slot: Slot, fabric: Namespaces, node: Namespaces, index: int, node_count: int) -> None:
    """Plug a node in and tell it where the others' pods are."""
    cable = cable_of(index)
    in_fabric = ("nsenter", "--target", str(fabric.pid), "--net", "ip")
    run([*in_fabric, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid)])
    run([*in_fabric, "link", "set", cable, "master", BRIDGE, "up"])
    node.run("ip", "link", "set", "lo", "up")
    node.run("ip", "address", "add", f"{slot.node(index)}/24", "dev", "eth0")
    node.run("ip", "link", "set", "eth0", "up")
    for route in _routes(slot, node_count, but=index):
        node.run("ip", "route", "add", *route)
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")


def cable_of(index: int) -> str:
    """The fabric's end of a node's cable: taken down, the node is cut off."""
    return f"node-{index}"


def _routes(slot: Slot, node_count: int, but: int | None) -> list[tuple[str, str, str]]:
    """Pods by their node; cluster IPs by the first node, except on nodes, which answer for them themselves."""
    routes = [(slot.pods_of(index), "via", slot.node(index)) for index in range(1, node_count + 1) if index != but]
    return routes if but else [*routes, (slot.services, "via", slot.node(GATEWAY_NODE))]

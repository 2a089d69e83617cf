"""What is a node? Namespaces of its own with a containerd, a kubelet and a kube-proxy in them, all at their usual paths below /run.

A node's folder on the machine (`nodes/NAME` in the state folder) appears inside as /run/node; images and pod logs therefore outlive a node that is
killed and started again, as they would on a real one.
"""

import contextlib
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import access, cgroups, pki
from testbed.control_plane import CLUSTER_DOMAIN
from testbed.images import Entry, Image, ImageError, write_archive
from testbed.layout import Folder, Plan
from testbed.namespaces import Namespaces
from testbed.packages import cni_plugins
from testbed.servers import Server
from testbed.slots import Slot

INSIDE = Path("/run/node")
SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "docker.io/amdahl-testbed/pause:1"

# A kubelet sets these for the whole machine. Inside a node they read as set already, so it leaves the machine's own as they are.
KERNEL_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True)
class Node:
    """One node of one cluster."""

    name: str
    index: int  # from 1
    slot: Slot
    folder: Path  # on the machine

    @property
    def address(self) -> str:
        """Where its kubelet answers."""
        return self.slot.node(self.index)

    @property
    def cgroup(self) -> str:
        """Where its pods stand."""
        return f"{self.slot.cgroup}/{self.name}"


def nodes_of(folder: Folder, slot: Slot, count: int) -> list[Node]:
    """All nodes of a cluster, `node-1` first."""
    return [Node(f"node-{index}", index, slot, folder.nodes / f"node-{index}") for index in range(1, count + 1)]


def write_files(node: Node, authority: pki.Authority, server: str) -> None:
    """Everything that the node's servers read: certificates, kubeconfigs and configurations."""
    for part in ("log", "kubelet", "containerd", "cni", "tunables"):
        (node.folder / part).mkdir(parents=True, exist_ok=True)
    certificate = authority.sign_server(f"kubelet-{node.name}", [f"IP:{node.address}", f"DNS:{node.name}"])
    users = {
        "kubelet": (f"system:node:{node.name}", ["system:nodes"]),
        "kube-proxy": ("system:kube-proxy", []),
    }
    for file, (user, groups) in users.items():
        client = authority.sign_client(f"{file}-{node.name}-client", user, groups)
        access.write_kubeconfig(
            node.folder / f"{file}.kubeconfig",
            server,
            authority.certificate,
            user,
            access.certificate_credentials(client),
        )
    (node.folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (node.folder / "kubelet.crt").write_bytes(certificate.certificate.read_bytes())
    (node.folder / "kubelet.key").write_bytes(certificate.key.read_bytes())
    (node.folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_configuration(node)))
    (node.folder / "containerd.toml").write_text(_containerd_configuration())
    (node.folder / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(node)))
    (node.folder / "resolv.conf").write_text(f"nameserver {node.slot.control_plane}\n")
    for name, value in KERNEL_TUNABLES.items():
        (node.folder / "tunables" / name.replace("/", ".")).write_text(value)


def prepare(node: Node, inside: Namespaces) -> None:
    """Lay out the node's own file system and cgroup; its network is wired already."""
    cgroups.create(node.cgroup)
    inside.run("hostname", node.name)
    inside.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    inside.run("mkdir", "-p", INSIDE, "/run/lock", "/run/var", "/run/var-work")
    inside.run("mount", "--bind", node.folder, INSIDE)
    # What its servers write to fixed places below /var stays in the node.
    inside.run("mount", "-t", "overlay", "var", "-o", "lowerdir=/var,upperdir=/run/var,workdir=/run/var-work", "/var")
    inside.run("mount", "--bind", INSIDE / "log", "/var/log")
    for name in KERNEL_TUNABLES:
        inside.run("mount", "--bind", INSIDE / "tunables" / name.replace("/", "."), f"/proc/sys/{name}")
    # Pods may ask for mounts that follow the node's; nothing reaches the machine, whose mounts these are copies of.
    inside.run("mount", "--make-rshared", "/")


def containerd(node: Node, inside: Namespaces) -> Server:
    """The container runtime, ready when it answers."""
    command = inside.command("containerd", "--config", INSIDE / "containerd.toml")
    return Server(f"{node.name}.containerd", command, functools.partial(_answers, inside), is_in_node=True)


def kubelet(node: Node, plan: Plan, inside: Namespaces, admin: access.Access) -> Server:
    """The node agent, ready when its node is."""
    command = inside.command(
        plan.binaries["kubelet"],
        f"--config={INSIDE / 'kubelet.yaml'}",
        f"--kubeconfig={INSIDE / 'kubelet.kubeconfig'}",
        f"--root-dir={INSIDE / 'kubelet'}",
        f"--cert-dir={INSIDE / 'kubelet' / 'pki'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        "--v=1",
    )
    return Server(f"{node.name}.kubelet", command, functools.partial(_is_node_ready, node.name, admin), is_in_node=True)


def kube_proxy(node: Node, plan: Plan, inside: Namespaces) -> Server:
    """The node's share of service addresses, by iptables rules in its own network namespace."""
    command = inside.command(
        plan.binaries["kube-proxy"],
        "--proxy-mode=iptables",
        f"--kubeconfig={INSIDE / 'kube-proxy.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--bind-address={node.address}",
        f"--cluster-cidr={node.slot.pods}",
        # Connection tracking limits belong to the machine's own namespace and are read-only in this one.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    )
    return Server(f"{node.name}.kube-proxy", command, lambda: True, is_in_node=True)


def _answers(inside: Namespaces) -> bool:
    try:
        inside.run("ctr", "--address", SOCKET, "version")
    except subprocess.CalledProcessError:
        return False
    return True


def _is_node_ready(name: str, admin: access.Access) -> bool:
    reply = admin.get(f"/api/v1/nodes/{name}")
    if reply.status != 200:
        return False
    conditions = reply.body.get("status", {}).get("conditions", [])
    # The controller manager takes the taints of a new node away a moment after it is ready.
    is_tainted = bool(reply.body.get("spec", {}).get("taints"))
    return not is_tainted and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def _kubelet_configuration(node: Node) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(INSIDE / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(INSIDE / "kubelet.crt"),
        "tlsPrivateKeyFile": str(INSIDE / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "clusterDNS": [node.slot.control_plane],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(INSIDE / "resolv.conf"),
        "volumePluginDir": str(INSIDE / "kubelet" / "plugins"),
        # There is no registry to pull an image from again, so none is ever collected, and a fairly full disk is no reason to evict.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.inodesFree": "1%",
        },
        # A lost node is noticed within half a minute rather than within minutes.
        "nodeLeaseDurationSeconds": 12,
        "nodeStatusUpdateFrequency": "4s",
    }


def _pod_network(node: Node) -> dict[str, Any]:
    """Each pod on a cable of its own to the node (`ptp`): its traffic is routed, never bridged, so service rules see all of it."""
    ranges = [[{"subnet": node.slot.pods_of(node.index)}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _containerd_configuration() -> str:
    return f"""version = 2
root = "{INSIDE}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Without it runc dies with "can't get final child's PID from pipe" where it may not lower an OOM score.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_plugins()}"
conf_dir = "{INSIDE}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def import_image(layout: Path, inside: Namespaces) -> None:
    """Load an OCI layout into the node's containerd.

    Raises:
        ImageError: containerd refused it; the message holds its words.
    """
    command = inside.command("ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "import", "-")
    with subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as ctr:
        assert ctr.stdin is not None
        assert ctr.stderr is not None
        with contextlib.suppress(BrokenPipeError):  # it says why on stderr
            write_archive(layout, ctr.stdin)
            ctr.stdin.close()
        refusal = ctr.stderr.read().decode(errors="replace").strip()
    if ctr.returncode:
        raise ImageError(f"containerd did not take {layout}: {refusal}")


def pause_image(plan: Plan) -> Image:
    """What holds each pod's namespaces."""
    return Image(PAUSE_IMAGE, ((Entry(Path(plan.binaries["pause"]), "/pause"),),), entrypoint=("/pause",))

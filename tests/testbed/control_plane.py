"""With which flags do etcd, the API server, the controller manager, the scheduler and the cluster's DNS run?

Everything speaks TLS under the cluster's own authority. Without nodes all listen on loopback, on ports that were free; with nodes they live in the
fabric's network namespace, at its address and at their usual ports.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import access, pki
from testbed.layout import Folder, Plan
from testbed.namespaces import Namespaces
from testbed.servers import Server, answers_ok, free_port
from testbed.slots import Slot

LOOPBACK = "127.0.0.1"
ADMIN = "kubernetes-admin"
# Bound to cluster-admin by the API server itself, so that the first user needs no binding.
ADMIN_GROUP = "system:masters"
DNS_USER = "system:coredns"
CLUSTER_DOMAIN = "cluster.local"
DNS_READY_PORT = 8181

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Ports:
    """Who listens where."""

    api: int
    etcd: int
    etcd_peers: int
    controllers: int
    scheduler: int


@dataclass(frozen=True)
class Site:
    """Where a control plane lives, and which addresses it hands out."""

    host: str
    ports: Ports
    services: str  # CIDR
    pods: str  # CIDR
    first_service: str  # the cluster IP of `kubernetes.default`
    fabric: Namespaces | None

    @property
    def url(self) -> str:
        """The API server's."""
        return f"https://{self.host}:{self.ports.api}"

    def command(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        """A command line that runs where the control plane lives."""
        return arguments if self.fabric is None else self.fabric.command(*arguments, network_only=True)


def on_loopback() -> Site:
    """Without nodes: on this machine's loopback."""
    ports = Ports(*(free_port() for _ in range(5)))
    return Site(LOOPBACK, ports, "10.96.0.0/16", "10.97.0.0/16", "10.96.0.1", None)


def in_fabric(slot: Slot, fabric: Namespaces) -> Site:
    """With nodes: on the fabric."""
    ports = Ports(api=6443, etcd=2379, etcd_peers=2380, controllers=10257, scheduler=10259)
    return Site(slot.control_plane, ports, slot.services, slot.pods, slot.first_service, fabric)


def prepare(folder: Folder, site: Site) -> pki.Authority:
    """Make keys, certificates, the audit policy and the kubeconfig files of the administrator and the control plane; returns the authority."""
    authority = pki.create_authority(folder.pki)
    names = [f"IP:{address}" for address in sorted({LOOPBACK, site.host, site.first_service})]
    kubernetes = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
    )
    authority.sign_server("apiserver", [*names, *(f"DNS:{name}" for name in ("localhost", *kubernetes))])
    for server in ("etcd", "controllers", "scheduler"):
        authority.sign_server(server, [f"IP:{site.host}", "DNS:localhost"])
    authority.sign_client("apiserver-etcd", "apiserver")
    authority.sign_client("apiserver-kubelet", "apiserver-kubelet", [ADMIN_GROUP])
    pki.create_signing_key(folder.pki / "service-accounts")
    (folder.path / "audit-policy.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
    for path, user, groups in (
        (folder.kubeconfig, ADMIN, [ADMIN_GROUP]),
        (folder.pki / "controllers.kubeconfig", "system:kube-controller-manager", []),
        (folder.pki / "scheduler.kubeconfig", "system:kube-scheduler", []),
        (folder.pki / "dns.kubeconfig", DNS_USER, []),
    ):
        client = authority.sign_client(f"{path.stem}-client", user, groups)
        access.write_kubeconfig(path, site.url, authority.certificate, user, access.certificate_credentials(client))
    return authority


def etcd(folder: Folder, plan: Plan, authority: pki.Authority, site: Site) -> Server:
    """The store. It never syncs to disk: a killed process loses nothing, only a killed machine would."""
    pair = _pair(folder, "etcd")
    url, peer_url = f"https://{site.host}:{site.ports.etcd}", f"https://{site.host}:{site.ports.etcd_peers}"
    command = site.command(
        plan.binaries["etcd"],
        f"--data-dir={folder.etcd}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        f"--cert-file={pair.certificate}",
        f"--key-file={pair.key}",
        f"--trusted-ca-file={authority.certificate}",
        "--client-cert-auth",
        f"--peer-cert-file={pair.certificate}",
        f"--peer-key-file={pair.key}",
        f"--peer-trusted-ca-file={authority.certificate}",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=8589934592",  # 8 GiB: the scale benchmarks pass the default of 2 GiB
        "--log-level=warn",
    )
    ready = functools.partial(answers_ok, site.host, site.ports.etcd, "/health", authority.certificate, pair)
    return Server("etcd", command, ready)


def api_server(folder: Folder, plan: Plan, authority: pki.Authority, site: Site) -> Server:
    """The API server, with the audit log on."""
    command = site.command(
        plan.binaries["kube-apiserver"],
        f"--bind-address={site.host}",
        f"--advertise-address={site.host}",
        f"--secure-port={site.ports.api}",
        f"--tls-cert-file={folder.pki / 'apiserver.crt'}",
        f"--tls-private-key-file={folder.pki / 'apiserver.key'}",
        f"--client-ca-file={authority.certificate}",
        f"--etcd-servers=https://{site.host}:{site.ports.etcd}",
        f"--etcd-cafile={authority.certificate}",
        f"--etcd-certfile={folder.pki / 'apiserver-etcd.crt'}",
        f"--etcd-keyfile={folder.pki / 'apiserver-etcd.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={folder.pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={folder.pki / 'service-accounts.key'}",
        f"--service-cluster-ip-range={site.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",  # the server refuses nothing here: what must be refused is refused by our own policies
        f"--kubelet-certificate-authority={authority.certificate}",
        f"--kubelet-client-certificate={folder.pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={folder.pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",  # else `kubectl logs` looks a node's name up
        f"--audit-policy-file={folder.path / 'audit-policy.yaml'}",
        f"--audit-log-path={folder.audit_log}",
        "--audit-log-maxsize=8192",  # MB: one file for a whole suite, so that nothing is rotated away before it is compared
        # Pods leave a lost node after half a minute, not after five: as their users may set it on each pod.
        "--default-not-ready-toleration-seconds=30",
        "--default-unreachable-toleration-seconds=30",
        "--shutdown-delay-duration=0s",
        "--v=1",
        # Where no node follows the `kubernetes` service, a loopback address may not stand in its endpoints.
        *(["--endpoint-reconciler-type=none"] if site.fabric is None else []),
    )
    admin = _pair(folder, "kubeconfig-client")
    ready = functools.partial(answers_ok, site.host, site.ports.api, "/readyz", authority.certificate, admin)
    return Server("kube-apiserver", command, ready)


def controller_manager(folder: Folder, plan: Plan, authority: pki.Authority, site: Site) -> Server:
    """All controllers but the one that hands out pod ranges to nodes: ours have theirs already."""
    serving = _pair(folder, "controllers")
    command = site.command(
        plan.binaries["kube-controller-manager"],
        f"--kubeconfig={folder.pki / 'controllers.kubeconfig'}",
        f"--bind-address={site.host}",
        f"--secure-port={site.ports.controllers}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        "--controllers=*,-node-ipam-controller",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={folder.pki / 'service-accounts.key'}",
        f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=20s",  # five missed leases of a kubelet of ours
    )
    ready = functools.partial(answers_ok, site.host, site.ports.controllers, "/healthz", authority.certificate)
    return Server("kube-controller-manager", command, ready)


def scheduler(folder: Folder, plan: Plan, authority: pki.Authority, site: Site) -> Server:
    """The stock scheduler."""
    serving = _pair(folder, "scheduler")
    command = site.command(
        plan.binaries["kube-scheduler"],
        f"--kubeconfig={folder.pki / 'scheduler.kubeconfig'}",
        f"--bind-address={site.host}",
        f"--secure-port={site.ports.scheduler}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        "--leader-elect=false",
    )
    ready = functools.partial(answers_ok, site.host, site.ports.scheduler, "/readyz", authority.certificate)
    return Server("kube-scheduler", command, ready)


def dns(folder: Folder, plan: Plan, site: Site, admin: access.Access) -> Server:
    """Names of services and of the pods behind headless ones; nothing of the outside world."""
    for path, rights in _dns_rights().items():
        reply = admin.post(path, rights)
        assert reply.status in (201, 409), reply.message
    corefile = folder.path / "Corefile"
    corefile.write_text(
        f".:53 {{\n  bind {site.host}\n  ready {site.host}:{DNS_READY_PORT}\n  errors\n"
        f"  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{\n    kubeconfig {folder.pki / 'dns.kubeconfig'}\n    ttl 1\n  }}\n}}\n"
    )
    command = site.command(plan.binaries["coredns"], "-conf", corefile)
    return Server("coredns", command, functools.partial(answers_ok, site.host, DNS_READY_PORT, "/ready", None))


def _dns_rights() -> dict[str, dict[str, Any]]:
    """The rights to read what DNS answers from, by the path of the collection to create them in."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": DNS_USER}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DNS_USER}]
    return {
        f"{rbac}/clusterroles": {"metadata": {"name": DNS_USER}, "rules": rules},
        f"{rbac}/clusterrolebindings": {"metadata": {"name": DNS_USER}, "roleRef": role_ref, "subjects": subjects},
    }


def _pair(folder: Folder, file: str) -> pki.KeyPair:
    return pki.KeyPair(folder.pki / f"{file}.crt", folder.pki / f"{file}.key")

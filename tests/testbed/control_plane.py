"""With which flags do etcd, the API server, the controller manager and the scheduler run?

Everything speaks TLS under the cluster's own authority and listens on loopback, or, when there are nodes, the API server on the address of the
testbed's own bridge.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

from testbed import access, pki
from testbed.layout import Folder, Plan
from testbed.servers import Server, answers_ok, free_port

LOOPBACK = "127.0.0.1"
ADMIN = "kubernetes-admin"
# Bound to cluster-admin by the API server itself, so that the first user needs no binding.
ADMIN_GROUP = "system:masters"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Addresses:
    """Where the API server listens and which ranges services and pods get."""

    host: str
    services: str  # CIDR
    pods: str  # CIDR
    first_service: str  # the cluster IP of `kubernetes.default`


ALONE = Addresses(LOOPBACK, "10.96.0.0/16", "10.97.0.0/16", "10.96.0.1")


def prepare(folder: Folder, addresses: Addresses) -> tuple[pki.Authority, str, int]:
    """Make keys, certificates, the audit policy and the administrator's kubeconfig; returns the authority, the server's URL and its port."""
    authority = pki.create_authority(folder.pki)
    names = [f"IP:{address}" for address in {LOOPBACK, addresses.host, addresses.first_service}]
    names += [
        f"DNS:{name}"
        for name in (
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )
    ]
    authority.sign_server("apiserver", names)
    authority.sign_server("etcd", [f"IP:{LOOPBACK}", "DNS:localhost"])
    authority.sign_client("apiserver-etcd", "apiserver")
    authority.sign_client("apiserver-kubelet", "apiserver-kubelet", [ADMIN_GROUP])
    pki.create_signing_key(folder.pki / "service-accounts")
    (folder.path / "audit-policy.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
    admin = authority.sign_client("admin", ADMIN, [ADMIN_GROUP])
    port = free_port()
    url = f"https://{addresses.host}:{port}"
    access.write_kubeconfig(folder.kubeconfig, url, authority.certificate, ADMIN, access.certificate_credentials(admin))
    return authority, url, port


def etcd(folder: Folder, plan: Plan, authority: pki.Authority) -> tuple[Server, int]:
    """The store, and its port. It never syncs to disk: a killed process loses nothing, only a killed machine would."""
    port, peers = free_port(), free_port()
    pair = pki.KeyPair(authority.folder / "etcd.crt", authority.folder / "etcd.key")
    url, peer_url = f"https://{LOOPBACK}:{port}", f"https://{LOOPBACK}:{peers}"
    command: tuple[str | Path, ...] = (
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
    return Server(
        "etcd", command, functools.partial(answers_ok, LOOPBACK, port, "/health", authority.certificate, pair)
    ), port


def api_server(
    folder: Folder, plan: Plan, authority: pki.Authority, addresses: Addresses, ports: tuple[int, int]
) -> Server:
    """The API server; `ports` are its own and etcd's."""
    port, etcd_port = ports
    command: list[str | Path] = [
        plan.binaries["kube-apiserver"],
        f"--bind-address={addresses.host}",
        f"--advertise-address={addresses.host}",
        f"--secure-port={port}",
        f"--tls-cert-file={folder.pki / 'apiserver.crt'}",
        f"--tls-private-key-file={folder.pki / 'apiserver.key'}",
        f"--client-ca-file={authority.certificate}",
        f"--etcd-servers=https://{LOOPBACK}:{etcd_port}",
        f"--etcd-cafile={authority.certificate}",
        f"--etcd-certfile={folder.pki / 'apiserver-etcd.crt'}",
        f"--etcd-keyfile={folder.pki / 'apiserver-etcd.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={folder.pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={folder.pki / 'service-accounts.key'}",
        f"--service-cluster-ip-range={addresses.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",  # the server refuses nothing here: what must be refused is refused by our own policies
        f"--kubelet-certificate-authority={authority.certificate}",
        f"--kubelet-client-certificate={folder.pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={folder.pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={folder.path / 'audit-policy.yaml'}",
        f"--audit-log-path={folder.audit_log}",
        "--audit-log-maxsize=8192",  # MB: one file for a whole suite, so that nothing is rotated away before it is compared
        "--shutdown-delay-duration=0s",
        "--v=1",
    ]
    if plan.api_only:
        # Without nodes nothing follows the `kubernetes` service, and a loopback address may not stand in its endpoints.
        command.append("--endpoint-reconciler-type=none")
    admin = pki.KeyPair(folder.pki / "admin.crt", folder.pki / "admin.key")
    ready = functools.partial(answers_ok, addresses.host, port, "/readyz", authority.certificate, admin)
    return Server("kube-apiserver", tuple(command), ready)

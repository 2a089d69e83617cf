"""How does a test, or a person, speak to the cluster as a certain user?

An `Access` is one kubeconfig file with kubectl and plain requests on top of it. Where the cluster is ours its authority signs users; on a cluster
of the user's the certificates API does.
"""

import base64
import functools
import json
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import yaml

from testbed import pki

CONTEXT = "amdahl-testbed"
Body = Mapping[str, Any]
HANG_S = 900.0
"""A bound on hanging, longer than any wait that a test asks kubectl for."""


class KubectlError(Exception):
    """kubectl refused; the message holds the command and what it said."""


@dataclass(frozen=True)
class Reply:
    """What the API server answered: the HTTP status and the JSON body (an object of the API, or a `Status`)."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The server's own words for a refusal; empty when the body is no `Status`."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class Access:
    """One user's way into one cluster."""

    kubeconfig: Path
    kubectl_binary: Path

    def kubectl(self, *arguments: str | Path, stdin: str | Body | Sequence[Body] | None = None) -> str:
        """Run kubectl and return what it printed. Objects given as `stdin` are sent as JSON: `kubectl("apply", "-f", "-", stdin=job)`.

        Raises:
            KubectlError: kubectl ended with another status than 0.
        """
        ran = self.try_kubectl(*arguments, stdin=stdin)
        if ran.returncode:
            raise KubectlError(f"kubectl {' '.join(map(str, arguments))}: {ran.stderr.strip()}")
        return ran.stdout

    def try_kubectl(
        self, *arguments: str | Path, stdin: str | Body | Sequence[Body] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return status, output and errors, for tests that expect a refusal."""
        command = [str(self.kubectl_binary), "--kubeconfig", str(self.kubeconfig), *map(str, arguments)]
        said = _as_text(stdin)
        return subprocess.run(command, input=said, check=False, capture_output=True, text=True, timeout=HANG_S)

    def get(self, path: str) -> Reply:
        """GET a path such as `/api/v1/namespaces/default`."""
        return self.request("GET", path)

    def post(self, path: str, body: Body) -> Reply:
        """Create an object: the path is its collection's."""
        return self.request("POST", path, body)

    def delete(self, path: str) -> Reply:
        """Delete the object at a path."""
        return self.request("DELETE", path)

    def apply(self, path: str, body: Body, *, manager: str, force: bool = False) -> Reply:
        """Server-side apply in the name of a field manager; 409 with `details.causes` when another manager owns a field."""
        query = f"fieldManager={manager}&force={'true' if force else 'false'}"
        return self.request("PATCH", f"{path}?{query}", body, "application/apply-patch+yaml")

    def request(
        self, method: str, path: str, body: Body | None = None, content_type: str = "application/json"
    ) -> Reply:
        """Any request. A refusal is a `Reply` like any other, never an exception."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        call = self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self._client.call_api(*call)
        except kubernetes.client.ApiException as refusal:
            return _reply(refusal.status or 0, refusal.body or "")
        return _reply(response.status, response.read())

    @functools.cached_property
    def _client(self) -> Any:  # the client library's own functions carry no types
        load: Any = kubernetes.config.new_client_from_config
        return load(str(self.kubeconfig), persist_config=False)


def write_kubeconfig(path: Path, server: str, authority: Path, user: str, credentials: Mapping[str, str]) -> Path:
    """A kubeconfig with everything inside it, readable by its owner only.

    `credentials` is the user entry: `client-certificate-data` and `client-key-data`, or `token`.
    """
    cluster = {"server": server, "certificate-authority-data": base64_of(authority)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": user, "user": dict(credentials)}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": user}}],
        "current-context": CONTEXT,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def write_kubeconfig_like(path: Path, admin: Path, user: str, credentials: Mapping[str, str]) -> Path:
    """A kubeconfig for the same cluster as the administrator's, under another user's name."""
    document = yaml.safe_load(admin.read_text())
    by_name = {context["name"]: context["context"] for context in document["contexts"]}
    current = by_name[document["current-context"]]
    document["users"] = [{"name": user, "user": dict(credentials)}]
    document["clusters"] = [cluster for cluster in document["clusters"] if cluster["name"] == current["cluster"]]
    document["contexts"] = [
        {"name": document["current-context"], "context": {"cluster": current["cluster"], "user": user}}
    ]
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def certificate_credentials(pair: pki.KeyPair) -> dict[str, str]:
    """The user entry of a kubeconfig for a client certificate."""
    return {"client-certificate-data": base64_of(pair.certificate), "client-key-data": base64_of(pair.key)}


def request_credentials(admin: Access, folder: Path, user: str, groups: Sequence[str]) -> dict[str, str]:
    """A client certificate through the certificates API, for a cluster whose authority we do not hold.

    Raises:
        KubectlError: the cluster did not sign within half a minute; some managed ones never do.
    """
    name = f"amdahl-{uuid.uuid4().hex[:8]}"
    pair = pki.create_request(folder / name, user, groups)
    spec = {
        "request": base64_of(pair.certificate),
        "signerName": "kubernetes.io/kube-apiserver-client",
        "usages": ["client auth"],
        "expirationSeconds": 86400,
    }
    admin.kubectl(
        "create",
        "-f",
        "-",
        stdin={
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": spec,
        },
    )
    admin.kubectl("certificate", "approve", name)
    admin.kubectl("wait", f"csr/{name}", "--for=jsonpath={.status.certificate}", "--timeout=30s")
    signed = admin.kubectl("get", "csr", name, "-o", "jsonpath={.status.certificate}")
    return {"client-certificate-data": signed, "client-key-data": base64_of(pair.key)}


def base64_of(path: Path) -> str:
    """A file's content as kubeconfig files hold it."""
    return base64.b64encode(path.read_bytes()).decode()


def _as_text(stdin: str | Body | Sequence[Body] | None) -> str | None:
    if stdin is None or isinstance(stdin, str):
        return stdin
    items = [stdin] if isinstance(stdin, Mapping) else list(stdin)
    return json.dumps(items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items})


def _reply(status: int, body: bytes | str) -> Reply:
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = {"message": body if isinstance(body, str) else body.decode(errors="replace")}
    return Reply(status, parsed if isinstance(parsed, dict) else {"items": parsed})

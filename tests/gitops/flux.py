"""Flux's own kustomize-controller as a process, fed by an artifact that is served on loopback.

Where a source-controller would fetch a repository, an `ExternalArtifact` names a tar file and its digest: an interface
that Flux offers to other sources. What applies, compares and puts back is Flux's own code.
"""

import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from gitops.jobs import Source
from gitops.tools import Refusals
from testbed.access import Access
from testbed.binaries import FLUX, MODULES, binary
from testbed.cluster import wait_for

TIMEOUT_S = 240.0
GROUP = "kustomize.toolkit.fluxcd.io"
SOURCES = ("GitRepository", "OCIRepository", "Bucket", "ExternalArtifact")
"""Kinds that the controller watches. All but the last stay empty here."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Flux:
    """One Kustomization over one artifact; `ignore` is its `spec.ignore`."""

    name: str
    access: Access
    namespace: str
    shop: "Shop"
    ignore: list[Object] = field(default_factory=list)

    def put(self, sources: Sequence[Source]) -> Refusals:
        """A new revision where the sources have changed, and a reconciliation in any case."""
        revision, digest = self.shop.offer({f"{s.name}.yaml": s.render(self.name) for s in sources})
        artifact = {
            "url": f"{self.shop.address}/{digest}.tar.gz",
            "path": f"{digest}.tar.gz",
            "revision": revision,
            "digest": f"sha256:{digest}",
            "lastUpdateTime": "2026-01-01T00:00:00Z",
        }
        self._apply("source.toolkit.fluxcd.io/v1", "ExternalArtifact", {"spec": {}})
        path = self._path("source.toolkit.fluxcd.io/v1", "externalartifacts") + "/status"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "reason": "Served", "message": "", "lastTransitionTime": now}
        status = {"status": {"artifact": artifact, "conditions": [ready]}}
        reply = self.access.request("PATCH", path, status, "application/merge-patch+json")
        assert reply.status == 200, reply.message
        asked = f"{time.time_ns()}"
        spec: Object = {
            "interval": "10m",
            "path": "./",
            "prune": True,
            "targetNamespace": self.namespace,
            "sourceRef": {"kind": "ExternalArtifact", "name": "jobs"},
        }
        if self.ignore:
            spec["ignore"] = self.ignore
        annotations = {"reconcile.fluxcd.io/requestedAt": asked}
        self._apply(f"{GROUP}/v1", "Kustomization", {"metadata": {"annotations": annotations}, "spec": spec})
        refusal = self._await(asked, revision)
        return {source.name: refusal for source in sources} if refusal else {}

    def _await(self, asked: str, revision: str) -> str:
        """Wait until Flux has done what it was asked for; what it says where it could not."""
        path = self._path(f"{GROUP}/v1", "kustomizations")
        seen: Object = {}

        def is_done() -> bool:
            seen.update(self.access.get(path).body)
            status, ready = seen.get("status", {}), _find_ready(seen)
            is_asked = status.get("lastHandledReconcileAt") == asked and status.get("lastAttemptedRevision") == revision
            return is_asked and ready.get("status") in ("True", "False")

        wait_for(is_done, TIMEOUT_S, "Flux has reconciled")
        ready = _find_ready(seen)
        return "" if ready["status"] == "True" else str(ready["message"])

    def _apply(self, version: str, kind: str, body: Object) -> None:
        metadata = {"name": "jobs", "namespace": self.namespace} | body.get("metadata", {})
        plural = f"{kind.lower()}s"
        document = body | {"apiVersion": version, "kind": kind, "metadata": metadata}
        reply = self.access.apply(self._path(version, plural), document, manager="owner", force=True)
        assert reply.status in (200, 201), reply.message

    def _path(self, version: str, plural: str) -> str:
        return f"/apis/{version}/namespaces/{self.namespace}/{plural}/jobs"


class Shop:
    """Serves artifacts by their digest, over HTTP on loopback."""

    def __init__(self) -> None:
        self._goods: dict[str, bytes] = {}
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = shop._goods.get(self.path.strip("/").removesuffix(".tar.gz"))
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where artifacts are."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def offer(self, documents: Mapping[str, Object]) -> tuple[str, str]:
        """Revision and digest of an archive of these files; the same files are the same revision."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, document in documents.items():
                content = yaml.safe_dump(document).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        content = gzip.compress(packed.getvalue(), mtime=0)
        digest = hashlib.sha256(content).hexdigest()
        self._goods[digest] = content
        return f"main@sha256:{digest}", digest

    def close(self) -> None:
        """End serving."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def flux_running(access: Access, folder: Path) -> Iterator[Shop]:
    """The controller and the shop that feeds it, until the context ends."""
    define(access)
    shop = Shop()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        health = probe.getsockname()[1]
    command = [
        str(binary("kustomize-controller")),
        "--enable-leader-election=false",
        "--watch-all-namespaces",
        "--feature-gates=ExternalArtifact=true",
        "--metrics-addr=127.0.0.1:0",
        f"--health-addr=127.0.0.1:{health}",
    ]
    scratch = folder / "tmp"
    scratch.mkdir(parents=True)
    environment = os.environ | {
        "KUBECONFIG": str(access.kubeconfig),
        "RUNTIME_NAMESPACE": "default",
        "TMPDIR": str(scratch),
    }
    with (folder / "flux.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield shop
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shop.close()


def _find_ready(document: Object) -> Object:
    """Flux's word on a Kustomization; empty, or unknown, while it works on it."""
    conditions: list[Object] = document.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


def define(access: Access) -> None:
    """Flux's own definition of a Kustomization, and its sources' kinds without their fields: nobody reconciles them here."""
    said = subprocess.run(
        ["go", "mod", "download", "-json", FLUX], cwd=MODULES / "flux", check=True, capture_output=True, text=True
    )
    bases = Path(json.loads(said.stdout)["Dir"]) / "config" / "crd" / "bases"
    definitions = [yaml.safe_load(file.read_text()) for file in sorted(bases.glob("*.yaml"))]
    definitions += [_define_source(kind) for kind in SOURCES]
    everything = {"apiVersion": "v1", "kind": "List", "items": definitions}
    access.kubectl("apply", "--server-side", "-f", "-", stdin=everything)
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    access.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)


def _define_source(kind: str) -> Object:
    plural = {"GitRepository": "gitrepositories", "OCIRepository": "ocirepositories"}.get(kind, f"{kind.lower()}s")
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": anything},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.source.toolkit.fluxcd.io"},
        "spec": {
            "group": "source.toolkit.fluxcd.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }

"""What does a test hold in its hands? A running cluster: the administrator's access, users, namespaces, and orders to its servers."""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import access, pki, processes, starter
from testbed.access import Access
from testbed.binaries import binary
from testbed.images import Image, write_archive, write_layout
from testbed.layout import Facts, Folder, Plan, StateError, default_folder
from testbed.node import import_image

# A suite may write anything into the cluster it runs on, so a context must be named before it is touched.
ALLOWED_CONTEXTS = "amdahl-testbed,kind-amdahl-loop"
TIME_LIMIT_S = 4 * 3600.0  # of a cluster started by a test session


@dataclass(frozen=True)
class Cluster:
    """A running control plane, with nodes or without.

    `folder` and `facts` are None for a cluster of the user's, whose servers cannot be told anything.
    """

    admin: Access
    scratch: Path  # a folder for the kubeconfig files of users
    folder: Folder | None
    facts: Facts | None

    def create_namespace(self, prefix: str, labels: dict[str, str] | None = None) -> str:
        """A namespace with a new name, in which pods can be created at once: returns its name."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        reply = self.admin.post(
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}},
        )
        assert reply.status == 201, reply.message
        # The controller manager makes it too, but later, and an API server alone never does.
        account = self.admin.post(
            f"/api/v1/namespaces/{name}/serviceaccounts",
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
        )
        assert account.status in (201, 409), account.message
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the namespace's deletion, which an API server alone never finishes."""
        reply = self.admin.delete(f"/api/v1/namespaces/{name}")
        assert reply.status in (200, 202, 404), reply.message

    def user(self, name: str, groups: Sequence[str] = ()) -> Access:
        """A user with a client certificate and, until somebody binds a role, no rights but those of any authenticated user."""
        path = self.scratch / f"{uuid.uuid4().hex[:12]}"
        if self.folder is None:
            credentials = access.request_credentials(self.admin, self.scratch, name, groups)
        else:
            pair = pki.Authority(self.folder.pki).sign_client(path.name, name, groups)
            credentials = access.certificate_credentials(pair)
        return Access(
            access.write_kubeconfig_like(path, self.admin.kubeconfig, name, credentials), self.admin.kubectl_binary
        )

    def service_account(self, namespace: str, name: str) -> Access:
        """An existing service account, by a token for one hour."""
        token = self.admin.kubectl("create", "token", name, "--namespace", namespace, "--duration=1h").strip()
        path = self.scratch / f"{uuid.uuid4().hex[:12]}"
        return Access(
            access.write_kubeconfig_like(path, self.admin.kubeconfig, name, {"token": token}), self.admin.kubectl_binary
        )

    @property
    def audit_log(self) -> Path:
        """The API server's audit log.

        Raises:
            StateError: this is a cluster of the user's, whose log is not ours to read.
        """
        return self._own_folder("its audit log cannot be read").audit_log

    def stop(self, name: str) -> None:
        """End a server (`etcd`, `kube-apiserver`, `node-1.kubelet`, …) with SIGTERM."""
        starter.order(self._own_folder("its servers cannot be stopped"), "stop", name)

    def kill(self, name: str) -> None:
        """End a server with SIGKILL, or a whole node (`node-2`) with all that runs on it."""
        starter.order(self._own_folder("its servers cannot be killed"), "kill", name)

    def start(self, name: str) -> None:
        """Start a server or a node that was ended; returns when it is ready."""
        starter.order(self._own_folder("its servers cannot be started"), "start", name)

    def cut(self, node_name: str) -> None:
        """Pull a node's network cable: its pods run on, unseen."""
        starter.order(self._own_folder("its nodes cannot be cut off"), "cut", node_name)

    def join(self, node_name: str) -> None:
        """Plug the cable in again."""
        starter.order(self._own_folder("its nodes cannot be cut off"), "join", node_name)

    @property
    def node_names(self) -> list[str]:
        """All nodes, ready or not."""
        return [node["metadata"]["name"] for node in self.admin.get("/api/v1/nodes").body["items"]]

    def set_gpus(self, node_name: str, count: int) -> None:
        """Say that a node has GPUs; scheduler and kubelet then count them like real ones, until its kubelet restarts."""
        path = f"/api/v1/nodes/{node_name}"
        patch = {"status": {"capacity": {"nvidia.com/gpu": str(count)}, "allocatable": {"nvidia.com/gpu": str(count)}}}
        reply = self.admin.request("PATCH", f"{path}/status", patch, "application/strategic-merge-patch+json")
        assert reply.status == 200, reply.message

    @contextlib.contextmanager
    def lend_gpus(self, counts: Mapping[str, int]) -> Iterator[None]:
        """These nodes have so many GPUs and no other node has any, for as long as the context lasts; then none has."""
        for name in self.node_names:
            self.set_gpus(name, counts.get(name, 0))
        try:
            yield
        finally:
            for name in counts:
                self.set_gpus(name, 0)

    def load_image(self, image: Image) -> None:
        """Make an image and give it to every node; pods name it with `imagePullPolicy: Never`."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as work:
            self.load_layout(write_layout(image, Path(work) / "image"))

    def load_layout(self, layout: Path) -> None:
        """Give an image that was made before, such as `testbed.dockerfiles.build` does, to every node.

        On a cluster of the user's, the command in `AMDAHL_IMAGE_LOAD` is run with the path of a tar file in place of `{archive}`.
        """
        if self.folder is None:
            with tempfile.TemporaryDirectory(dir=self.scratch) as work:
                _load_by_command(layout, Path(work) / "image.tar")
            return
        insides = [starter.namespaces_of(self.folder, name) for name in self.node_names]
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(lambda inside: import_image(layout, inside), insides))

    def share_folder(self, namespace: str, name: str, path: Path, *, is_writable: bool = False) -> None:
        """Offer a folder of this machine as the claim `name`: large packages reach pods without being packed, copied and unpacked twice."""
        self._own_folder("its nodes cannot see this machine's folders")
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany" if is_writable else "ReadOnlyMany"]
        claim_ref = {"namespace": namespace, "name": name}
        volume = {
            "capacity": size,
            "accessModes": modes,
            "storageClassName": "",
            "hostPath": {"path": str(path), "type": "Directory"},
            "claimRef": claim_ref,
        }
        claim = {
            "accessModes": modes,
            "storageClassName": "",
            "resources": {"requests": size},
            "volumeName": f"{namespace}-{name}",
        }
        for kind, metadata, spec in (
            ("PersistentVolume", {"name": f"{namespace}-{name}"}, volume),
            ("PersistentVolumeClaim", claim_ref, claim),
        ):
            self.admin.kubectl(
                "create", "-f", "-", stdin={"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}
            )

    def snapshot_etcd(self, target: Path) -> None:
        """Copy the store as it is now into `target`; the API server and etcd restart for it."""
        folder = self._own_folder("its store cannot be copied")
        with self._without_store():
            shutil.copytree(folder.etcd, target)

    def restore_etcd(self, source: Path) -> None:
        """Put an older copy of the store back: resource versions go backwards, as after a disaster."""
        folder = self._own_folder("its store cannot be replaced")
        with self._without_store():
            shutil.rmtree(folder.etcd)
            shutil.copytree(source, folder.etcd)

    @contextlib.contextmanager
    def _without_store(self) -> Iterator[None]:
        self.kill("kube-apiserver")
        self.stop("etcd")
        yield
        self.start("etcd")
        self.start("kube-apiserver")

    def _own_folder(self, what_not: str) -> Folder:
        if self.folder is None:
            raise StateError(
                f"this is a cluster of yours (AMDAHL_KUBECONFIG), so {what_not}: run this test on the testbed's own"
            )
        return self.folder


def _load_by_command(layout: Path, archive: Path) -> None:
    template = os.environ.get("AMDAHL_IMAGE_LOAD")
    if not template:
        message = "images cannot be given to a cluster of yours without a command: set AMDAHL_IMAGE_LOAD, such as 'kind load image-archive {archive} --name amdahl-loop'"
        raise StateError(message)
    with archive.open("wb") as output:
        write_archive(layout, output)
    subprocess.run([part.replace("{archive}", str(archive)) for part in shlex.split(template)], check=True)


@contextlib.contextmanager
def started(plan: Plan) -> Iterator[Cluster]:
    """A cluster of our own, removed at the end."""
    sessions = default_folder().path.with_name("testbed-sessions")
    sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Folder(Path(tempfile.mkdtemp(dir=sessions, prefix="")))
    try:
        starter.up(folder, plan)
        yield attach(folder.kubeconfig, folder.users)
    finally:
        starter.down(folder)
    shutil.rmtree(folder.path)  # not after a failure: its logs say why


def plan_for_session(*, api_only: bool, nodes: int = 0) -> Plan:
    """What a test session starts: it ends when this process does."""
    return Plan(api_only, nodes, TIME_LIMIT_S, processes.identify(os.getpid()))


def attach(kubeconfig: Path, scratch: Path) -> Cluster:
    """A cluster that runs already: one of the testbed's by its kubeconfig, or one of the user's, if its context is allowed.

    Raises:
        StateError: the current context is not on the list.
    """
    document: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
    allowed = os.environ.get("AMDAHL_KUBE_CONTEXTS", ALLOWED_CONTEXTS).split(",")
    context = document.get("current-context")
    if context not in allowed:
        message = f"current context {context!r} of {kubeconfig} is not one that tests may write to ({', '.join(allowed)}): add it to AMDAHL_KUBE_CONTEXTS if they may"
        raise StateError(message)
    folder = Folder(kubeconfig.parent)
    facts = starter.status(folder)
    return Cluster(Access(kubeconfig, binary("kubectl")), scratch, folder if facts else None, facts)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until a condition holds; a bound on hanging, never a measurement.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s still not: {what}")
        time.sleep(0.2)

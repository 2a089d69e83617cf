"""Which binaries does the testbed run, and where are they?

Each is built from a Go module of ours in `go/`, which pins it by version and checksum. A build happens once into a cache folder whose name holds
the module, its pinned version and the Go release; what is there is never built again. Nothing is downloaded but Go modules.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "go"
BUILD = ("go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath")
OLDEST_GO = (1, 26)  # what the newest pinned modules (helm, kwok, kubeconform) ask for in their go.mod


class BuildError(Exception):
    """A binary cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Binary:
    """One program: the module folder that pins it, the package to build, and the module whose version names the build."""

    name: str
    module: str
    package: str
    pinned_by: str
    minutes: str  # of a cold build on two cores, for the one line that a waiting person reads


KUBERNETES = "k8s.io/kubernetes"
FLUX = "github.com/fluxcd/kustomize-controller"
BINARIES = {
    binary.name: binary
    for binary in (
        Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "1"),
        Binary("kube-apiserver", "kubernetes", f"{KUBERNETES}/cmd/kube-apiserver", KUBERNETES, "5"),
        Binary("kubectl", "kubernetes", f"{KUBERNETES}/cmd/kubectl", KUBERNETES, "2"),
        Binary("kube-controller-manager", "kubernetes", f"{KUBERNETES}/cmd/kube-controller-manager", KUBERNETES, "2"),
        Binary("kube-scheduler", "kubernetes", f"{KUBERNETES}/cmd/kube-scheduler", KUBERNETES, "1"),
        Binary("kubelet", "kubernetes", f"{KUBERNETES}/cmd/kubelet", KUBERNETES, "4"),
        Binary("kube-proxy", "kubernetes", f"{KUBERNETES}/cmd/kube-proxy", KUBERNETES, "1"),
        Binary("coredns", "coredns", ".", "github.com/coredns/coredns", "2"),
        Binary("pause", "pause", ".", "", "1"),
        Binary("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4", "3"),
        Binary(
            "kubeconform",
            "kubeconform",
            "github.com/yannh/kubeconform/cmd/kubeconform",
            "github.com/yannh/kubeconform",
            "1",
        ),
        Binary("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok", "2"),
        Binary("kustomize-controller", "flux", FLUX, FLUX, "6"),
    )
}
API_SERVER_BINARIES = ("etcd", "kube-apiserver", "kubectl")
CONTROLLER_BINARIES = ("kube-controller-manager", "kube-scheduler")
NODE_BINARIES = ("kubelet", "kube-proxy", "coredns", "pause")


def binary(name: str) -> Path:
    """The path of a built binary; builds it first when no earlier run has.

    Raises:
        BuildError: Go is missing or too old, or the build failed; the message holds the fix or the compiler's last lines.
    """
    wanted = BINARIES[name]
    folder = cache_home() / cache_key(wanted.module, wanted.pinned_by) / "bin"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, and then finds the binary
            if not path.exists():
                _build(wanted, path)
    return path


def cache_home() -> Path:
    """The folder that outlives checkouts: `$XDG_CACHE_HOME/amdahl-loop/testbed`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amdahl-loop" / "testbed"


@functools.cache
def cache_key(module: str, pinned_by: str) -> str:
    """`module-version-goX.Y.Z-digest`; the digest covers every file of the module folder and the flags, so a changed pin is another key."""
    folder = MODULES / module
    version = pinned_version(module, pinned_by)
    digest = hashlib.sha256(" ".join([*BUILD, _ldflags(module, version)]).encode())
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{module}-{version}-go{'.'.join(map(str, _go_release()))}-{digest.hexdigest()[:10]}"


def pinned_version(module: str, pinned_by: str) -> str:
    """The version that the module's go.mod requires of another module, such as `v1.34.4`; "v0" for a program of our own."""
    found = re.search(
        rf"^(?:require)?\s*{re.escape(pinned_by)} (v\S+)", (MODULES / module / "go.mod").read_text(), re.MULTILINE
    )
    return found[1] if found else "v0"


@functools.cache
def _go_release() -> tuple[int, ...]:
    """The release of the Go on PATH, as numbers."""
    fix = f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer from https://go.dev/dl and put its bin folder on PATH"
    go = shutil.which("go")
    if go is None:
        message = f"go is not on PATH: the testbed builds Kubernetes, etcd and their tools from Go modules. {fix}; or set AMDAHL_KUBECONFIG to use a cluster of yours"
        raise BuildError(message)
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    release = tuple(int(number) for number in re.findall(r"\d+", said)[:3])
    if release < OLDEST_GO:
        raise BuildError(f"{go} is Go {said.strip()}, too old for the pinned modules: {fix}")
    return release


def _build(wanted: Binary, path: Path) -> None:
    """Compile into a file beside `path`, then move it there in one step."""
    version = pinned_version(wanted.module, wanted.pinned_by)
    print(
        f"testbed: building {wanted.name} {version}, once (about {wanted.minutes} min on two cores)",
        file=sys.stderr,
        flush=True,
    )
    half_done = path.with_name(f".{wanted.name}.{os.getpid()}")
    started = time.monotonic()
    command: list[str | Path] = [*BUILD, "-ldflags", _ldflags(wanted.module, version), "-o", half_done, wanted.package]
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    built = subprocess.run(
        command, cwd=MODULES / wanted.module, env=environment, check=False, capture_output=True, text=True
    )
    if built.returncode:
        half_done.unlink(missing_ok=True)
        last_lines = "\n".join(built.stderr.splitlines()[-15:])
        raise BuildError(
            f"go build of {wanted.package} {version} failed; the Go module proxy must be reachable (go env GOPROXY):\n{last_lines}"
        )
    half_done.replace(path)
    print(f"testbed: built {wanted.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _ldflags(module: str, version: str) -> str:
    """No debug symbols; Kubernetes and Helm also want to be told their version, which others compare with their own."""
    major, minor = [*version.removeprefix("v").split("."), "0"][:2]
    values = {
        "kubernetes": {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"},
        "helm": {"version": version},
    }.get(module, {})
    packages = {
        "kubernetes": ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"),
        "helm": ("helm.sh/helm/v4/internal/version",),
    }.get(module, ())
    return "-s -w" + "".join(f" -X {package}.{name}={value}" for package in packages for name, value in values.items())

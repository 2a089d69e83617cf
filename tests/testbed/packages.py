"""Which programs of the machine do nodes need, and how do they get there?"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Where Debian, upstream's own archives and Fedora put the network plugins; the first is where apt-get would put them.
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
# What must be there, and the Debian package that brings it.
NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
}
# What carries out a Dockerfile, and what makes its base.
BUILDERS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
CNI_PACKAGE = "containernetworking-plugins"
APT_LOCK_WAIT_S = 120


class MachineError(Exception):
    """This machine cannot run nodes as it is; the message says what to change."""


def ensure() -> None:
    """Check that nodes can run here; install missing Debian packages.

    Raises:
        MachineError: not Linux, not root, or packages are missing and cannot be installed.
    """
    if sys.platform != "linux":
        raise MachineError(
            f"nodes need Linux, this is {sys.platform}: set AMDAHL_KUBECONFIG to use a cluster of yours, or use --api-only"
        )
    if os.geteuid() != 0:
        raise MachineError(
            "nodes need root, for namespaces, cgroups and containerd: run this as root, or use --api-only"
        )
    missing = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    if not (cni_plugins() / "ptp").exists():
        missing.add(CNI_PACKAGE)
    if missing:
        _install(sorted(missing))


def ensure_builders() -> None:
    """Check that images can be built here; install missing Debian packages.

    Raises:
        MachineError: not Linux, not root, or packages are missing and cannot be installed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineError(
            "building images without an engine needs Linux and root: run this as root, or use docker build"
        )
    missing = {package for program, package in BUILDERS.items() if shutil.which(program) is None}
    if missing:
        _install(sorted(missing))


def cni_plugins() -> Path:
    """The folder of the network plugins that containerd calls."""
    return next((folder for folder in CNI_FOLDERS if (folder / "ptp").exists()), CNI_FOLDERS[0])


def _install(packages: list[str]) -> None:
    fix = f"install {', '.join(packages)} with your system's package manager"
    if shutil.which("apt-get") is None:
        raise MachineError(f"missing on this machine, and apt-get is not here to install it: {fix}")
    print(f"testbed: apt-get install {' '.join(packages)}", file=sys.stderr, flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", f"DPkg::Lock::Timeout={APT_LOCK_WAIT_S}"]
    for command in (
        ["apt-get", *options, "update"],
        ["apt-get", *options, "install", "-y", "--no-install-recommends", *packages],
    ):
        ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if ran.returncode:
            raise MachineError(f"{' '.join(command)} failed; {fix}:\n{ran.stderr.strip()}")

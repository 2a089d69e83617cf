"""What is this machine: how many processors, how much memory, which devices may be used here?

Limits of the cgroup count: in a container the machine's own numbers promise too much.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from amdahl_loop.domain.values import Frozen

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
NVIDIA_SMI_TIMEOUT_S = 20.0
"""A first call starts the driver, which takes seconds on big machines."""


class Machine(Frozen):
    """Facts about where runs are held."""

    node: str
    cpus: int
    mem_bytes: int
    gpus: tuple[str, ...] = ()

    @property
    def device_type(self) -> str:
        """What a fingerprint holds: the GPUs by name (each name once), or `cpu:<processors>`."""
        return "+".join(f"cuda:{name}" for name in dict.fromkeys(self.gpus)) or f"cpu:{self.cpus}"


def read_machine() -> Machine:
    """The machine as this process may use it."""
    return Machine(
        node=platform.node(),
        cpus=count_cpus(len(os.sched_getaffinity(0))),
        mem_bytes=read_memory_bytes(),
        gpus=_list_gpus(),
    )


def count_cpus(affinity: int, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Processors by affinity, and at most the tightest quota of the cgroups above (v2, v1), rounded, 1 or more."""
    quotas = [affinity]
    for folder in _own_cgroups("cpu", cgroups, proc):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(max(1, round(int(quota) / int(period))))
    return min(quotas)


def read_memory_bytes(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Memory of the machine, and no more than the tightest limit of the cgroups above."""
    total = next(line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    limits = [int(total.split()[1]) * 1024]
    for folder in _own_cgroups("memory", cgroups, proc):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        limits += [int(limit)] if limit.isdecimal() else []
    return min(limits)


def _own_cgroups(controller: str, cgroups: Path, proc: Path) -> list[Path]:
    """This process's cgroup folders for a controller, from its own up to the root, v2 and v1."""
    folders = []
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = cgroups if number == "0" else cgroups / controller
            inside = root / path.strip("/")
            folders += [folder for folder in (inside, *inside.parents) if folder == root or root in folder.parents]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _list_gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())

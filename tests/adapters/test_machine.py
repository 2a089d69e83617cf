"""What a machine offers: limits of containers count, and are found in either version of cgroups."""

from pathlib import Path

import pytest

from amdahl_loop.adapters.local.machine import Machine, count_cpus, read_machine, read_memory_bytes


def make_files(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Folders that stand for /sys/fs/cgroup and /proc."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root / "cgroup", root / "proc"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({"proc/self/cgroup": "0::/"}, 16, id="no limit"),
        pytest.param({"proc/self/cgroup": "0::/a/b", "cgroup/a/b/cpu.max": "max 100000"}, 16, id="v2, max"),
        pytest.param({"proc/self/cgroup": "0::/a/b", "cgroup/a/b/cpu.max": "250000 100000"}, 2, id="v2, own"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b", "cgroup/a/cpu.max": "50000 100000", "cgroup/a/b/cpu.max": "max 100000"},
            1,
            id="v2, above, at least one",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/c\n0::/",
                "cgroup/cpu/c/cpu.cfs_quota_us": "400000",
                "cgroup/cpu/c/cpu.cfs_period_us": "100000",
            },
            4,
            id="v1",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:cpu:/", "cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "9"},
            16,
            id="v1, no limit",
        ),
        pytest.param({}, 16, id="no cgroups at all"),
    ],
)
def test_cpus_are_those_that_may_be_used(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    """Affinity, and no more than any quota on the way up."""
    assert count_cpus(16, *make_files(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("files", "mem_bytes"),
    [
        pytest.param({"proc/self/cgroup": "0::/"}, 8 * 2**30, id="machine"),
        pytest.param({"proc/self/cgroup": "0::/a", "cgroup/a/memory.max": "1073741824"}, 2**30, id="v2"),
        pytest.param({"proc/self/cgroup": "0::/a", "cgroup/a/memory.max": "max"}, 8 * 2**30, id="v2, no limit"),
        pytest.param(
            {"proc/self/cgroup": "9:memory:/a", "cgroup/memory/a/memory.limit_in_bytes": "2147483648"}, 2**31, id="v1"
        ),
        pytest.param(
            {"proc/self/cgroup": "9:memory:/", "cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)},
            8 * 2**30,
            id="v1, no limit",
        ),
    ],
)
def test_memory_is_what_may_be_used(tmp_path: Path, files: dict[str, str], mem_bytes: int) -> None:
    """The machine's, and no more than any limit on the way up."""
    meminfo = {"proc/meminfo": f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB"}
    assert read_memory_bytes(*make_files(tmp_path, files | meminfo)) == mem_bytes


@pytest.mark.parametrize(
    ("gpus", "device_type"),
    [((), "cpu:4"), (("NVIDIA H200",) * 2, "cuda:NVIDIA H200"), (("A", "B", "A"), "cuda:A+cuda:B")],
)
def test_the_device_type_is_part_of_the_fingerprint(gpus: tuple[str, ...], device_type: str) -> None:
    """Names without their number: how many are used is a knob."""
    assert Machine(node="n", cpus=4, mem_bytes=1, gpus=gpus).device_type == device_type


def test_this_machine_can_be_read() -> None:
    """Real files, whatever they say here."""
    machine = read_machine()
    assert machine.cpus >= 1
    assert machine.mem_bytes > 2**20
    assert machine.node

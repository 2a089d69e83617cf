"""Where does the machine's time go? CPU of every process that has a part in the benchmark, by its name."""

import os
from collections.abc import Mapping
from pathlib import Path

SERVERS = ("kube-apiserver", "etcd", "kwok")
OPERATOR, BENCHMARK = "operator", "benchmark"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int | str) -> float:
    """CPU seconds of a process so far, all threads; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def read_servers(folder: Path) -> dict[str, float]:
    """CPU seconds of the servers that were started with files of this folder, and of the benchmark itself."""
    found = dict.fromkeys(SERVERS, 0.0)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        name = Path(os.fsdecode(words[0])).name
        if name in found and any(str(folder).encode() in word for word in words[1:]):
            found[name] += cpu_s(entry.name)
    return found | {BENCHMARK: cpu_s("self")}


def between(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """What was used from one reading to the next."""
    return {name: round(last[name] - first.get(name, 0.0), 2) for name in last}

"""Where does the machine's time go? CPU of every process that has a part in the benchmark, by its name."""

import os
import re
from collections.abc import Iterator, Mapping
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
    for name, pid, _ in _find_servers(folder):
        found[name] += cpu_s(pid)
    return found | {BENCHMARK: cpu_s("self")}


def read_memory_mib(name: str, folder: Path) -> float:
    """MiB that a server holds; the most that it ever held."""
    pids = [pid for found, pid, _ in _find_servers(folder) if found == name]
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.findall(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)[0]) for text in texts) / 1024


def find_flags(name: str, folder: Path) -> dict[str, str]:
    """The flags that a server was started with; LookupError where it does not run."""
    for found, _, words in _find_servers(folder):
        if found == name:
            return {flag: value for flag, _, value in (word.partition("=") for word in words)}
    raise LookupError(f"no {name} runs with files of {folder}")


def _find_servers(folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Name, process and arguments of each server that was started with files of this folder."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0")
        except OSError:
            continue
        name = Path(words[0]).name
        if name in SERVERS and any(str(folder) in word for word in words[1:]):
            yield name, int(entry.name), words[1:]


def between(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """What was used from one reading to the next."""
    return {name: round(last[name] - first.get(name, 0.0), 2) for name in last}

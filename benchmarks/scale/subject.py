"""What does the operator's process use, and what does it say of itself?"""

import asyncio
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from machine import cpu_s

_REQUEST = re.compile(r'^amdahl_loop_api_requests_total\{code="(\d+)",verb="(\w+)"\} (\S+)', re.MULTILINE)
_TICK = re.compile(r"^amdahl_loop_ticks_total\{[^}]*\} (\S+)", re.MULTILINE)
_DESCRIBED = re.compile(r"^amdahl_loop_jobs_described\{[^}]*\} (\S+)", re.MULTILINE)
_OLDEST = re.compile(r"^amdahl_loop_queue_oldest_seconds (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """The operator at one moment."""

    at_s: float
    cpu_s: float
    ticks: float
    described: float
    """Jobs of which it knows how they stand."""
    oldest_s: float
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def writes(self) -> int:
        """Requests that change something."""
        return sum(count for verb, count in self.requests.items() if verb != "GET")


@dataclass(frozen=True)
class Span:
    """What lay between two readings."""

    first: Reading
    last: Reading

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.last.at_s - self.first.at_s

    @property
    def ticks(self) -> float:
        """Passes over jobs."""
        return self.last.ticks - self.first.ticks

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the process, all threads."""
        return self.last.cpu_s - self.first.cpu_s

    @property
    def cpu_ms_per_tick(self) -> float:
        """CPU time of everything that the process did, by passes."""
        return 1000 * self.cpu_s / max(1.0, self.ticks)

    @property
    def writes_per_s(self) -> float:
        """Creates, patches, replacements and deletions a second."""
        return (self.last.writes - self.first.writes) / self.seconds

    @property
    def requests(self) -> dict[str, int]:
        """Requests by verb."""
        return dict(self.last.requests - self.first.requests)


class Subject:
    """The operator's process, read from outside."""

    def __init__(self, process: subprocess.Popen[bytes], metrics_port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"

    @property
    def peak_mib(self) -> float:
        """The most memory that the process has held at any moment, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return cpu_s(self.process.pid)

    def check(self) -> None:
        """RuntimeError where the operator has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the operator ended with exit code {self.process.returncode}: see its log")

    async def read(self) -> Reading:
        """Counters, once the operator serves them."""
        while True:
            self.check()
            try:
                async with aiohttp.ClientSession() as session, session.get(self._url) as response:
                    text = await response.text()
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.2)
        requests: Counter[str] = Counter()
        for _, verb, count in _REQUEST.findall(text):
            requests[verb] += int(float(count))
        return Reading(
            at_s=asyncio.get_running_loop().time(),
            cpu_s=self.cpu_s,
            ticks=sum(map(float, _TICK.findall(text))),
            described=sum(map(float, _DESCRIBED.findall(text))),
            oldest_s=float(_OLDEST.findall(text)[0]),
            requests=requests,
        )

"""What do the counters of a running job say?

`/metrics` is served by a process that runs the user's code: the text is bounded, parsed once with a well-kept library
into frozen counters, and refused with a reason where a number is missing, negative, not finite or absurdly large.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.telemetry import PHASES, Malformed, Phase

MAX_METRICS_BYTES = 256 * 1024
"""Ours are 4 KiB; a program that serves its own metrics beside them stays below this."""
SCRAPE_S = 5.0
SCRAPES = 64
"""Pods that are asked at the same time; a connection serves once, or two thousand of them would stay open."""
MOST = 1e12
"""No counter of ours can be larger: 30,000 years in seconds."""
MAX_WORLD = 1_000_000
MAX_IGNORED = 8
"""As many as a summary names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Totals of one rank since its process began; `world` is the number of ranks, `by` who counts."""

    steps: int
    samples: int
    step_s: float
    phases_s: tuple[float, ...]
    saves: int
    blocked_s: float
    batches: int
    batch_s: float
    world: int
    by: str
    ignored: tuple[str, ...] = ()
    """Knobs that the program says it could not take."""

    @property
    def startup_s(self) -> float:
        """Seconds from the start of the process to its first batch."""
        return self.phases_s[PHASES.index(Phase.STARTUP)]

    @property
    def is_live(self) -> bool:
        """Whether the program switches knobs while it runs: our trainer does."""
        return self.by == "trainer"


class Fetch(Protocol):
    """Reads the metrics of one address."""

    async def __call__(self, address: str, port: int) -> str | Malformed:
        """The text that is served at `/metrics`, or why there is none."""


@contextlib.asynccontextmanager
async def open_scrapes() -> AsyncIterator[Fetch]:
    """A way to read the metrics of many pods, so many at once, for as long as the context lasts."""
    timeout, connector = aiohttp.ClientTimeout(total=SCRAPE_S), aiohttp.TCPConnector(limit=SCRAPES, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def fetch(address: str, port: int) -> str | Malformed:
            return await _read(session, address, port)

        yield fetch


async def fetch_metrics(address: str, port: int) -> str | Malformed:
    """The text at `http://address:port/metrics`, at most `MAX_METRICS_BYTES`; no redirect is followed."""
    async with open_scrapes() as fetch:
        return await fetch(address, port)


async def _read(session: aiohttp.ClientSession, address: str, port: int) -> str | Malformed:
    host = f"[{address}]" if ":" in address else address
    try:
        async with session.get(f"http://{host}:{port}/metrics", allow_redirects=False) as response:
            if response.status != 200:
                return Malformed(reason=f"/metrics answered {response.status}")
            content = b""
            async for chunk in response.content.iter_chunked(1 << 16):
                content += chunk
                if len(content) > MAX_METRICS_BYTES:
                    return Malformed(reason=f"/metrics is longer than {MAX_METRICS_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return Malformed(reason=f"/metrics cannot be read: {type(error).__name__}: {error}"[:200])
    return content.decode(errors="replace")


def parse_metrics(text: str) -> Counters | Malformed:
    """The counters that a text of Prometheus' format holds, or why they cannot be believed."""
    if len(text) > MAX_METRICS_BYTES:
        return Malformed(reason=f"/metrics is longer than {MAX_METRICS_BYTES} bytes")
    try:
        samples = _collect(text)
        return _build(samples)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        return Malformed(reason=f"/metrics cannot be read: {type(error).__name__}: {error}"[:200])


IGNORED = "amdahl_knob_ignored"
KNOBS = frozenset(KnobName)
READ = frozenset(
    {
        "amdahl_steps_total",
        "amdahl_samples_total",
        "amdahl_step_seconds_sum",
        "amdahl_phase_seconds_total",
        "amdahl_checkpoints_total",
        "amdahl_checkpoint_block_seconds_total",
        "amdahl_loader_batches_total",
        "amdahl_loader_batch_seconds_total",
        IGNORED,
    }
)
"""What is counted here; a program may tell more, under whatever labels."""

Labelled = dict[tuple[str, str], float]
"""Value by metric and the one label that tells its samples apart, a phase or a knob."""


def _collect(text: str) -> tuple[Labelled, Mapping[str, str]]:
    """The samples that are read, by name and label, and the labels of `amdahl_info`; others are left out."""
    found: Labelled = {}
    info: Mapping[str, str] | None = None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "amdahl_info":
                info = sample.labels
            elif sample.name in READ:
                key = (sample.name, sample.labels.get("phase", sample.labels.get("knob", "")))
                if key in found:
                    raise ValueError(f"{sample.name} comes twice")
                found[key] = float(sample.value)
    if info is None:
        raise ValueError("amdahl_info is missing: this is no instrumented process")
    return found, info


def _build(collected: tuple[Labelled, Mapping[str, str]]) -> Counters:
    found, info = collected

    def take(name: str, phase: str = "") -> float:
        value = found[name, phase] if not phase else found.get((name, phase), 0.0)
        if not math.isfinite(value) or not 0 <= value <= MOST:
            raise ValueError(f"{name} is {value}")
        return value

    world = int(info["world"])
    if not 1 <= world <= MAX_WORLD:
        raise ValueError(f"world is {world}")
    return Counters(
        steps=int(take("amdahl_steps_total")),
        samples=int(take("amdahl_samples_total")),
        step_s=take("amdahl_step_seconds_sum"),
        phases_s=tuple(take("amdahl_phase_seconds_total", phase) for phase in PHASES),
        saves=int(take("amdahl_checkpoints_total")),
        blocked_s=take("amdahl_checkpoint_block_seconds_total"),
        batches=int(take("amdahl_loader_batches_total")),
        batch_s=take("amdahl_loader_batch_seconds_total"),
        world=world,
        by=str(info.get("by", ""))[:40],
        ignored=tuple(sorted(knob for name, knob in found if name == IGNORED and knob in KNOBS)[:MAX_IGNORED]),
    )

"""What did a block of windows measure, and can the report be believed?

The reading side of docs/telemetry.md. A summary comes out of a pod that runs the user's code: it is bounded, parsed
once into frozen values, and refused with a reason when a number is missing, negative, not finite or contradicts
another.
"""

import json
import math
import zlib
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from amdahl_loop.domain.values import Frozen

SUMMARY_VERSION = "amdahl.block/1"
MAX_SUMMARY_BYTES = 1_500
MAX_WINDOWS = 8


class Phase(StrEnum):
    """Where time goes; only `compute` is productive. The order is the telemetry contract's."""

    QUEUE = "queue"
    STARTUP = "startup"
    WARMUP = "warmup"
    INPUT = "input"
    COMPUTE = "compute"
    COMM = "comm"
    CHECKPOINT = "checkpoint"
    EVAL = "eval"
    OTHER = "other"


PHASES = tuple(Phase)


class Arm(StrEnum):
    """A full set of knob values within a block: A is the baseline, B the variant."""

    BASELINE = "A"
    VARIANT = "B"


class WindowOutcome(StrEnum):
    """How a window ended; the words are the supervisor's."""

    OK = "ok"
    CRASH = "crash"
    OOM = "oom"
    HANG = "hang"
    NO_STEPS = "no_steps"
    NO_REPORT = "no_report"
    VOID = "void"
    SIGNAL = "signal"

    @property
    def is_own_fault(self) -> bool:
        """True where the arm's own code failed: a variant that does so loses, it is never missing data."""
        return self in (WindowOutcome.CRASH, WindowOutcome.OOM, WindowOutcome.HANG)


Count = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class Saves(Frozen):
    """Checkpoints of a window: how many, how long each blocked, mean excess of steps while one was written."""

    count: Count = 0
    block_s: Seconds = 0.0
    interference_s: Seconds = 0.0


class Loader(Frozen):
    """One loader worker's time per batch."""

    batch_s: Seconds
    cv: Seconds


class Window(Frozen):
    """One measured stretch of one arm: whole steps, saves and stalls included."""

    arm: Arm
    index: Annotated[int, Field(ge=0, lt=MAX_WINDOWS)]
    outcome: WindowOutcome
    why: Annotated[str, Field(max_length=200)] = ""
    exit_code: int | None = None
    steps: Count = 0
    samples: Count = 0
    devices: Count = 0
    wall_s: Seconds = 0.0
    phases_ppk: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(min_length=9, max_length=9)] = (
        0,
    ) * 9
    shape: Digest | None = None
    elements_per_sample: Seconds | None = None
    distinct_ppk: Annotated[int, Field(ge=0, le=1000)] | None = None
    sample_ids: Digest | None = None
    losses: Digest | None = None
    loss_mean: Annotated[float, Field(allow_inf_nan=False)] | None = None
    saves: Saves = Saves()
    quiet_step_s: Seconds | None = None
    quiet_step_sd_s: Seconds | None = None
    startup_s: Seconds = 0.0
    loader: Loader | None = None
    peak_mem_mib: Count = 0
    clock_ppk: Annotated[int, Field(ge=-(10**6), le=10**6)] = 0
    straggler: tuple[Count, Count] | None = None
    offset_applied: bool = False
    ignored: Annotated[tuple[Annotated[str, Field(max_length=32)], ...], Field(max_length=8)] = ()
    dtype: Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")] | None = None

    @property
    def is_measured(self) -> bool:
        """True when the window yields a cost."""
        return self.outcome is WindowOutcome.OK and self.steps > 0 and self.samples > 0 and self.wall_s > 0

    @property
    def device_cost(self) -> float:
        """log(device-seconds per sample); the window must be measured."""
        return math.log(self.devices * self.wall_s / self.samples)

    @property
    def wall_cost(self) -> float:
        """log(seconds per sample); the window must be measured."""
        return math.log(self.wall_s / self.samples)

    def share(self, phase: Phase) -> float:
        """Share of one phase in the window's wall time, 0 to 1."""
        return self.phases_ppk[PHASES.index(phase)] / 1000

    @property
    def samples_per_step(self) -> float:
        """Mean samples per optimizer step over all ranks."""
        return self.samples / self.steps if self.steps else 0.0


class BlockReport(Frozen):
    """What a supervisor says of one block."""

    run: Annotated[str, Field(max_length=253)]
    state: Literal["running", "done", "error"]
    why: Annotated[str, Field(max_length=200)] = ""
    running_arm: Arm | None = None
    running_index: int | None = None
    live: bool = False
    cpus: Annotated[int, Field(ge=1, le=100_000)] = 1
    windows: Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)] = ()


class Malformed(Frozen):
    """A report that cannot be used, and why; a value, because untrusted input is expected to be bad at times."""

    reason: str


def parse_block_summary(text: str, run: str) -> BlockReport | Malformed:
    """The report of block `run` that a termination message holds, or why it cannot be believed."""
    if len(text.encode(errors="replace")) > MAX_SUMMARY_BYTES:
        return Malformed(reason=f"summary has {len(text)} characters, more than {MAX_SUMMARY_BYTES} bytes")
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Malformed(reason=f"summary is no JSON: {error}"[:200])
    if not isinstance(raw, dict):
        return Malformed(reason=f"summary is a JSON {type(raw).__name__}, not an object")
    if raw.get("v") != SUMMARY_VERSION:
        return Malformed(reason=f"summary version is {str(raw.get('v'))[:40]!r}, expected {SUMMARY_VERSION!r}")
    claimed = raw.pop("crc", None)
    if claimed != checksum(raw):
        return Malformed(reason=f"checksum {str(claimed)[:20]!r} does not match the content")
    if raw.get("run") != run:
        return Malformed(reason=f"summary is of run {str(raw.get('run'))[:80]!r}, expected {run!r}")
    return _build_report(raw)


def checksum(content: dict[str, Any]) -> str:
    """CRC-32, 8 hex digits, of the canonical JSON of a summary without its `crc`."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{zlib.crc32(canonical.encode()):08x}"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that may be reported")


def _build_report(raw: dict[str, Any]) -> BlockReport | Malformed:
    try:
        at = raw.get("at") or [None, None]
        report = BlockReport(
            run=raw["run"],
            state=raw["state"],
            why=raw.get("why", ""),
            running_arm=at[0],
            running_index=at[1],
            live=bool(raw.get("live", 0)),
            cpus=raw.get("cpus", 1),
            windows=tuple(_build_window(window) for window in raw.get("w", [])),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Malformed(reason=f"{where}: {first['msg']}"[:200])
    except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        return Malformed(reason=f"summary lacks or mistypes a field: {type(error).__name__}: {error}"[:200])
    contradictions = [reason for window in report.windows if (reason := _contradiction(window))]
    return Malformed(reason=contradictions[0]) if contradictions else report


def _build_window(raw: dict[str, Any]) -> Window:
    """The compact keys of the contract, in their long names and in seconds."""
    loader = raw.get("lb")
    saves = raw.get("sv")
    return Window(
        arm=raw["a"],
        index=raw["i"],
        outcome=raw["x"],
        why=raw.get("why", ""),
        exit_code=raw.get("xc"),
        steps=raw.get("n", 0),
        samples=raw.get("s", 0),
        devices=raw.get("d", 0),
        wall_s=raw.get("us", 0) / 1e6,
        phases_ppk=tuple(raw.get("ph", (0,) * 9)),
        shape=raw.get("sh"),
        elements_per_sample=raw.get("el"),
        distinct_ppk=raw.get("di"),
        sample_ids=raw.get("id"),
        losses=raw.get("ls"),
        loss_mean=raw.get("lm"),
        saves=Saves(count=saves[0], block_s=saves[1] / 1e6, interference_s=saves[2] / 1e6) if saves else Saves(),
        quiet_step_s=raw["st"] / 1e6 if "st" in raw else None,
        quiet_step_sd_s=raw["sd"] / 1e6 if "sd" in raw else None,
        startup_s=raw.get("su", 0) / 1e3,
        loader=Loader(batch_s=loader[0] / 1e6, cv=loader[1] / 1e3) if loader else None,
        peak_mem_mib=raw.get("mem", 0),
        clock_ppk=raw.get("ck", 0),
        straggler=tuple(raw["sk"]) if "sk" in raw else None,
        offset_applied=bool(raw.get("of", 0)),
        ignored=tuple(raw.get("ig", ())),
        dtype=raw.get("dt"),
    )


def _contradiction(window: Window) -> str | None:
    """A reason to refuse a window whose numbers cannot all be true."""
    name = f"window {window.arm}{window.index}"
    if window.outcome is not WindowOutcome.OK:
        return None
    if not window.is_measured or window.devices == 0:
        counts = f"{window.steps} steps, {window.samples} samples, {window.devices} devices, {window.wall_s} s"
        return f"{name} says ok with {counts}"
    if sum(window.phases_ppk) != 1000:
        return f"{name} has phase shares summing to {sum(window.phases_ppk)}, not 1000"
    blocked_s = window.saves.block_s * window.saves.count
    if blocked_s > window.wall_s * 1.001 + 0.001:
        return f"{name} was blocked {blocked_s:.3f} s by saves within {window.wall_s:.3f} s"
    return None

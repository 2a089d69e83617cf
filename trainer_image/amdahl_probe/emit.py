"""What did this rank do, step by step? Writes `rank-<r>.jsonl` (telemetry contract, section 2) and feeds `/metrics`.

Each record is one line of at most 2,000 bytes, written by one system call, so a reader that tails the file never sees
two records mixed. A disk that refuses a record ends the recording with one line on stderr and never raises: telemetry
must not end a training run.
"""

from __future__ import annotations

import json
import os
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from amdahl_probe.metrics import Metrics

VERSION = "amdahl.step/1"
MAX_LINE_BYTES = 2000
MAX_FLOAT = sys.float_info.max

#: Longest text of a reason or name in a record, characters; keeps every record far below `MAX_LINE_BYTES`.
MAX_TEXT = 200

#: One encoder for all records: making one costs as much as using it.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode

Value = Union[bool, int, float, str, None]


class Batches(NamedTuple):
    """How long the loader's batches of one step took to make: `[batches, sum_ns, sumsq_us2]` in the record."""

    batches: int = 0
    sum_ns: int = 0
    sumsq_us2: int = 0

    def plus(self, took_ns: int) -> Batches:
        """With one more batch that took `took_ns`."""
        return Batches(self.batches + 1, self.sum_ns + took_ns, self.sumsq_us2 + (took_ns // 1000) ** 2)


class StepRecord(NamedTuple):
    """One optimizer step of one rank. Times are nanoseconds of CLOCK_MONOTONIC; `phases` sums to the step's wall."""

    step: int
    end_ns: int
    phases: Dict[str, int]
    samples: int
    elements: int
    sig: str
    shape: str
    ids: str
    loss: Optional[float] = None
    seq: int = 0
    loader: Batches = Batches()
    tags: Sequence[str] = ()


class Recorder:
    """Writes the records of one rank, and keeps its metrics. Without a directory it does only the latter."""

    def __init__(
        self,
        directory: Optional[str],
        rank: int = 0,
        world: int = 1,
        metrics: Optional[Metrics] = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Create `directory/rank-<rank>.jsonl` (emptied if it is there). Raises OSError if that cannot be done."""
        self.rank, self.world = rank, world
        self._metrics = metrics
        self.steps = 0
        self._clock = clock
        self._fd: Optional[int] = None
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
            path = Path(directory, f"rank-{rank}.jsonl")
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            _open_recorders.add(self)

    def start(self, device: str, live: bool, by: str, t0_ns: Optional[int] = None, dtype: str = "") -> None:
        """First record: who writes. `t0_ns` is when the process began (`process_start_ns()` if not given).

        `dtype`: what matrices are multiplied in, by torch's name; empty where it is not known.
        """
        begun_ns = process_start_ns() if t0_ns is None else t0_ns
        if self._metrics is not None:
            self._metrics.info.update(rank=str(self.rank), world=str(self.world), device=device, by=by)
        self._write(
            "start",
            v=VERSION,
            rank=self.rank,
            world=self.world,
            pid=os.getpid(),
            t0=begun_ns,
            device=device[:MAX_TEXT],
            live=live,
            by=by,
            dtype=dtype[:MAX_TEXT],
        )

    def startup(self, ns: int, parts: Optional[Mapping[str, int]] = None) -> None:
        """The first batch is in hand, `ns` after the process began.

        The wait for that batch is also `startup` time of step 0, whose wall begins when the batch was asked for;
        in the metrics it is counted once, here.
        """
        if self._metrics is not None:
            self._metrics.add_phases({"startup": ns})
        self._write("startup", ns=ns, parts=dict(parts or {}))

    def step(self, step: StepRecord) -> None:
        """One optimizer step."""
        index, end_ns, phases, samples, elements, sig, shape, ids, loss, seq, loader, tags = step
        digests = (int(sig or "0", 16), int(shape or "0", 16), int(ids or "0", 16))
        self.write_step(index, end_ns, phases, samples, elements, digests, loss, seq, loader, tags)

    def write_step(
        self,
        index: int,
        end_ns: int,
        phases: Dict[str, int],
        samples: int,
        elements: int,
        digests: Tuple[int, int, int],
        loss: Optional[float],
        seq: int,
        loader: Tuple[int, int, int],
        tags: Sequence[str],
    ) -> None:
        """The fields of a `StepRecord`, digests as numbers.

        The line is put together by one call: its names and texts are ours, and need no escapes.
        """
        spent = tuple(phases.values())
        wall_ns = sum(spent)
        if loss is not None and not -MAX_FLOAT <= loss <= MAX_FLOAT:
            loss = None
        self.steps = index + 1
        if self._metrics is not None:
            self._metrics.observe_step(wall_ns, samples)
            self._metrics.add_phases({phase: ns for phase, ns in phases.items() if phase != "startup"})
            self._metrics.loader_batches += loader[0]
            self._metrics.loader_batch_ns += loader[1]
            self._metrics.loss = self._metrics.loss if loss is None else loss
        if self._fd is None:
            return
        template = _step_templates.get((loss is None, *phases)) or _make_step_template(loss is None, *phases)
        said = b"null" if loss is None else loss
        quoted = _encode(tags).encode() if tags else b"[]"
        self._append(
            "step", template % (end_ns, index, wall_ns, *spent, samples, elements, *digests, said, seq, *loader, quoted)
        )

    def save(self, block_ns: int, asynchronous: bool, step: int, at_ns: Optional[int] = None) -> None:
        """A checkpoint after `step` steps blocked the training thread for `block_ns`, until `at_ns` (else now)."""
        if self._metrics is not None:
            self._metrics.checkpoints += 1
            self._metrics.checkpoint_block_ns += block_ns
        fields = {"block_ns": block_ns, "async": asynchronous, "step": step}
        self._write("save", at_ns, **fields)

    def durable(self, block_ns: int, asynchronous: bool, step: int, total_ns: int, at_ns: Optional[int] = None) -> None:
        """The checkpoint of `save` is wholly written, `total_ns` after it was begun. May be called from any thread."""
        fields = {"block_ns": block_ns, "async": asynchronous, "step": step, "durable": True, "total_ns": total_ns}
        self._write("save", at_ns, **fields)

    def knob(self, seq: int, applied: Mapping[str, Value], ignored: Optional[Mapping[str, str]] = None) -> None:
        """Knobs took effect (`applied`) or could not (`ignored`, with the reason)."""
        if self._metrics is not None:
            self._metrics.note_knobs(seq, applied, ignored or {})
        self._write("knob", seq=seq, applied=_bounded(applied), ignored=_bounded(ignored or {}))

    def offset(self, seq: int, offset: int, seed: Optional[int], applied: bool, why: str = "") -> None:
        """Trial only: whether the data offset (samples) and seed took effect, and if not, why."""
        self._write("offset", seq=seq, offset=offset, seed=seed, applied=applied, why=why[:MAX_TEXT])

    def disabled(self, why: str) -> None:
        """The probe switched itself off; the script goes on."""
        self._write("disabled", why=why[:MAX_TEXT])

    def end(self, steps: int, why: str) -> None:
        """Last record: `exit`, `sigterm` or `exception:<type>`."""
        self._write("end", steps=steps, why=why[:MAX_TEXT])

    def close(self) -> None:
        """End the file; later records are dropped.

        Its descriptor leads nowhere from now on, but stays open: another thread, or the code that this signal's handler
        has interrupted, may be about to write to it, and must not find another file there.
        """
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with suppress(OSError):  # without a place for it the descriptor stays what it is, and nobody uses it
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, fd, inheritable=False)
            os.close(nowhere)

    def abandon(self) -> None:
        """In a forked child, which has the descriptor but no say."""
        self._fd = None

    def _write(self, kind: str, at_ns: Optional[int] = None, **fields: object) -> None:
        if self._fd is not None:
            self._append(
                kind, _encode({"k": kind, "t": self._clock() if at_ns is None else at_ns, **fields}).encode() + b"\n"
            )

    def _append(self, kind: str, line: bytes) -> None:
        """Write one record, the whole line at once."""
        fd = self._fd
        if fd is None:
            return
        try:
            if len(line) <= MAX_LINE_BYTES and os.write(fd, line) == len(line):
                return
            failure = f"a {kind} record has {len(line)} bytes, more than {MAX_LINE_BYTES}"
        except OSError as error:
            failure = str(error)
        self.close()
        sys.stderr.write(f"amdahl_probe: telemetry ends here: {failure}\n")


#: What the line of a step looks like, by whether its loss is unknown and by the phases it names.
_step_templates: Dict[Tuple[Union[bool, str], ...], bytes] = {}


def _make_step_template(is_unknown: bool, *phases: str) -> bytes:
    spent, loss = ",".join(f'"{phase}":%d' for phase in phases), "%b" if is_unknown else "%a"
    text = (
        f'{{"k":"step","t":%d,"i":%d,"w":%d,"ph":{{{spent}}},"n":%d,"el":%d,"sig":"%08x","shape":"%08x","ids":"%08x",'
        f'"loss":{loss},"seq":%d,"lb":[%d,%d,%d],"tags":%b}}\n'
    )
    template = _step_templates[(is_unknown, *phases)] = text.encode()
    return template


_open_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _abandon_all() -> None:
    for recorder in _open_recorders:
        recorder.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def process_start_ns(pid: int = 0) -> int:
    """When a process began, nanoseconds of CLOCK_MONOTONIC, to a clock tick (10 ms); now if /proc does not say.

    /proc counts from boot including suspend, CLOCK_MONOTONIC without: the offset between the two clocks is taken now.
    """
    now_ns = time.monotonic_ns()
    try:
        after_name = Path(f"/proc/{pid or 'self'}/stat").read_bytes().rsplit(b")", 1)[1].split()
        ticks = int(after_name[19])  # field 22, starttime: proc(5)
        since_boot_ns = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now_ns
        return min(now_ns, since_boot_ns - asleep_ns)
    except (OSError, ValueError, IndexError, AttributeError):
        return now_ns


def _bounded(values: Mapping[str, Value]) -> Dict[str, Value]:
    """At most 16 entries (there are 12 knobs) of short text: about 1,500 bytes in the worst case."""
    kept: List[Tuple[str, Value]] = list(values.items())[:16]
    return {name[:40]: value[:80] if isinstance(value, str) else value for name, value in kept}

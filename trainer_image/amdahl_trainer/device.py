"""What computes, and what does its own clock say? The reading of each step's scalars and device times.

On a GPU the host runs ahead of the device. Loss, gradient norm and the events between phases are therefore read when
the device has passed them, one or more steps late, and nothing here ever waits in the training loop. On a CPU host and
device are one, and a reading is there at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from amdahl_probe.spans import Ledger
from amdahl_trainer.errors import ConfigError

#: Waits for other ranks that a GPU's clock brackets in one step, so that what they cost has a bound.
BRACKETS = 16


class Reading(NamedTuple):
    """What became known of one step, beyond the host's ledger.

    Attributes:
        comm_ns: booked as `compute`, but spent waiting for other ranks.
        input_idle_ns: how long the device idled for want of a batch; None where the ledger says it all.
    """

    loss: float
    grad_norm: float
    refused: bool
    comm_ns: int
    input_idle_ns: int | None


class Clock(Protocol):
    """Marks a step's edges and hands its reading back when it is known, steps in order."""

    def ask(self) -> None:
        """A batch is about to be asked for."""

    def begin(self) -> None:
        """The batch is in hand; the next kernel belongs to the step."""

    def gradient(self) -> None:
        """A local gradient is complete; the last such mark of a step counts."""

    def backward_done(self) -> None:
        """The backward pass and all reductions of gradients are issued."""

    def waiting(self) -> AbstractContextManager[None]:
        """The context of a wait for other ranks; it counts only within a step, where nothing else is being done."""

    def finish(self, scalars: Tensor) -> None:
        """The step's last operation is issued. `scalars` holds loss, gradient norm and refusal."""

    def ready(self, wait: bool = False) -> Iterator[Reading]:
        """Readings that are known by now; with `wait`, all of them."""


class HostClock:
    """A CPU: everything is finished when the call returns, and waits are spans of the ledger.

    The tail of the backward pass is what the ledger counted as `compute` after the last local gradient: waits within it
    that were seen are not counted again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._last_gradient_ns: int | None = None
        self._tail_ns = 0
        self._readings: deque[Reading] = deque()

    def ask(self) -> None:
        """The host's ledger says it all."""

    def begin(self) -> None:
        """Forget the last step's gradients."""
        self._last_gradient_ns = None

    def gradient(self) -> None:
        """Stamp."""
        self._last_gradient_ns = self._ledger.spent("compute")

    def backward_done(self) -> None:
        """What passed since the last local gradient was spent waiting for other ranks' gradients."""
        last_ns = self._last_gradient_ns
        self._tail_ns = 0 if last_ns is None else self._ledger.spent("compute") - last_ns

    def waiting(self) -> AbstractContextManager[None]:
        """A span. Other threads, such as one that writes a checkpoint, hold nobody up."""
        is_plain = self._ledger.is_mine() and _is_computing(self._ledger)
        return self._ledger.span("comm") if is_plain else contextlib.nullcontext()

    def finish(self, scalars: Tensor) -> None:
        """Read."""
        loss, norm, refused = scalars.tolist()
        self._readings.append(Reading(loss, norm, bool(refused), self._tail_ns, None))

    def ready(self, wait: bool = False) -> Iterator[Reading]:  # noqa: ARG002 (the protocol's; nothing to wait for)
        """The step just finished."""
        while self._readings:
            yield self._readings.popleft()


def _is_computing(ledger: Ledger) -> bool:
    """Not within a save, an evaluation or another span, whose waits are its own."""
    return ledger.bottom == "compute" and ledger.depth == 0


class Sampling:
    """Which waits of a step are bracketed: every n-th, so that there are at most `BRACKETS`.

    n follows the last step's number of waits, and the first one taken moves on from step to step, so that each wait of
    a step is taken equally often.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._steps = 0
        self.seen = 0

    def begin(self) -> None:
        """A step begins."""
        self._stride = max(1, -(-self.seen // BRACKETS))
        self._steps += 1
        self.seen = 0

    def take(self) -> bool:
        """A wait begins: whether it is one of those bracketed."""
        self.seen += 1
        return (self.seen + self._steps) % self._stride == 0


def extrapolate(bracketed_ns: int, bracketed: int, seen: int) -> int:
    """All waits of a step, from those that were bracketed."""
    return bracketed_ns * seen // bracketed if bracketed else 0


@dataclass
class _Marks:
    """The events of one step on the compute stream, and its scalars on their way to the host.

    `brackets` are of waits before the last local gradient, of which there were `waits`; later ones lie in the tail.
    """

    asked: torch.cuda.Event
    begin: torch.cuda.Event
    gradient: torch.cuda.Event
    backward_done: torch.cuda.Event
    end: torch.cuda.Event
    scalars: Tensor
    has_gradient: bool = False
    brackets: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    before_tail: tuple[int, int] = (0, 0)


class CudaClock:
    """A GPU: events on the compute stream, read once the device has passed them.

    A wait for other ranks makes the compute stream wait, not the host: an event before it and one after it lie as far
    apart as the stream stood still. On several GPUs this is unverified so far.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: _Marks | None = None
        self._closed: deque[_Marks] = deque()
        self._spare: list[_Marks] = []
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._sampling = Sampling()
        self._main = threading.get_ident()

    def ask(self) -> None:
        """An event behind all work issued so far: the device passes it when it runs out of work."""
        self._open = self._spare.pop() if self._spare else _new_marks()
        self._open.has_gradient = False
        self._open.asked.record()

    def begin(self) -> None:
        """An event before the step's first copy or kernel: an idle device passes it at once."""
        self._sampling.begin()
        self._marks.begin.record()

    def gradient(self) -> None:
        """Recorded again for each gradient; the last stands."""
        marks = self._marks
        marks.gradient.record()
        marks.has_gradient = True
        marks.before_tail = len(marks.brackets), self._sampling.seen

    def backward_done(self) -> None:
        """After DDP made the compute stream wait for its reductions."""
        marks = self._marks
        marks.backward_done.record()
        if not marks.has_gradient:
            marks.before_tail = len(marks.brackets), self._sampling.seen

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Two events around some of the waits; see `Sampling`."""
        if not (self._is_step() and self._sampling.take()):
            yield
            return
        before, after = self._pairs.pop() if self._pairs else (_event(), _event())
        before.record()
        yield
        after.record()
        self._marks.brackets.append((before, after))

    def _is_step(self) -> bool:
        """The training thread, or one of autograd's, which Python did not start; not one that writes a checkpoint."""
        is_ours = threading.get_ident() == self._main or threading.current_thread().name.startswith("Dummy")
        return is_ours and self._open is not None and _is_computing(self._ledger)

    def finish(self, scalars: Tensor) -> None:
        """Start copying the scalars, and mark the end behind the copy."""
        marks = self._marks
        marks.scalars.copy_(scalars, non_blocking=True)
        marks.end.record()
        self._closed.append(marks)
        self._open = None

    def ready(self, wait: bool = False) -> Iterator[Reading]:
        """Readings of steps whose end the device has passed."""
        while self._closed:
            marks = self._closed[0]
            if wait:
                marks.end.synchronize()
            elif not _is_past(marks.end):
                return
            self._closed.popleft()
            yield self._read(marks)

    def _read(self, marks: _Marks) -> Reading:
        loss, norm, refused = marks.scalars.tolist()
        tail_ns = _between_ns(marks.gradient, marks.backward_done) if marks.has_gradient else 0
        idle_ns = _between_ns(marks.asked, marks.begin)
        bracketed, seen = marks.before_tail
        bracketed_ns = sum(_between_ns(*pair) for pair in marks.brackets[:bracketed])
        self._pairs += marks.brackets
        marks.brackets, marks.before_tail = [], (0, 0)
        self._spare.append(marks)
        comm_ns = tail_ns + extrapolate(bracketed_ns, bracketed, seen)
        return Reading(loss, norm, bool(refused), comm_ns, idle_ns)

    @property
    def _marks(self) -> _Marks:
        assert self._open is not None, "ask() comes first"
        return self._open


def _new_marks() -> _Marks:
    return _Marks(_event(), _event(), _event(), _event(), _event(), torch.empty(3, pin_memory=True))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch


def _is_past(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]  # untyped in torch


def _between_ns(earlier: torch.cuda.Event, later: torch.cuda.Event) -> int:
    return max(0, int(earlier.elapsed_time(later) * 1e6))


def attribute(phases: dict[str, int], reading: Reading) -> dict[str, int]:
    """Correct the host's account of a step by what its reading says; the sum stays exactly the same.

    Waits for other ranks that the host did not see are `comm`: the tail of the backward pass, in which only reductions
    run, and on a GPU what the compute stream stood still. A wait for input during which the device
    still had work cost nothing: only the part that it idled too stays `input`, the rest is `compute`.
    """
    if not reading.comm_ns and reading.input_idle_ns is None:
        return phases
    corrected = dict(phases)
    comm_ns = min(reading.comm_ns, corrected.get("compute", 0))
    if comm_ns:
        _move(corrected, "compute", "comm", comm_ns)
    if reading.input_idle_ns is not None:
        hidden_ns = max(0, corrected.get("input", 0) - reading.input_idle_ns)
        if hidden_ns:
            _move(corrected, "input", "compute", hidden_ns)
    return corrected


def _move(phases: dict[str, int], source: str, target: str, ns: int) -> None:
    phases[source] -= ns
    phases[target] = phases.get(target, 0) + ns


#: Of glibc's `mallopt`: give memory at the end of the heap back beyond this, map at most so many blocks apart.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory(environ: Mapping[str, str]) -> bool:
    """Let the C library keep what a step's tensors leave behind, for those of the next step.

    It would give it back to the kernel, and get it again page by page, each filled with zeros: a tenth of a small
    model's step on a CPU. The process holds its peak instead of rising to it at each step. False where the C library is
    another one, or whoever started the process has set the same himself.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(_TRIM_THRESHOLD, (1 << 31) - 1), mallopt(_MMAP_MAX, 0)))


def choose(local_rank: int) -> torch.device:
    """The rank's own GPU, or the CPU where there is none. Raises ConfigError if this machine has too few."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, but this machine has {torch.cuda.device_count()} GPUs; "
            f"nearest legal: --nproc {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def name(device: torch.device) -> str:
    """`cpu` or `cuda:<name of the GPU>`, as the records say it."""
    return "cpu" if device.type == "cpu" else f"cuda:{torch.cuda.get_device_name(device)}"


def allocated_bytes(device: torch.device) -> int | None:
    """The most memory that tensors took so far; None on a CPU, whose allocator does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_bytes(device: torch.device) -> int:
    """The most memory in use so far: allocated on a GPU; on a CPU resident, torch's own code included."""
    allocated = allocated_bytes(device)
    if allocated is not None:
        return allocated
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def clock(device: torch.device, ledger: Ledger) -> Clock:
    """The clock of a device, beside the ledger of the training thread."""
    return HostClock(ledger) if device.type == "cpu" else CudaClock(ledger)

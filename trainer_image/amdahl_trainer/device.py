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
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from amdahl_probe.spans import Ledger
from amdahl_trainer import timeline
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.timeline import Lap, Mark

#: Phases of the host that cost nothing while the device has work. A save is none: it waits for the device to finish.
HIDDEN = ("input", "comm", "other")

#: Waits for other ranks that a GPU's clock brackets in one step, so that what they cost has a bound.
BRACKETS = 16


class Reading(NamedTuple):
    """What became known of one step, beyond the host's ledger.

    Attributes:
        comm_ns: booked as `compute`, but spent waiting for other ranks.
        lap: the device's own account; None where the ledger says it all.
    """

    loss: float
    grad_norm: float
    refused: bool
    comm_ns: int
    lap: Lap | None


class Clock(Protocol):
    """Marks a step's edges and hands its reading back when it is known, steps in order."""

    def ask(self) -> None:
        """A batch is about to be asked for."""

    def begin(self) -> None:
        """The batch is in hand; the next kernel belongs to the step."""

    def mark(self, phase: str) -> None:
        """What is issued from here on belongs to a phase of `timeline.ISSUED`."""

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

    def mark(self, phase: str) -> None:
        """The host's ledger says it all."""

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


class _Edge(NamedTuple):
    """A phase begins: its event on the compute stream, and when the host recorded it."""

    phase: str
    event: torch.cuda.Event
    host_ns: int


class _Bracket(NamedTuple):
    """A wait for other ranks, and the phase that it lies in."""

    phase: str
    before: torch.cuda.Event
    after: torch.cuda.Event


@dataclass
class _Marks:
    """The edges of one step, and its scalars on their way to the host.

    Attributes:
        gradient: the last local gradient so far, recorded anew for each.
        tail: how many edges, brackets and waits there were at it; None before the first.
        brackets: of waits outside the tail, of which there were `waits`.
        before_ns: what the host did since the step before, by `timeline.BEFORE`.
    """

    scalars: Tensor
    gradient: torch.cuda.Event
    gradient_ns: int = 0
    tail: tuple[int, int, int] | None = None
    edges: list[_Edge] = field(default_factory=list)
    brackets: list[_Bracket] = field(default_factory=list)
    waits: int = 0
    before_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def end(self) -> torch.cuda.Event:
        """The last edge."""
        return self.edges[-1].event


class CudaClock:
    """A GPU: events on the compute stream, read once the device has passed them.

    A wait for other ranks makes the compute stream wait, not the host: an event before it and one after it lie as far
    apart as the stream stood still. On several GPUs this is unverified so far.
    """

    def __init__(self, ledger: Ledger, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._ledger = ledger
        self._now = now
        self._open: _Marks | None = None
        self._closed: deque[_Marks] = deque()
        self._last: _Edge | None = None  # of the step read last: where the next one's lap begins
        self._spare: list[_Marks] = []
        self._events: list[torch.cuda.Event] = []
        self._sampling = Sampling()
        self._main = threading.get_ident()

    def ask(self) -> None:
        """An event behind all work issued so far: the device passes it when it runs out of work."""
        self._open = self._spare.pop() if self._spare else _Marks(_scalars(), _event())
        self._edge(timeline.INPUT)

    def begin(self) -> None:
        """An event before the step's first copy or kernel: an idle device passes it at once."""
        self._sampling.begin()
        self._marks.before_ns = {phase: self._ledger.spent(phase) for phase in timeline.BEFORE}
        self._edge(timeline.AGREE)

    def mark(self, phase: str) -> None:
        """An event, unless the phase goes on, or no step is under way: evaluations pass here too."""
        if self._open is not None and self._open.edges[-1].phase != phase:
            self._edge(phase)

    def gradient(self) -> None:
        """Recorded again for each gradient; the last stands."""
        marks = self._marks
        marks.gradient.record()
        marks.gradient_ns = self._now()
        marks.tail = len(marks.edges), len(marks.brackets), self._sampling.seen

    def backward_done(self) -> None:
        """After DDP made the compute stream wait for its reductions; the sum of losses over ranks follows.

        The tail since the last local gradient is all waiting, whatever was seen in it.
        """
        marks = self._marks
        if marks.tail is None:
            self._edge("comm")
            return
        edges, brackets, seen = marks.tail
        self._events += [edge.event for edge in marks.edges[edges:]]
        self._drop(marks.brackets[brackets:])
        del marks.edges[edges:], marks.brackets[brackets:]
        marks.waits = seen - self._sampling.seen
        marks.edges.append(_Edge("comm", marks.gradient, marks.gradient_ns))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Two events around some of the waits; see `Sampling`."""
        if not (self._is_step() and self._sampling.take()):
            yield
            return
        before, after = self._new_event(), self._new_event()
        before.record()
        yield
        after.record()
        marks = self._marks
        marks.brackets.append(_Bracket(marks.edges[-1].phase, before, after))

    def _is_step(self) -> bool:
        """The training thread, or one of autograd's, which Python did not start; not one that writes a checkpoint."""
        is_ours = threading.get_ident() == self._main or threading.current_thread().name.startswith("Dummy")
        return is_ours and self._open is not None and _is_computing(self._ledger)

    def finish(self, scalars: Tensor) -> None:
        """Start copying the scalars, and mark the end behind the copy."""
        marks = self._marks
        marks.scalars.copy_(scalars, non_blocking=True)
        marks.waits += self._sampling.seen
        self._edge(timeline.BETWEEN)
        self._closed.append(marks)
        self._open = None

    def ready(self, wait: bool = False) -> Iterator[Reading]:
        """Readings of steps whose end the device has passed."""
        while self._closed:
            marks = self._closed[0]
            if wait:
                with self._ledger.span("compute"):  # which the device does meanwhile, whatever it is waited for
                    marks.end.synchronize()
            elif not _is_past(marks.end):
                return
            self._closed.popleft()
            yield self._read(marks)

    def _read(self, marks: _Marks) -> Reading:
        loss, norm, refused = marks.scalars.tolist()
        lap = self._account(marks)
        self._recycle(marks)
        return Reading(loss, norm, bool(refused), lap.work_ns["comm"], lap)

    def _account(self, marks: _Marks) -> Lap:
        edges = marks.edges if self._last is None else [self._last, *marks.edges]
        device_ns, on_device = 0, [Mark(edges[0].phase, 0, edges[0].host_ns)]
        for before, edge in pairwise(edges):
            device_ns += _between_ns(before.event, edge.event)
            on_device.append(Mark(edge.phase, device_ns, edge.host_ns))
        bracketed_ns = Counter[str]()
        for bracket in marks.brackets:
            bracketed_ns[bracket.phase] += _between_ns(bracket.before, bracket.after)
        seen = len(marks.brackets), marks.waits
        comm_ns = {phase: extrapolate(ns, *seen) for phase, ns in bracketed_ns.items()}
        return timeline.account(on_device, comm_ns, marks.before_ns, _between_ns(edges[0].event, marks.end))

    def _recycle(self, marks: _Marks) -> None:
        """All may be recorded anew, but for the event with which the next lap begins."""
        if self._last is not None:
            self._events.append(self._last.event)
        *others, self._last = marks.edges
        self._events += [edge.event for edge in others if edge.event is not marks.gradient]
        self._drop(marks.brackets)
        marks.edges, marks.brackets, marks.tail, marks.waits = [], [], None, 0
        self._spare.append(marks)

    def _drop(self, brackets: Iterable[_Bracket]) -> None:
        self._events += [event for bracket in brackets for event in (bracket.before, bracket.after)]

    def _edge(self, phase: str) -> None:
        event = self._new_event()
        event.record()
        self._marks.edges.append(_Edge(phase, event, self._now()))

    def _new_event(self) -> torch.cuda.Event:
        return self._events.pop() if self._events else _event()

    @property
    def _marks(self) -> _Marks:
        assert self._open is not None, "ask() comes first"
        return self._open


def _scalars() -> Tensor:
    return torch.empty(3, pin_memory=True)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch


def _is_past(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]  # untyped in torch


def _between_ns(earlier: torch.cuda.Event, later: torch.cuda.Event) -> int:
    elapsed_ms: float = earlier.elapsed_time(later)
    return max(0, round(elapsed_ms * 1e6))


def attribute(phases: dict[str, int], reading: Reading) -> dict[str, int]:
    """Correct the host's account of a step by what its reading says; the sum stays exactly the same.

    While the device still had work nothing that the host did cost anything: of a wait for input, of agreeing with the
    other ranks, and of what lies between steps only the part that the device idled too stays, the rest is `compute`.
    Waits for other ranks that the host did not see are `comm`: the tail of the backward pass, in which only reductions
    run, and on a GPU what the compute stream stood still.
    """
    if not reading.comm_ns and reading.lap is None:
        return phases
    corrected = dict(phases)
    if reading.lap is not None:
        for phase in HIDDEN:
            hidden_ns = corrected.get(phase, 0) - reading.lap.idle_ns[phase]
            if hidden_ns > 0:
                _move(corrected, phase, "compute", hidden_ns)
    comm_ns = min(reading.comm_ns, corrected.get("compute", 0))
    if comm_ns:
        _move(corrected, "compute", "comm", comm_ns)
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


def set_arithmetic(environ: MutableMapping[str, str], *, deterministic: bool, tf32: bool) -> None:
    """How products and sums are computed from now on. To be said before a GPU is asked for anything.

    cuBLAS repeats itself only with a workspace of its own, which it reads from the environment as it starts
    (docs.nvidia.com/cuda/cublas, "Results reproducibility"). An operation that has no repeatable way raises by name.

    Of torch's two ways to ask for TF32 the newer one makes its compiler fail, which reads the older (pytorch#166387).
    That one rounds a CPU's products as well, so there it is not used.
    """
    if tf32 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    if deterministic:
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # each new tensor would be written once more; torch makes the name a property of the module, unseen by mypy
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)


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

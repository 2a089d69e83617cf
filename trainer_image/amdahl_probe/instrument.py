"""What happens in this training process? One `Probe` turns the events that the patches report into records.

The patches (`loader`, `optim`, `checkpoint`, `comm`) know torch; this file knows the telemetry contract. A process
becomes a *rank* at its first training event (a loader's iterator, a backward pass, an optimizer step); until then, and
for ever in processes that do not train, nothing is written. The rank holds a lock on its number, so a script's helper
processes, which are nobody's rank, stay silent.

[P] Nothing here may break the training: each entry point is `guarded`, and the first failure turns the probe off.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import time
import weakref
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Tuple, TypeVar

from amdahl_probe import device, digests, emit, metrics, place, trial
from amdahl_probe.digests import BatchDigest
from amdahl_probe.draft import Draft
from amdahl_probe.emit import Recorder
from amdahl_probe.hook import ImportWatcher
from amdahl_probe.settings import Settings
from amdahl_probe.spans import Ledger
from amdahl_probe.trace import Trace

Result = TypeVar("Result")

#: Steps that may wait for their device values; an older one is written without its loss.
MAX_LATE_STEPS = 8

#: A loader that is not (yet) known to feed the training may give this many batches before it counts as evaluation.
MAX_PROVISIONAL = 4


def guarded(method: Callable[..., Result]) -> Callable[..., Optional[Result]]:
    """Run a method of the probe, or of an object that has one, only while it is on; a failure turns it off."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Optional[Result]:
        probe: Probe = getattr(self, "probe", self)
        if not probe.on:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            probe.disable(f"{method.__name__}: {type(error).__name__}: {error}")
            return None

    return run


class Probe:
    """The state of one process."""

    def __init__(self, torch: Any, settings: Settings) -> None:
        self.torch = torch
        self.settings = settings
        self.on = True
        self._startup_parts: Dict[str, int] = {}
        self._begin(emit.process_start_ns())
        self._startup_parts["import"] = time.monotonic_ns() - self._begun_ns

    def _begin(self, begun_ns: int) -> None:
        self._begun_ns = begun_ns
        directory = self.settings.directory
        self._trace = Trace(Path(directory)) if self.settings.trace and directory else None
        self.ledger = Ledger(begin_ns=begun_ns, trace=self._trace.spans if self._trace else None)
        self._recorder: Optional[Recorder] = None
        self._early: List[Callable[[Recorder], None]] = []
        self._is_rank: Optional[bool] = None
        self._lock: Optional[int] = None
        self._in_startup = True
        self._asked_ns: Optional[int] = None
        self._is_adopted = False
        self._optimizer: Any = None
        self._step = 0
        self._draft = Draft()
        self._late: Deque[Draft] = deque()
        self._save: Optional[Tuple[int, int, int]] = None
        self._compiled = 0
        self._is_seeded = False
        self._provisional: List[BatchDigest] = []
        self._evaluated_ns = self._provisional_wait_ns = 0

    # -- becoming a rank -------------------------------------------------------------------------------------------

    @guarded
    def is_rank(self) -> bool:
        """Whether this process trains; the first question decides it."""
        if self._is_rank is None:
            in_worker = self.torch.utils.data.get_worker_info() is not None
            self._is_rank = self.settings.is_recording and not in_worker and self._become_rank()
        return self._is_rank

    def _become_rank(self) -> bool:
        rank, world, is_first = place.find(self.torch.distributed, os.environ)
        directory = self.settings.directory
        if directory:
            try:
                self._lock = place.take_lock(Path(directory), rank)
            except BlockingIOError:  # another process of this job is that rank
                return False
        counters = metrics.Metrics({"run": self.settings.run})
        self._recorder = recorder = Recorder(directory, rank, world, counters)
        cuda = self.torch.cuda
        name = f"cuda:{cuda.get_device_name()}" if cuda.is_initialized() else "cpu"
        recorder.start(name, live=False, by="probe", t0_ns=self._begun_ns)
        for write in self._early:
            write(recorder)
        if self.settings.port is not None and is_first:
            try:
                metrics.serve(counters, self.settings.port, self.settings.host, directory)
            except OSError as error:  # a taken port costs the port, not the records
                sys.stderr.write(f"amdahl_probe: no /metrics on port {self.settings.port}: {error}\n")
        gc.callbacks.append(self._collected)
        atexit.register(self.finish)
        return True

    @guarded
    def forked(self) -> None:
        """In a forked child: forget the parent's run. It may be a loader worker, or become a rank of its own."""
        if self._lock is not None:
            os.close(self._lock)
        if self._recorder is not None:
            atexit.unregister(self.finish)
        self._begin(time.monotonic_ns())

    def write(self, write: Callable[[Recorder], None]) -> None:
        """Write a record now, or first thing once this process is a rank."""
        if self._recorder is not None:
            write(self._recorder)
        elif self._is_rank is None and len(self._early) < 64:
            self._early.append(write)

    # -- batches ---------------------------------------------------------------------------------------------------

    @guarded
    def seed(self) -> None:
        """Trial only, once, before the first loader draws: so that both arms begin alike whatever the script did."""
        if self.settings.seed is not None and not self._is_seeded:
            self._is_seeded = True
            trial.seed_generators(self.torch, self.settings.seed)

    @guarded
    def enter_input(self, is_training: bool) -> int:
        """A batch is asked for (or a loader started). Returns the span to be closed with `leave_input`."""
        if self._in_startup:
            return self.ledger.push("startup")
        if not is_training:
            if self.ledger.bottom != "eval":
                self._evaluated_ns, self._provisional_wait_ns = self.ledger.spent("eval"), 0
            self.ledger.rest("eval")
            return self.ledger.push("eval")
        self._end_evaluation()
        return self.ledger.push("input")

    @guarded
    def leave_input(self, span: Optional[int]) -> None:
        """The loader has answered."""
        if span is not None:
            self.ledger.pop(span)

    @guarded
    def ask_first(self) -> None:
        """The first training batch is being asked for: the first step's wall begins here."""
        if self._asked_ns is None:
            self.ledger.take()
            self._asked_ns = self.ledger.mark_ns

    @guarded
    def count_batch(self, batch: Any, indices: Optional[Any], took_ns: Optional[int]) -> None:
        """A training batch is in hand, for which the loader took `took_ns` (None if it did not say)."""
        digest = digests.digest(batch, indices)
        self._draft.batches.append(digest)
        if took_ns is not None:
            self._draft.loader = self._draft.loader.plus(took_ns)
        self._end_startup()
        self.ledger.rest("compute")

    @guarded
    def count_provisional(self, batch: Any, indices: Optional[Any], wait_ns: int) -> None:
        """A batch is in hand that looks like evaluation, unless a backward pass follows before a training batch."""
        self._provisional_wait_ns += wait_ns
        if not self._in_startup and len(self._provisional) < MAX_PROVISIONAL:
            self._provisional.append(digests.digest(batch, indices))

    @guarded
    def add_wait(self, phase: str, host_ns: int, begin: Any, end: Any) -> None:
        """A host wait between two device events: the part the device computed is not `phase`."""
        self._draft.late.waits.append(device.Wait(phase, host_ns, begin, end))

    @guarded
    def add_tail(self, phase: str, begin: Any, end: Any) -> None:
        """Computing between two device events that was really `phase`."""
        self._draft.late.tails.append(device.Tail(phase, begin, end))

    @guarded
    def move(self, source: str, target: str, ns: int) -> None:
        """Charge part of the present step's `source` time to `target` instead."""
        self._draft.moves.append((source, target, ns))

    @guarded
    def add_startup(self, part: str, ns: int) -> None:
        """Part of the startup took `ns`; ignored afterwards."""
        if self._in_startup:
            self._startup_parts[part] = self._startup_parts.get(part, 0) + ns

    @guarded
    def end_epoch(self, is_training: bool) -> None:
        """A loader is exhausted."""
        if not is_training and not self._in_startup:
            self._end_evaluation()

    def _end_evaluation(self) -> None:
        self._provisional.clear()
        if self.ledger.bottom == "eval":
            self.ledger.rest("other")

    def _end_startup(self) -> None:
        if not self._in_startup:
            return
        self._in_startup = False
        now_ns = time.monotonic_ns()
        parts = dict(self._startup_parts)
        if self._asked_ns is not None:
            parts["data"] = now_ns - self._asked_ns
        self.write(lambda recorder: recorder.startup(now_ns - self._begun_ns, parts))

    # -- backward and steps ----------------------------------------------------------------------------------------

    @guarded
    def begin_backward(self, loss: Optional[Any]) -> None:
        """A backward pass begins: this thread is the training thread, and what it was given is training data."""
        if not self.is_rank():
            return
        if not self._is_adopted:
            self._is_adopted = True
            self.ledger.adopt()
        self._end_startup()
        if self._provisional:
            self._promote()
        self.ledger.rest("compute")
        if loss is not None:
            self._draft.late.add_loss(self.torch, loss)

    def _promote(self) -> None:
        """What looked like evaluation was training on a loader not met before: charge its time anew."""
        self._draft.batches += self._provisional
        self._provisional.clear()
        self.ledger.rest("compute")
        took_ns = self.ledger.spent("eval") - self._evaluated_ns
        self.move("eval", "input", self._provisional_wait_ns)
        self.move("eval", "compute", took_ns - self._provisional_wait_ns)

    @guarded
    def end_step(self, optimizer: Any) -> None:
        """An optimizer has stepped; the first one seen marks the steps."""
        if not self.is_rank():
            return
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is not optimizer:
            return
        self._end_startup()
        self._flush_save()
        draft, self._draft = self._draft, Draft()
        phases = self.ledger.take()
        self.ledger.rest("other")
        if self._has_compiled() or self._step == 0:
            draft.tags.append("warmup")
        draft.close(self._step, self.ledger.mark_ns, phases)
        self._step += 1
        self._late.append(draft)
        while self._late and (self._late[0].late.has_arrived() or len(self._late) > MAX_LATE_STEPS):
            self._emit(self._late.popleft())
        if self._trace is not None and self._recorder is not None:
            self._trace.flush(self._recorder.rank)

    def _has_compiled(self) -> bool:
        """Whether torch's compiler has made new code since the last step."""
        dynamo: Any = sys.modules.get("torch._dynamo.utils")
        compiled = dynamo.counters["frames"]["ok"] if hasattr(dynamo, "counters") else 0
        before, self._compiled = self._compiled, compiled
        return bool(compiled != before)

    def _collected(self, moment: str, info: Mapping[str, int]) -> None:
        if moment == "start" and info.get("generation") == 2 and "gc" not in self._draft.tags:
            self._draft.tags.append("gc")

    def _emit(self, draft: Draft) -> None:
        assert self._recorder is not None
        self._recorder.step(draft.to_record())

    # -- checkpoints, collectives, the end -------------------------------------------------------------------------

    @guarded
    def enter(self, phase: str) -> Optional[int]:
        """Open a span, in a rank."""
        return self.ledger.push(phase) if self._is_rank else None

    @guarded
    def leave(self, span: Optional[int]) -> None:
        """Close it."""
        if span is not None:
            self.ledger.pop(span)

    @guarded
    def count_save(self, block_ns: int, in_training_thread: bool) -> None:
        """A file of a checkpoint has been written: by the training thread, or behind its back."""
        if self._recorder is None:
            return
        if not in_training_thread:
            step = self._step
            self._recorder.save(0, True, step)
            self._recorder.durable(0, True, step, block_ns)
            return
        before_ns = self._save[0] if self._save is not None else 0
        self._save = (before_ns + block_ns, self._step, time.monotonic_ns())

    def is_saving(self) -> bool:
        """Whether the training thread has written a file of a checkpoint since the last step."""
        return self._recorder is not None and self._save is not None and self.ledger.is_mine()

    @guarded
    def count_async_save(self, block_ns: int) -> Optional[Callable[[int], None]]:
        """An asynchronous save was handed over; call the result with the total nanoseconds when it is durable."""
        if self._recorder is None:
            return None
        recorder, step = self._recorder, self._step
        recorder.save(block_ns, True, step)
        return lambda total_ns: recorder.durable(block_ns, True, step, total_ns)

    def _flush_save(self) -> None:
        """Files written with no step in between are one checkpoint."""
        if self._save is not None and self._recorder is not None:
            block_ns, step, end_ns = self._save
            self._save = None
            self._recorder.save(block_ns, False, step, end_ns)
            self._recorder.durable(block_ns, False, step, block_ns, end_ns)

    def disable(self, why: str) -> None:
        """Turn the probe off, say so once, and never raise."""
        if not self.on:
            return
        self.on = False
        try:
            sys.stderr.write(f"amdahl_probe: off, the script goes on: {why[: emit.MAX_TEXT]}\n")
            if self._recorder is not None:
                self._recorder.disabled(why)
        except Exception:
            self._recorder = None

    @guarded
    def finish(self) -> None:
        """At exit: what is known by now, without waiting for the device."""
        self._flush_save()
        while self._late:
            self._emit(self._late.popleft())
        raised = getattr(sys, "last_type", None)  # set by the interpreter when an exception ends the script
        assert self._recorder is not None
        self._recorder.end(self._step, f"exception:{raised.__name__}" if raised else "exit")
        if self._trace is not None:
            self._trace.close(self._recorder.rank)
        self._recorder.close()


def install(torch: ModuleType, watcher: ImportWatcher) -> Probe:
    """Patch torch, which has just been imported, and return its probe.

    Raises ValueError for a malformed environment, before any patch.
    """
    probe = Probe(torch, Settings.from_env(os.environ))
    if probe.settings.seed is not None:
        trial.seed_generators(torch, probe.settings.seed)
    os.register_at_fork(after_in_child=probe.forked)
    try:
        _patch(probe, torch, watcher)
    except Exception as error:  # another torch than we know: patches already made let everything through
        probe.disable(f"patching torch: {error!r}")
    watcher.call_after("torch._dynamo", _leave_untraced)
    return probe


def _patch(probe: Probe, torch: ModuleType, watcher: ImportWatcher) -> None:
    from amdahl_probe import checkpoint, comm, loader, optim

    loaders = loader.install(probe, torch)
    if probe.settings.is_recording:
        optim.install(probe, torch, loaders)
        comm.install(probe, torch)
        checkpoint.install(probe, torch, watcher)


def _leave_untraced(_: ModuleType) -> None:
    """Tell the compiler to run the probe's functions as they are, where this torch has a way to be told."""
    try:
        from torch._dynamo import trace_rules

        trace_rules.add("amdahl_probe")
    except Exception:  # an older torch: it breaks the graph at our functions, which is correct and slower
        return

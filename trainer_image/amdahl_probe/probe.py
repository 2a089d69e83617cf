"""What happens in this training process? One `Probe` turns the events that the patches report into records.

The patches (`loader`, `optim`, `forwards`, `checkpoint`, `comm`) know torch; this file knows which event means what for
the time line; what a rank, a startup, a step, a save and an evaluation are, is said in the files of these names.

What every step runs through is flat: `loader.Stream.ask` and `answer`, `optim.Backwards.begin`, `begin_backward` and
`end_step` here, and what these call in `spans`, `digests`, `steps`, `draft` and `emit`. It runs cold: milliseconds of
other code have emptied the caches before each call, so that whatever is touched for the first time costs, an operation
of torch 10 us, a formatted float or a lock 5 us, ten times what a loop would show (`benchmarks/probe_overhead.py`). So
`is_steady` says in one comparison that nothing unusual goes on, and then nothing is asked, built or written twice.

[P] Nothing here may break the training: what the patches call is `guarded`, here or where they call it from, and the
first failure turns the probe off.
"""

from __future__ import annotations

import atexit
import gc
import sys
import time
from pathlib import Path
from threading import get_ident
from typing import Any, Callable, Dict, Mapping, Optional

from amdahl_probe import device, emit, trial
from amdahl_probe.emit import Recorder
from amdahl_probe.evaluation import Evaluation
from amdahl_probe.forwards import Forwards
from amdahl_probe.guarding import Switch, guarded
from amdahl_probe.rank import Rank
from amdahl_probe.saves import Saves
from amdahl_probe.settings import Settings
from amdahl_probe.spans import Ledger
from amdahl_probe.startup import Startup
from amdahl_probe.steps import Steps
from amdahl_probe.trace import Trace


class Probe(Switch):
    """The state of one process."""

    def __init__(self, torch: Any, settings: Settings) -> None:
        super().__init__()
        self.torch = torch
        self.settings = settings
        self.forwards = Forwards(self, torch, self.begin_forward)
        self._begin(emit.process_start_ns(), {})
        self._startup.add("import", time.monotonic_ns() - self._startup.begun_ns)

    def _begin(self, begun_ns: int, parts: Dict[str, int]) -> None:
        directory = self.settings.directory
        self._trace = Trace(Path(directory)) if self.settings.trace and directory else None
        self.ledger = Ledger(begin_ns=begun_ns, trace=self._trace.spans if self._trace else None)
        self._rank = Rank(self.torch, self.settings, begun_ns)
        self._startup = Startup(begun_ns, parts)
        self.steps = Steps()
        self._saves = Saves(self._rank)
        self._evaluation = Evaluation(self.ledger, self._rest)
        self._is_adopted = self._is_seeded = self._is_fed = False
        self.is_in_backward = self.has_stepped_in_backward = False
        #: This process is a rank, its startup is over, and no evaluation can be open.
        self.is_steady = False
        #: A device has been seen at work.
        self.has_device = False

    def _rest(self, phase: str) -> None:
        """Change what time counts as when no span is open; between steps, wait for a module's call to change it."""
        if not self.ledger.is_mine():
            return
        self.ledger.rest(phase)
        if phase == "compute":
            self.forwards.ignore()
        elif phase == "other":
            self.forwards.watch()

    # -- the process -----------------------------------------------------------------------------------------------

    def is_rank(self) -> bool:
        """Whether this process trains; the first question decides it."""
        if self._rank.trains is None and self._rank.decide():
            gc.callbacks.append(self._collected)
            atexit.register(self.finish)
        return bool(self._rank.trains)

    def _collected(self, moment: str, info: Mapping[str, int]) -> None:
        if info["generation"] == 2 and moment == "start":
            self.steps.note_collection()

    @guarded
    def forked(self) -> None:
        """In a forked child: forget the parent's run. It may be a loader worker, or become a rank of its own."""
        self.forwards.ignore()
        self._rank.release()
        if self._rank.recorder is not None:
            atexit.unregister(self.finish)
        self._begin(time.monotonic_ns(), self._startup.parts)

    def write(self, write: Callable[[Recorder], None]) -> None:
        """Write a record now, or first thing once this process is a rank."""
        self._rank.write(write)

    def note_disabled(self, why: str) -> None:
        """Take the hook away, and write the last record if there is anywhere to write it."""
        self.forwards.ignore()
        if self._rank.recorder is not None:
            self._rank.recorder.disabled(why)

    @guarded
    def finish(self) -> None:
        """At exit: what is known by now, without waiting for the device."""
        recorder = self._rank.recorder
        assert recorder is not None
        self._saves.flush()
        self.steps.write(recorder, is_last=True)
        raised = getattr(sys, "last_type", None)  # set by the interpreter when an exception ends the script
        recorder.end(self.steps.count, f"exception:{raised.__name__}" if raised else "exit")
        if self._trace is not None:
            self._trace.close(recorder.rank)
        recorder.close()

    # -- batches ---------------------------------------------------------------------------------------------------

    @guarded
    def seed(self) -> None:
        """Trial only, once, before the first loader draws: so that both arms begin alike whatever the script did."""
        if self.settings.seed is not None and not self._is_seeded:
            self._is_seeded = True
            trial.seed_generators(self.torch, self.settings.seed)

    def enter_input(self, is_training: bool) -> int:
        """A batch is asked for (or a loader started). Returns the span to be closed with `leave_input`."""
        if not self._startup.is_over or not self.ledger.is_mine():
            return self.ledger.push("startup")
        if is_training:
            self._evaluation.end()
            self.is_steady = self._is_adopted
        else:
            self.is_steady = False
            self._evaluation.begin()
        self.forwards.ignore()  # a data set may call modules too
        return self.ledger.push("input" if is_training else "eval")

    def leave_input(self, span: int) -> None:
        """The loader has answered."""
        self.ledger.pop(span)

    def ask_first(self) -> None:
        """A training batch is being asked for; the first such moment matters."""
        self._startup.ask_first(self.ledger)

    def begin_training(self) -> None:
        """A training batch is in hand, and anything may have gone before."""
        self._is_fed = True
        self._startup.end(self._rank)
        self._rest("compute")

    def count_provisional(self, batch: Any, indices: Optional[Any], wait_ns: int) -> None:
        """A batch is in hand that looks like evaluation, unless a backward pass follows before a training batch.

        Where a loader feeds the training, its next batch ends the evaluation; elsewhere, a module's call does.
        """
        self.is_steady = False
        self._evaluation.add(batch, indices, wait_ns, in_startup=not self._startup.is_over)
        if self._startup.is_over and not self._is_fed:
            self.forwards.watch()

    def end_request(self, is_over: bool) -> None:
        """There was no batch: a loader has been started, or an evaluation `is_over` with its loader's last one."""
        if is_over and self._startup.is_over:
            self._evaluation.end()
        self._rest(self.ledger.bottom)

    # -- forward and backward passes, steps --------------------------------------------------------------------------

    def begin_forward(self, is_recording: bool, is_training: bool) -> None:
        """Between steps, a model is called: with gradients recorded or not, in training mode or not."""
        if is_recording and is_training:
            self._evaluation.interrupt()
        else:
            self.is_steady = False
            self._evaluation.call(is_certain=not is_recording)

    def begin_backward(self, loss: Optional[Any]) -> None:
        """A backward pass begins: this thread is the training thread, and what it was given is training data.

        `loss` is a tensor of one element, if it was given one.
        """
        if not self.is_steady and not self._settle():
            return
        self.is_in_backward = True
        if self.ledger.bottom != "compute":
            self._rest("compute")
        if loss is None:
            return
        draft = self.steps.draft
        if loss.is_cpu:
            draft.loss = loss.item() if draft.loss is None else draft.loss + loss.item()
        elif loss.is_cuda:
            self.has_device = True
            draft.await_device().add_loss(self.torch, loss.detach())

    def _settle(self) -> bool:
        """What a backward pass means when anything else went before it; False where nobody trains."""
        if not self.is_rank():
            return False
        if not self._is_adopted:
            self._is_adopted = True
            self.ledger.adopt()
        self._startup.end(self._rank)
        if self._evaluation.is_provisional:
            self._evaluation.promote(self.steps.draft)
        self.is_steady = True
        return True

    def end_backward(self) -> None:
        """It has returned. Optimizers that are stepped by its hooks end their steps here."""
        if self.has_stepped_in_backward:
            self.has_stepped_in_backward = False
            self._rest("other")

    @guarded
    def begin_update(self) -> None:
        """An optimizer begins to step when the step has ended with another: it is one of several."""
        self._rest("compute")

    @guarded
    def end_step(self, optimizer: Any, *_: Any) -> None:
        """An optimizer has stepped."""
        if not self.is_steady:
            if not self.is_rank():
                return
            self._startup.end(self._rank)
        recorder, bottom = self._rank.recorder, None if self.is_in_backward else "other"
        assert recorder is not None
        if bottom is None:
            self.has_stepped_in_backward = True
        if not self.steps.are_marked_by(optimizer):
            if bottom is not None:
                self._rest(bottom)
            return
        if self._saves.open is not None:
            self._saves.flush()
        self.steps.end(self.ledger, bottom)
        if bottom is not None and self.ledger.owner == get_ident():
            self.forwards.watch()
        self.steps.write(recorder)
        if self._trace is not None:
            self._trace.flush(recorder.rank)

    # -- time that is charged otherwise ----------------------------------------------------------------------------

    def add_wait(self, phase: str, host_ns: int, begin: Any, end: Any) -> None:
        """A host wait between two device events: the part the device computed is not `phase`."""
        self.steps.draft.await_device().waits.append(device.Wait(phase, host_ns, begin, end))

    def add_tail(self, phase: str, begin: Any, end: Any) -> None:
        """Computing between two device events that was really `phase`."""
        self.steps.draft.await_device().tails.append(device.Tail(phase, begin, end))

    def move(self, source: str, target: str, ns: int) -> None:
        """Charge part of the present step's `source` time to `target` instead."""
        self.steps.draft.moves += ((source, target, ns),)

    @guarded
    def add_startup(self, part: str, ns: int) -> None:
        """Part of the startup took `ns`; ignored afterwards."""
        self._startup.add(part, ns)

    # -- checkpoints and collectives -------------------------------------------------------------------------------

    @guarded
    def enter(self, phase: str) -> Optional[int]:
        """Open a span, in a rank."""
        return self.ledger.push(phase) if self._rank.trains else None

    @guarded
    def leave(self, span: Optional[int]) -> None:
        """Close it."""
        if span is not None:
            self.ledger.pop(span)

    @guarded
    def count_save(self, block_ns: int, in_training_thread: bool) -> None:
        """A file of a checkpoint has been written: by the training thread, or behind its back."""
        self._saves.add(block_ns, in_training_thread, self.steps.count)

    def is_saving(self) -> bool:
        """Whether the training thread, which is this one, has written a file of a checkpoint since the last step."""
        return self._saves.is_open and self.ledger.is_mine()

    @guarded
    def count_async_save(self, block_ns: int) -> Optional[Callable[[int], None]]:
        """An asynchronous save was handed over; call the result with the total nanoseconds when it is durable."""
        return self._saves.add_async(block_ns, self.steps.count)

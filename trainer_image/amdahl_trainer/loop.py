"""What happens in one step, in which order, and to which phase does its time go? The step engine.

A lap of the ledger runs from the end of one optimizer step to the end of the next, so whatever happens between steps
(a save, an evaluation, a change of knobs) is in the account of the step that follows it.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from amdahl_probe.emit import Batches
from amdahl_probe.spans import PHASES, Ledger
from amdahl_trainer import device as devices
from amdahl_trainer import flops, knobs, optim, waits
from amdahl_trainer.chief import Step
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.config import Config
from amdahl_trainer.data.counts import Bad
from amdahl_trainer.data.loader import Batch, Loader, check_bad
from amdahl_trainer.device import Clock
from amdahl_trainer.errors import NonFiniteError
from amdahl_trainer.knobs import KnobFile, Knobs, Update, Window
from amdahl_trainer.mesh import Seat
from amdahl_trainer.peers import Agreement, Peers, Place, Told
from amdahl_trainer.profiler import Profiler
from amdahl_trainer.replica import Replica
from amdahl_trainer.report import Reporter, count_squares, describe

_NO_BATCHES = Batches()


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    config: Config
    place: Place
    device: torch.device
    peers: Peers
    seat: Seat
    replica: Replica
    optimizer: torch.optim.Optimizer
    loader: Loader
    checkpoints: Checkpoints
    clock: Clock
    ledger: Ledger
    reporter: Reporter
    peak: float | None
    profiler: Profiler
    evaluate: Callable[[], float]
    wants_stop: Callable[[], bool]
    knob_file: KnobFile
    is_trial: bool


class Engine:
    """Runs steps until there is a reason not to."""

    def __init__(self, parts: Parts, progress: Progress, settings: Knobs, seq: int) -> None:
        self.parts = parts
        self.progress = progress
        self.knobs = settings
        self.seq = seq
        self.save_every: int | None = None  # a trial window's own cadence
        self.steps = 0
        self._pending: deque[Step] = deque()
        self._untold: dict[str, int] = {}  # phases of laps that the other ranks do not know of
        self._untold_launch_ns = 0
        self._bad: set[Bad] = set()  # left out by any rank
        self._tags: list[str] = ["warmup"]
        self._last_saved = progress.step
        self._last_saved_s = time.monotonic()

    def run(self, startup: Callable[[], None]) -> bool:
        """Train to the end, or to a request to stop. True if the run is finished.

        `startup` is called once, with the first batch in hand.

        Raises:
            NonFiniteError: the loss or the gradients are not finite; the parameters are those before that step.
            BadSamplesError: ranks have left out more than they may.
        """
        with waits.told_to(self.parts.clock.waiting, has_graphs=self.parts.config.run.compile != "none"):
            self._train(startup)
        return self._is_finished()

    def _train(self, startup: Callable[[], None]) -> None:
        parts = self.parts
        self._leave_untold(parts.ledger.take())  # the first step begins when the first batch is asked for
        parts.clock.ask()
        batch = parts.loader.next() if not self._is_finished() else None
        startup()
        while batch is not None:
            news = parts.knob_file.poll()
            parts.ledger.rest("compute")
            parts.clock.begin()
            agreed = self._agree(batch, news)
            if agreed.stop:
                break
            self._take_step(batch, agreed)
            self._between(news, agreed)
            batch = self._next_batch()
        self._end()

    def _agree(self, batch: Batch, news: str | None) -> Agreement:
        """Before each step the ranks tell each other what they have, want and did."""
        parts = self.parts
        squares = count_squares(batch, doc_mask=parts.config.data.doc_mask)
        valid, squares = (batch.valid, squares) if parts.seat.reads else (0, 0)
        bad = parts.loader.take_bad()
        with parts.ledger.span("comm"):
            told = self._tell(squares, len(bad))._replace(due=self._is_save_due())
            agreed = parts.peers.agree(valid, parts.wants_stop(), news is not None, told)
            if agreed.told.bad:
                self._bad.update(parts.peers.gather(bad))
                check_bad(self._bad, parts.config.data.max_bad_samples)
        return agreed

    def _is_save_due(self) -> bool:
        """By rank 0's clock, for all ranks; in a trial windows alone say when to save."""
        every_s = self.parts.config.checkpoint.every_seconds
        asks = every_s > 0 and self.parts.place.rank == 0 and not self.parts.is_trial
        return asks and time.monotonic() - self._last_saved_s >= every_s

    def _leave_untold(self, phases: Mapping[str, int]) -> None:
        if not self._untold:
            self._untold = dict(phases)
            return
        for phase, ns in phases.items():
            self._untold[phase] = self._untold.get(phase, 0) + ns

    def _tell(self, squares: int = 0, bad: int = 0) -> Told:
        """What this rank spent since it last told, beside what it has for the step."""
        untold, self._untold = self._untold, {}
        launch_ns, self._untold_launch_ns = self._untold_launch_ns, 0
        return Told(squares, [untold.get(phase, 0) for phase in PHASES], bad, launch_ns)

    def _end(self) -> None:
        """All ranks come here together, with the run finished or a request to stop."""
        parts = self.parts
        parts.ledger.rest("other")
        self._read(wait=True)
        if self.progress.step > self._last_saved:
            self._save(asynchronous=False)
        self._report_durable(wait=True)
        self._leave_untold(parts.ledger.take())
        agreed = parts.peers.agree(0, stop=False, news=False, told=self._tell())
        parts.reporter.finish(agreed, self.progress.step, devices.peak_bytes(parts.device))

    def _is_finished(self) -> bool:
        """A trial is ended by its supervisor, not by the number of steps that the job has left."""
        return self.progress.step >= self.parts.config.run.max_steps and not self.parts.is_trial

    def _next_batch(self) -> Batch | None:
        if self._is_finished():
            return None
        self.parts.clock.ask()
        with self.parts.ledger.span("input"):
            return self.parts.loader.next()

    def _take_step(self, batch: Batch, agreed: Agreement) -> None:
        """One step, recorded where it is due. Recording belongs to its lap, writing the trace to the next one's."""
        profiler, number = self.parts.profiler, self.progress.step + 1
        if not profiler.is_due(number):
            self._step(batch, agreed)
            return
        self._tags.append("profile")
        with profiler.record(number) as found:
            self._step(batch, agreed)
        self._tags.append("profile")
        for profile in found:
            self.parts.reporter.profiled(profile)

    def _step(self, batch: Batch, agreed: Agreement) -> None:
        parts, config = self.parts, self.parts.config
        loss = parts.replica.accumulate(batch.packed, agreed.valid)
        parts.clock.backward_done()
        with parts.ledger.span("comm"):
            loss = parts.peers.total(loss)
        parts.clock.mark("optimizer")
        lr = optim.learning_rate(self.progress.step, config.optim, config.decay_steps)
        norm, refused = optim.apply(parts.optimizer, config.optim, lr, loss, parts.replica.stages)
        parts.clock.finish(torch.stack((loss, norm, refused)))
        self.progress = Progress(self.progress.step + 1, parts.loader.position)
        phases = parts.ledger.take(bottom="other")
        if "warmup" in phases and "warmup" not in self._tags:
            self._tags.append("warmup")  # torch compiled in this lap
        tags, self._tags = tuple(self._tags), []
        step = Step(
            number=self.steps,
            total=self.progress.step,
            end_ns=parts.ledger.mark_ns,
            phases=phases,
            batch=describe(batch, parts.seat.reads),
            loader=_NO_BATCHES.plus(batch.cost_ns),
            valid=agreed.valid,
            squares=agreed.told.squares,
            lr=lr,
            seq=self.seq,
            tags=tags,
            peak_bytes=devices.allocated_bytes(parts.device),
        )
        self.steps += 1
        self._pending.append(step)
        parts.reporter.agreed(agreed, parts.checkpoints.durable)
        self._read()

    def _read(self, wait: bool = False) -> None:
        """Write the records of steps whose reading has come."""
        parts = self.parts
        for reading in parts.clock.ready(wait):
            step = self._pending.popleft()
            cost = None if parts.peak is None else self._cost(step)
            phases = parts.reporter.step(step, reading, cost, parts.peak)
            self._leave_untold(phases)
            if reading.lap is not None:
                self._untold_launch_ns += reading.lap.bound_of(phases)
            if step.total % parts.config.metrics.log_every == 0:
                parts.reporter.line(step, reading)
            if reading.refused:
                self._report_durable(wait=True)  # what is being written is good
                raise NonFiniteError(
                    f"step {step.total}: loss {reading.loss}, gradient norm {reading.grad_norm}; the step was refused, "
                    f"the newest checkpoint is of step {parts.checkpoints.durable}; lower optim.lr or look at the data"
                )

    def _cost(self, step: Step) -> flops.PerToken:
        """FLOPs of a token of this step, whose documents are as long as they are."""
        config = self.parts.config
        return flops.per_token(config.model, config.data.seq_len, step.squares / step.valid if step.valid else 0.0)

    def _between(self, news: str | None, agreed: Agreement) -> None:
        """Everything that may happen at a step boundary."""
        config, step = self.parts.config, self.progress.step
        every = self.knobs.checkpoint_every if self.save_every is None else self.save_every
        self._report_durable()
        if agreed.told.due or (every and step % every == 0):
            self._save(self.knobs.async_checkpoint)
        if config.eval.every_steps and step % config.eval.every_steps == 0:
            self._evaluate()
        if step % config.run.gc_every == 0:
            gc.collect()
            self._tags.append("gc")
        if agreed.news:
            text = self.parts.peers.broadcast(news)
            assert text is not None, "rank 0 had news"
            self.apply(text)

    def _evaluate(self) -> None:
        self._read(wait=True)  # what the device has not finished is no part of the evaluation
        self._tags.append("eval")
        with self.parts.ledger.span("eval"):
            bits = self.parts.evaluate()
        self.parts.reporter.say(f"step {self.progress.step:>6}  held out: {bits:.4f} bits/byte")

    def _save(self, asynchronous: bool) -> None:
        """Save with all ranks; asynchronously training waits only for the copy, and for a save still under way."""
        parts = self.parts
        self._read(wait=True)  # a refused step must be known before its state is kept
        if "ckpt" not in self._tags:
            self._tags.append("ckpt")
        begun_ns = time.monotonic_ns()
        with parts.ledger.span("checkpoint"):
            parts.checkpoints.save(parts.replica.model, parts.optimizer, self.progress, asynchronous)
            parts.peers.barrier()
        block_ns = time.monotonic_ns() - begun_ns
        self._last_saved, self._last_saved_s = self.progress.step, time.monotonic()
        parts.reporter.recorder.save(block_ns, asynchronous, self.progress.step)
        if not asynchronous:
            parts.reporter.recorder.durable(block_ns, False, self.progress.step, block_ns)

    def _report_durable(self, wait: bool = False) -> None:
        """Say which checkpoints written in the background have become durable."""
        parts = self.parts
        with parts.ledger.span("checkpoint"):
            written = parts.checkpoints.finished(wait)
        for one in written:
            parts.reporter.recorder.durable(one.block_ns, True, one.step, one.total_ns)

    def apply(self, text: str) -> bool:
        """Take a knob file's content into force: all ranks at this boundary, always with a new loader.

        False if the content is malformed, which is reported and changes nothing.
        """
        parts, recorder = self.parts, self.parts.reporter.recorder
        update = knobs.parse(text)
        if isinstance(update, str):
            parts.reporter.say(f"knob file left alone: {update}")
            recorder.knob(self.seq, {}, {"file": update})
            return False
        outcome = knobs.apply(update.values, self.knobs, parts.place, has_gpu=parts.device.type == "cuda")
        self.knobs, self.seq = outcome.knobs, update.seq
        recorder.knob(self.seq, outcome.applied, outcome.ignored)
        self.enter_window(update)
        self.open_loader()
        return True

    def open_loader(self) -> None:
        """Start the loader anew at the present position, with the knobs in force."""
        self.parts.loader.open(self.progress.position, self.knobs.loader)

    def enter_window(self, update: Update) -> None:
        """In a trial, go to the window's place in the data; an ordinary run never moves."""
        window = update.window or Window(None, None, None)
        if not self.parts.is_trial:
            if update.window is not None:
                self.parts.reporter.recorder.knob(self.seq, {}, {"window": "not a trial: AMDAHL_TRIAL is not 1"})
            return
        self.save_every = window.save_every
        self.progress = enter(window, self.progress, self.parts.loader, self.parts.config.run.seed)
        if window.offset is not None or window.seed is not None:
            self.parts.reporter.recorder.offset(self.seq, self.progress.position, window.seed, True)


def enter(window: Window, progress: Progress, loader: Loader, run_seed: int) -> Progress:
    """Where a trial's window begins. Its seed reseeds torch and, with the run's own, orders the samples."""
    if window.seed is not None:
        torch.manual_seed(window.seed)
        loader.order = loader.order.with_seed(run_seed * 1_000_003 + window.seed)
    if window.offset is None:
        return progress
    return replace(progress, position=window.offset % loader.order.samples)

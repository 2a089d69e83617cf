"""What does rank 0 say for all ranks? The journal, the account of the run, and how far it is.

Ranks tell each other before a step how they spent the laps since they last told. The journal's line of a step is
therefore written one step late, with the sum over all ranks and the rank that the others waited for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

from amdahl_probe import digests
from amdahl_probe.emit import Batches
from amdahl_probe.metrics import Family
from amdahl_probe.spans import PHASES
from amdahl_trainer import console, journal
from amdahl_trainer.config import Config
from amdahl_trainer.console import Facts, Interval
from amdahl_trainer.device import Reading
from amdahl_trainer.goodput import Account, Began, Book, Spent
from amdahl_trainer.journal import Journal
from amdahl_trainer.kubeflow import Address, Sink, State
from amdahl_trainer.peers import NOTHING, Agreement, Told
from amdahl_trainer.timeline import Lap

#: Steps after which an account is written though no checkpoint has become durable: what a restart reads at most.
SETTLED_EVERY = 1000

_OF_RUN = "Device time of the run over its restarts; useful and badput are all that is held."


class Step(NamedTuple):
    """One finished step as the host knows it; its reading may come later.

    `valid` tokens and `squares` (of the lengths of documents, summed) are of all ranks.
    """

    number: int
    total: int
    end_ns: int
    phases: dict[str, int]
    batch: digests.BatchDigest
    loader: Batches
    valid: int
    squares: int
    lr: float
    seq: int
    tags: tuple[str, ...]
    peak_bytes: int | None = None  # that tensors took so far, where the allocator counts


@dataclass(frozen=True)
class Outlets:
    """Where rank 0 writes: the journal and, if asked for, Kubeflow's progress. `book` holds the attempts before."""

    journal: Journal
    sink: Sink | None
    book: Book


def open_outlets(config: Config, environ: Mapping[str, str], resumed_step: int) -> Outlets:
    """What the configuration asks for; in a trial nothing, since a trial is no part of the run.

    Raises:
        ConfigError: Kubeflow's progress is asked for, and the pod was not told where to post it.
    """
    is_trial = environ.get("AMDAHL_TRIAL") == "1"
    path = None if is_trial or not config.metrics.jsonl else Path(config.run.out_dir, journal.NAME)
    book = Book(journal.read(path, resumed_step)) if path is not None else Book()
    is_told = config.metrics.kubeflow_status and not is_trial
    return Outlets(Journal(path), Sink(Address.from_environ(environ)) if is_told else None, book)


class Chief:
    """Rank 0, where it speaks for the run."""

    def __init__(self, outlets: Outlets, facts: Facts, run: str) -> None:
        """An attempt begins."""
        self.journal = outlets.journal
        self._sink = outlets.sink
        self._book = outlets.book
        self._facts = facts
        self._waiting: list[tuple[int, str]] = []
        self._told = NOTHING
        self._step = self._settled_step = facts.resumed_step
        self._durable: int | None = facts.resumed_step or None
        self._peak_bytes: int | None = None
        self._is_finished = False
        self._slow = console.find_straggler((0,))  # of the last step
        self._excess_ns = 0  # of all steps
        self._work_ns: Mapping[str, int] = {}  # of this rank's device, where it has a clock
        self._idle_ns: Mapping[str, int] = {}
        self._book.add(Began(facts.resumed_step))
        self.journal.write("start", {"run": run, "attempt": self._book.attempts, **asdict(facts)})

    def step(self, step: Step, reading: Reading, phases: Mapping[str, int], mfu: Mapping[str, float]) -> None:
        """A step of this rank whose reading is known. Its line waits for what the others tell."""
        self._peak_bytes = step.peak_bytes
        self._waiting.append((step.total, _render_own(step, reading, phases, mfu, self._facts.step_slots)))
        if reading.lap is not None:  # new ones, since another thread may look at the old
            self._work_ns = _sum(self._work_ns, reading.lap.work_ns)
            self._idle_ns = _sum(self._idle_ns, reading.lap.idle_ns)

    def agreed(self, agreement: Agreement, durable_step: int | None) -> None:
        """Write the lines that waited. The last one gets what all ranks have told since the line before."""
        self._told = _add_told(self._told, agreement.told)
        if self._waiting:
            *others, (self._step, own) = self._waiting
            for _, line in others:
                self.journal.append("step", line)
            self._slow = slow = console.find_straggler(agreement.busy_ns)
            self._excess_ns += slow.excess_ns
            launch = f'"all_launch_bound_ns":{ns},' if (ns := self._told.launch_ns) else ""
            durable = "null" if durable_step is None else durable_step
            self.journal.append(
                "step",
                f'{own},{launch}"all_ns":{_render_ns(self._count())},"ranks":{{"slowest":{slow.rank},'
                f'"excess_ns":{slow.excess_ns},"busy_max_ns":{slow.most_ns},"busy_min_ns":{slow.least_ns}}},'
                f'"durable_step":{durable}',
            )
            self._waiting.clear()
        if durable_step != self._durable or self._step - self._settled_step >= SETTLED_EVERY:
            self._durable = durable_step
            self.journal.turn()
            self._settle()

    def _settle(self) -> Account:
        """Write what it comes to so far, behind which the next attempt need not look."""
        self._settled_step = self._step
        account = self._book.account()
        self.journal.write("goodput", {"step": self._step, **_render(account)})
        return account

    def families(self) -> dict[str, Family]:
        """What `/metrics` shows of all ranks, up to the last step whose line is written. Another thread may ask."""
        account = self._book.account()
        badput = {f'cause="{cause}"': ns / 1e9 for cause, ns in account.badput_ns.items()}
        excess = "Busy time of each step's slowest rank beyond the median rank's."
        peak = "Most bytes of the device's memory that tensors of rank 0 took so far."
        found = {} if self._peak_bytes is None else {"amdahl_peak_bytes": Family("gauge", peak, {"": self._peak_bytes})}
        return found | {
            "amdahl_rank_excess_seconds_total": Family("counter", excess, {"": self._excess_ns / 1e9}),
            "amdahl_straggler_rank": Family("gauge", "Slowest rank of the last step.", {"": self._slow.rank}),
            "amdahl_goodput_ratio": Family("gauge", "Useful over held device time.", {"": account.share}),
            "amdahl_useful_device_seconds": Family("gauge", _OF_RUN, {"": account.useful_ns / 1e9}),
            "amdahl_badput_device_seconds": Family("gauge", _OF_RUN, badput),
            **(self._of_device(account) if self._work_ns else {}),
        }

    def _of_device(self, account: Account) -> dict[str, Family]:
        work = {f'phase="{phase}"': ns / 1e9 for phase, ns in self._work_ns.items()}
        idle = {f'cause="{cause}"': ns / 1e9 for cause, ns in self._idle_ns.items()}
        launch = "At most so much of the useful device time was idle, at Python's pace."
        return {
            "amdahl_device_work_seconds_total": Family("counter", "Time on this rank's device by phase.", work),
            "amdahl_device_idle_seconds_total": Family("counter", "Time without work by what the host did.", idle),
            "amdahl_launch_bound_device_seconds": Family("gauge", launch, {"": account.launch_ns / 1e9}),
        }

    def _count(self) -> dict[str, int]:
        """Enter what was told into the account."""
        phases = {phase: ns for phase, ns in zip(PHASES, self._told.spent, strict=True) if ns}
        self._book.add(Spent(self._step, phases, self._told.launch_ns))
        self._told = NOTHING
        return phases

    def line(self, step: Step, reading: Reading, interval: Interval) -> str:
        """The console line, of the steps of an interval."""
        last = self._facts.last_step
        if self._sink is not None:
            figures = {"loss": reading.loss, "tokens_per_s": interval.tokens_per_s}
            self._sink.post(State(step.total, last, (last - step.total) * interval.step_s, figures))
        model = f"loss {reading.loss:7.4f}  grad {reading.grad_norm:6.2f}  lr {step.lr:.2e}"
        return f"step {step.total:>6}/{last}  {model}  {interval.describe()}"

    def finish(self, agreement: Agreement, step: int, peak_bytes: int) -> str:
        """The last agreement of an attempt that ends well: close the account, and say what it comes to."""
        self._durable = step
        self.agreed(agreement, step)
        self._step, self._is_finished = step, True
        self.journal.write("end", {"step": step, "all_ns": self._count(), "why": "saved", "peak_bytes": peak_bytes})
        account = self._settle()
        is_resident = self._facts.device == "cpu"
        return console.summarise(account, self._facts, peak_bytes, is_resident=is_resident)

    def close(self, why: str) -> None:
        """No more is said. An attempt that did not end well is accounted for as far as ranks have told."""
        if not self._is_finished:
            for _, own in self._waiting:
                self.journal.append("step", own)
            self.journal.write("end", {"step": self._step, "all_ns": self._count(), "why": why})
            self._settle()
        self.journal.close()
        if self._sink is not None:
            self._sink.close()


def _add_told(before: Told, now: Told) -> Told:
    """All that was told and is not written yet; as a rule there is nothing but the newest."""
    if before is NOTHING:
        return now
    return Told(spent=[*map(add, before.spent, now.spent)], launch_ns=before.launch_ns + now.launch_ns)


def _render(account: Account) -> dict[str, Any]:
    launch = {"launch_bound_ns": account.launch_ns} if account.launch_ns else {}
    return {
        "attempts": account.attempts,
        "held_ns": account.held_ns,
        "useful_ns": account.useful_ns,
        "badput_ns": dict(account.badput_ns),
        "goodput": account.share,
        **launch,
    }


def _render_own(step: Step, reading: Reading, phases: Mapping[str, int], mfu: Mapping[str, float], slots: int) -> str:
    """What this rank knows of a step, as JSON. By hand: no name needs escapes, and an encoder takes thrice as long."""
    spent = {phase: ns for phase, ns in phases.items() if ns}
    return (
        f'"step":{step.total},"wall_ns":{sum(spent.values())},"phases_ns":{_render_ns(spent)},'
        f'"loss":{_render_number(reading.loss)},"grad_norm":{_render_number(reading.grad_norm)},"lr":{step.lr},'
        f'"tokens":{{"slots":{slots},"valid":{step.valid},"pad":{slots - step.valid},"sum_len_sq":{step.squares}}},'
        f'"mfu":{journal.encode(mfu) if mfu else "null"},'
        f'"loader":{{"batches":{step.loader.batches},"sum_ns":{step.loader.sum_ns}}},"knob_seq":{step.seq},'
        f'"peak_bytes":{"null" if step.peak_bytes is None else step.peak_bytes},'
        f'"tags":{journal.encode(step.tags) if step.tags else "[]"}{_render_lap(reading.lap)}'
    )


def _render_lap(lap: Lap | None) -> str:
    if lap is None:
        return ""
    work = {**lap.work_ns, "idle": sum(lap.idle_ns.values())}
    told = f'"device_ns":{_render_ns(work)},"device_wall_ns":{lap.wall_ns},"idle_cause_ns":{_render_ns(lap.idle_ns)}'
    return f',{told},"launch_bound_ns":{lap.launch_bound_ns}'


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + ns for name, ns in other.items()}


def _render_ns(named: Mapping[str, int]) -> str:
    return "{" + ",".join([f'"{name}":{ns}' for name, ns in named.items()]) + "}"


def _render_number(value: float) -> str:
    return repr(value) if math.isfinite(value) else "null"

"""What does the rank tell the outside? One place that turns steps into records, /metrics and console lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amdahl_probe import digests, metrics
from amdahl_probe.emit import Batches, Recorder, StepRecord
from amdahl_probe.spans import PHASES, Ledger
from amdahl_probe.trace import Trace
from amdahl_trainer import flops
from amdahl_trainer.data.loader import Batch
from amdahl_trainer.device import Reading, attribute
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.peers import Place


@dataclass(frozen=True)
class Telemetry:
    """What the environment says about telemetry (contract, section 1)."""

    directory: str | None
    port: int | None
    host: str
    run: str
    trace: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Telemetry:
        """Parse. Raises ConfigError for a port that is no number."""
        port = environ.get("AMDAHL_METRICS_PORT", "")
        if port and not port.isdigit():
            raise ConfigError(f"AMDAHL_METRICS_PORT is {port!r}; it must be a port number, 0 for any free one")
        return cls(
            directory=environ.get("AMDAHL_TELEMETRY_DIR") or None,
            port=int(port) if port else None,
            host=environ.get("AMDAHL_METRICS_HOST") or "127.0.0.1",
            run=environ.get("AMDAHL_RUN_ID") or "local",
            trace=environ.get("AMDAHL_TRACE", "0") not in ("", "0"),
        )


@dataclass(frozen=True)
class Step:
    """One finished step as the host knows it; its reading may come later."""

    index: int
    total: int
    end_ns: int
    phases: dict[str, int]
    batch: digests.BatchDigest
    loader: Batches
    valid: int
    lr: float
    seq: int
    tags: tuple[str, ...]


def describe(batch: Batch, is_counted: bool) -> digests.BatchDigest:
    """The digest of a batch: shapes, a few elements and the sample numbers, unless another rank counts them."""
    found = digests.digest([batch.inputs, batch.targets, batch.segments], batch.samples)
    return found if is_counted else found._replace(samples=0, elements=0, ids=0)


class Reporter:
    """Records, metrics and console of one rank."""

    def __init__(self, telemetry: Telemetry, place: Place, device_name: str, begun_ns: int) -> None:
        """Open the record file and the port. Raises ConfigError if that cannot be done."""
        directory = telemetry.directory
        self._trace = Trace(Path(directory)) if telemetry.trace and directory else None
        self._rank = place.rank
        self._counters = metrics.Metrics({"run": telemetry.run})
        try:
            self.recorder = Recorder(telemetry.directory, place.rank, place.world, self._counters)
            if telemetry.port is not None and place.local_rank == 0:
                metrics.serve(self._counters, telemetry.port, telemetry.host, telemetry.directory)
        except OSError as error:
            raise ConfigError(
                f"telemetry: {error}; check AMDAHL_TELEMETRY_DIR {telemetry.directory} and AMDAHL_METRICS_PORT "
                f"{telemetry.port}"
            ) from error
        self.recorder.start(device_name, True, "trainer", begun_ns)  # this trainer switches knobs live
        self._console = _Console()

    def new_ledger(self, begun_ns: int) -> Ledger:
        """The ledger of the training thread, counting `startup` since the process began."""
        return Ledger(begin_ns=begun_ns, trace=self._trace.spans if self._trace else None)

    def step(self, step: Step, reading: Reading, cost: flops.PerToken, peak: float | None) -> None:
        """Write the record of a step whose reading is known, and now and then the trace so far."""
        phases = attribute(step.phases, reading)
        self.recorder.step(
            StepRecord(
                step=step.index,
                end_ns=step.end_ns,
                phases=phases,
                samples=step.batch.samples,
                elements=step.batch.elements,
                sig=digests.to_hex(step.batch.sig),
                shape=digests.to_hex(step.batch.shape),
                ids=digests.to_hex(step.batch.ids),
                loss=reading.loss,
                seq=step.seq,
                loader=step.loader,
                tags=step.tags,
            )
        )
        wall_ns = sum(phases.values())
        self._counters.mfu.update(flops.utilisation(cost, step.valid / wall_ns * 1e9, peak))
        self._console.add(phases, step.valid)
        if self._trace is not None:
            self._trace.flush(self._rank)

    def line(self, step: Step, reading: Reading, last_step: int) -> None:
        """Print the console line for the steps since the last one."""
        if self._rank == 0:
            self.say(self._console.line(step, reading, last_step))

    def say(self, text: str) -> None:
        """One line on the console, from rank 0 only."""
        if self._rank == 0:
            print(text, flush=True)

    def close(self, steps: int, why: str) -> None:
        """Write the last record and the end of the trace."""
        self.recorder.end(steps, why)
        self.recorder.close()
        if self._trace is not None:
            self._trace.close(self._rank)


class _Console:
    """Averages between two console lines."""

    def __init__(self) -> None:
        self._spent: dict[str, int] = {}
        self._steps = 0
        self._tokens = 0

    def add(self, phases: Mapping[str, int], tokens: int) -> None:
        for phase, ns in phases.items():
            self._spent[phase] = self._spent.get(phase, 0) + ns
        self._steps += 1
        self._tokens += tokens

    def line(self, step: Step, reading: Reading, last_step: int) -> str:
        wall_ns = max(1, sum(self._spent.values()))
        shares = "  ".join(
            f"{phase} {self._spent[phase] / wall_ns:.0%}"
            for phase in PHASES
            if self._spent.get(phase, 0) >= 0.005 * wall_ns
        )
        speed = f"{wall_ns / self._steps / 1e6:7.1f} ms  {self._tokens / wall_ns * 1e6:6.1f}k tok/s"
        model = f"loss {reading.loss:7.4f}  grad {reading.grad_norm:6.2f}  lr {step.lr:.2e}"
        text = f"step {step.total:>6}/{last_step}  {model}  {speed}  {shares}"
        self._spent, self._steps, self._tokens = {}, 0, 0
        return text

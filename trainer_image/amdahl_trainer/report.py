"""What does the rank tell the outside? One place that turns steps into records, /metrics and console lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from amdahl_probe import digests, metrics
from amdahl_probe.emit import Recorder
from amdahl_probe.spans import Ledger
from amdahl_probe.trace import Trace
from amdahl_trainer import console, flops
from amdahl_trainer.chief import Chief, Step, open_outlets
from amdahl_trainer.config import Config
from amdahl_trainer.console import Facts
from amdahl_trainer.data.loader import Batch
from amdahl_trainer.device import Reading, attribute
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.peers import Agreement, Place
from amdahl_trainer.profiler import Profile


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


def describe(batch: Batch, is_counted: bool) -> digests.BatchDigest:
    """The digest of a batch, without samples and elements where another rank counts them."""
    return batch.digest if is_counted else batch.digest._replace(samples=0, elements=0, ids=0)


def count_squares(batch: Batch, *, doc_mask: bool) -> int:
    """Lengths of the documents that attention keeps apart, squared and summed; without the mask a row is one."""
    return batch.counts.sum_len_sq if doc_mask else batch.row_squares


class Reporter:
    """Records, metrics and console of one rank; rank 0 also keeps the run's journal."""

    def __init__(
        self, telemetry: Telemetry, place: Place, device_name: str, begun_ns: int, dtype: str = "float32"
    ) -> None:
        """Open the record file and the port; `dtype` is that of matrix products. Raises ConfigError if it cannot."""
        directory = telemetry.directory
        self._trace = Trace(Path(directory)) if telemetry.trace and directory else None
        self._place = place
        self._run = telemetry.run
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
        self.recorder.start(device_name, True, "trainer", begun_ns, dtype)  # this trainer switches knobs live
        self._interval = console.Interval()
        self._chief: Chief | None = None

    def new_ledger(self, begun_ns: int) -> Ledger:
        """The ledger of the training thread, counting `startup` since the process began."""
        return Ledger(begin_ns=begun_ns, trace=self._trace.spans if self._trace else None)

    @property
    def mfu(self) -> Mapping[str, float]:
        """Of the last step known, by convention; empty where the peak is unknown."""
        return self._counters.mfu

    def appoint(self, facts: Facts, config: Config, environ: Mapping[str, str]) -> None:
        """Say what the run is; rank 0 then reports for all ranks. Raises ConfigError, see `chief.open_outlets`."""
        if self._place.rank == 0:
            self.say(console.introduce(facts))
            self._chief = Chief(open_outlets(config, environ, facts.resumed_step), facts, self._run)
            self._counters.families = self._chief.families

    def step(self, step: Step, reading: Reading, cost: flops.PerToken | None, peak: float | None) -> dict[str, int]:
        """Write the record of a step whose reading is known, and now and then the trace so far.

        What a token costs is not asked for where the peak is unknown.

        Returns:
            The step's phases, corrected by the reading.
        """
        phases = attribute(step.phases, reading)
        batch = step.batch
        self.recorder.write_step(
            step.number,
            step.end_ns,
            phases,
            batch.samples,
            batch.elements,
            (batch.sig, batch.shape, batch.ids),
            reading.loss,
            step.seq,
            step.loader,
            step.tags,
        )
        mfu: dict[str, float] = {}
        if cost is not None:
            tokens_per_s = step.valid / self._place.world / max(1, sum(phases.values())) * 1e9
            mfu = flops.utilisation(cost, tokens_per_s, peak)
            self._counters.mfu.update(mfu)
        launch_ns = 0 if reading.lap is None else reading.lap.bound_of(phases)
        self._interval.add(phases, step.valid, launch_ns)
        if self._chief is not None:
            self._chief.step(step, reading, phases, mfu)
        if self._trace is not None:
            self._trace.flush(self._place.rank)
        return phases

    def agreed(self, agreement: Agreement, durable_step: int | None) -> None:
        """What the ranks told each other, before the step that has just been taken."""
        if self._chief is not None:
            self._interval.add_busy(agreement.busy_ns)
            self._chief.agreed(agreement, durable_step)

    def line(self, step: Step, reading: Reading) -> None:
        """Print the console line for the steps since the last one."""
        if self._chief is not None:
            self.say(self._chief.line(step, reading, self._interval))
        self._interval = console.Interval()

    def profiled(self, profile: Profile) -> None:
        """A step was recorded."""
        if self._chief is not None:
            self._chief.journal.write("profile", asdict(profile))
            self.say(f"step {profile.step:>6}  recorded in {profile.path}")

    def finish(self, agreement: Agreement, step: int, peak_bytes: int) -> None:
        """The last agreement: say where the time of the run went."""
        if self._chief is not None:
            self.say(self._chief.finish(agreement, step, peak_bytes))

    def say(self, text: str) -> None:
        """One line on the console, from rank 0 only."""
        if self._place.rank == 0:
            print(text, flush=True)

    def close(self, steps: int, why: str) -> None:
        """Write the last record and the end of the trace."""
        self.recorder.end(steps, why)
        self.recorder.close()
        if self._chief is not None:
            self._chief.close(why)
        if self._trace is not None:
            self._trace.close(self._place.rank)

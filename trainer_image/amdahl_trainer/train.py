"""How does a run begin and end? Everything is made here, in order, and handed to the step engine."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from amdahl_trainer import compiled, facts, flops, knobs, oom, optim, parallel, profiler, start_knobs
from amdahl_trainer import config as configs
from amdahl_trainer import device as devices
from amdahl_trainer import peers as others
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.config import Config
from amdahl_trainer.data import sources
from amdahl_trainer.data.loader import Loader, Patience
from amdahl_trainer.data.order import Share
from amdahl_trainer.data.sources import Corpora
from amdahl_trainer.errors import ConfigError, Exit, TrainerError
from amdahl_trainer.evaluate import bits_per_byte
from amdahl_trainer.knobs import KnobFile, Knobs, Update
from amdahl_trainer.loop import Engine, Parts
from amdahl_trainer.mesh import Mesh
from amdahl_trainer.peers import Alone, Peers, Place, Spot
from amdahl_trainer.report import Reporter, Telemetry
from amdahl_trainer.stop import StopRequest


@dataclass(frozen=True)
class Job:
    """What a process was told, and who the others are. `config` holds the knobs that it could take, not `refused`."""

    config: Config
    environ: Mapping[str, str]
    place: Place
    device: torch.device
    peers: Peers
    reporter: Reporter
    refused: Mapping[str, str] = field(default_factory=dict)


class Startup:
    """The parts of the time from the start of the process to the first batch."""

    def __init__(self, begun_ns: int) -> None:
        self.begun_ns = self._mark_ns = begun_ns
        self.parts: dict[str, int] = {}

    def end(self, part: str) -> None:
        """What passed since the last part was `part`."""
        now_ns = time.monotonic_ns()
        self.parts[part] = self.parts.get(part, 0) + now_ns - self._mark_ns
        self._mark_ns = now_ns

    @property
    def total_ns(self) -> int:
        """From the start of the process to the end of the last part."""
        return self._mark_ns - self.begun_ns


def train(config: Config, environ: Mapping[str, str], begun_ns: int) -> Exit:
    """Run to the end or to SIGTERM. `begun_ns` is when the process started, nanoseconds of CLOCK_MONOTONIC.

    Raises:
        TrainerError: any expected failure, with its exit code.
    """
    wants_stop = StopRequest()
    startup = Startup(begun_ns)
    place = Place.from_environ(environ)
    tf32, deterministic = config.precision.matmul_tf32, config.run.deterministic
    devices.set_arithmetic(os.environ, deterministic=deterministic, tf32=tf32)
    device = _choose(config, place)
    if device.type == "cpu":
        devices.keep_memory(environ)
    started = start_knobs.take(config, knobs.from_environ(environ), place, device)
    config = started.config
    parallel.fit(config, place)  # before anyone waits for anyone
    if config.run.torch_threads:
        torch.set_num_threads(config.run.torch_threads)
    telemetry, dtype = Telemetry.from_environ(environ), config.precision.compute
    reporter = Reporter(telemetry, place, devices.name(device), begun_ns, dtype)
    startup.end("import")
    steps, why = 0, "exit"
    peers: Peers = Alone()
    try:
        peers = others.join(place, device, config.limits.comm_timeout_s)
        wants_stop.meet()
        startup.end("rendezvous")
        job = Job(config, environ, place, device, peers, reporter, started.ignored)
        engine = build(job, startup, wants_stop)
        peers.watch(lambda: Spot(engine.progress.step, engine.parts.ledger.phase))
        try:
            is_finished = _run(engine, startup)
        finally:
            steps = engine.steps
        why = "exit" if is_finished else "sigterm"
    except BaseException as error:
        failure = _explain(error, peers, config, place, device)
        why = f"exception:{type(failure).__name__}"
        if failure is error:
            raise
        raise failure from error
    finally:
        reporter.close(steps, why)
    return Exit.FINISHED if is_finished else Exit.YIELDED


def _choose(config: Config, place: Place) -> torch.device:
    """The rank's device, which another process may have filled: the first thing that is asked of it fails then."""
    try:
        return devices.choose(place.local_rank)
    except RuntimeError as error:
        full = oom.explain(error, config, place, torch.device("cuda", place.local_rank))
        raise full or error from error


def _explain(error: BaseException, peers: Peers, config: Config, place: Place, device: torch.device) -> BaseException:
    """What to end with: the rank that made a collective fail, or this rank's own failure, of which the others hear."""
    full = oom.explain(error, config, place, device)  # before all: NCCL's own lack of it is a failed collective too
    lost = None if full else peers.blame(error)
    if lost is not None:
        return lost
    failure = full or error
    peers.part(failure.code if isinstance(failure, TrainerError) else Exit.CRASHED)
    return failure


def _run(engine: Engine, startup: Startup) -> bool:
    parts = engine.parts

    def begin() -> None:
        startup.end("data")
        parts.reporter.recorder.startup(startup.total_ns, startup.parts)
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process

    gc.disable()  # collected every run.gc_every steps instead, by all ranks at once
    try:
        with compiled.as_warmup(parts.ledger) if parts.config.run.compile != "none" else nullcontext():
            is_finished = engine.run(begin)
    finally:
        parts.loader.close()
        parts.checkpoints.close()
    if parts.checkpoints.waits:
        parts.reporter.say(f"{parts.checkpoints.waits} saves waited for the one before: they come faster than the disk")
    parts.reporter.say(f"input of rank 0: {parts.loader.describe()}")
    parts.reporter.say(f"{'finished' if is_finished else 'yielded'} at step {engine.progress.step}")
    return is_finished


def build(job: Job, startup: Startup, wants_stop: Callable[[], bool]) -> Engine:
    """Make everything a run needs, resumed and with the knobs that are in force, its loader open.

    Raises:
        TrainerError: data, checkpoint or directories are not as they must be.
    """
    place, device = job.place, job.device
    corpora = _ensure_corpora(job)
    config = _pin(job.config, corpora)
    if place.rank == 0:
        _announce(config, job.reporter)
    job.reporter.say(corpora.describe())
    startup.end("data")
    torch.manual_seed(config.run.seed)
    mesh = Mesh(parallel.fit(config, place), place.rank, device)
    ledger = job.reporter.new_ledger(startup.begun_ns)
    clock = devices.clock(device, ledger)
    replica = parallel.parallelize(config, mesh, device, clock.gradient, clock.mark)
    optimizer = optim.build(replica.model, config.optim)
    startup.end("model")
    checkpoints = Checkpoints(config, place.rank, place.world)
    progress = _resume(checkpoints, replica.model, optimizer, job.reporter)
    startup.end("restore")
    outcome = knobs.apply(
        knobs.from_environ(job.environ), Knobs.from_config(config), place, has_gpu=device.type == "cuda"
    )
    applied = {name: value for name, value in outcome.applied.items() if name not in job.refused}
    job.reporter.recorder.knob(0, applied, {**outcome.ignored, **job.refused})
    parts = Parts(
        config=config,
        place=place,
        device=device,
        peers=job.peers,
        seat=mesh.seat,
        replica=replica,
        optimizer=optimizer,
        loader=_new_loader(corpora, config, mesh, outcome.knobs),
        checkpoints=checkpoints,
        clock=clock,
        ledger=ledger,
        reporter=job.reporter,
        profiler=profiler.of_rank(config, place, device),
        peak=flops.peak_flops(devices.name(device), config.precision.compute, config.metrics.peak_tflops),
        evaluate=lambda: bits_per_byte(replica, corpora, mesh, job.peers, config.eval.sequences),
        wants_stop=wants_stop,
        knob_file=KnobFile(job.environ.get("AMDAHL_KNOBS_FILE") if place.rank == 0 else None),
        is_trial=job.environ.get("AMDAHL_TRIAL") == "1",
    )
    about = facts.find(config, mesh.degrees, device, replica.model, corpora.train.mean_document, progress.step)
    job.reporter.appoint(about, config, job.environ)
    startup.end("model")
    engine = Engine(parts, progress, outcome.knobs, seq=0)
    _enter_data(engine, job)
    return engine


def _announce(config: Config, reporter: Reporter) -> None:
    text = f"# semantics {configs.semantics_hash(config)}\n{configs.to_yaml(config)}"
    home = Path(config.run.out_dir)
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.yaml").write_text(text)
    except OSError as error:
        raise ConfigError(f"run.out_dir: {home} cannot be written ({error.strerror}); set another") from error
    reporter.say(text)


def _ensure_corpora(job: Job) -> Corpora:
    """Built by one process of each machine; the others find it built."""
    if job.place.local_rank == 0:
        corpora = sources.ensure(job.config)
        job.peers.barrier()
        return corpora
    job.peers.barrier()
    return sources.ensure(job.config)


def _pin(config: Config, corpora: Corpora) -> Config:
    """The configuration with what its data are, which checkpoints keep. Raises ConfigError if it asks for others."""
    asked = config.data.digest
    if asked not in ("", corpora.digest):
        raise ConfigError(f"data.digest is {asked}, but the sources hold {corpora.digest}: give it those, or empty it")
    return replace(config, data=replace(config.data, digest=corpora.digest))


def _new_loader(corpora: Corpora, config: Config, mesh: Mesh, settings: Knobs) -> Loader:
    share = Share(mesh.seat.dp, mesh.degrees.dp, config.batch.global_sequences)
    patience = Patience(config.data.max_restarts)
    return Loader(corpora.train, corpora.order(config.run.seed), share, settings.loader, patience)


def _resume(
    checkpoints: Checkpoints, model: nn.Module, optimizer: torch.optim.Optimizer, reporter: Reporter
) -> Progress:
    found = checkpoints.resume(model, optimizer)
    if found is None:
        return Progress()
    path, progress = found
    reporter.say(f"resumed {path}: step {progress.step}, {progress.position} samples consumed")
    return progress


def _enter_data(engine: Engine, job: Job) -> None:
    """Open the loader where the run, or the trial's first window, begins."""
    window = knobs.window_from_environ(job.environ)
    if window is not None:
        engine.enter_window(Update(0, {}, window))
    update = job.peers.broadcast(engine.parts.knob_file.poll())
    if update is None or not engine.apply(update):
        engine.open_loader()

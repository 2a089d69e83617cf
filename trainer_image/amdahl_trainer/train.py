"""How does a run begin and end? Everything is made here, in order, and handed to the step engine."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from amdahl_trainer import ckpt, dp, flops, knobs, optim
from amdahl_trainer import config as configs
from amdahl_trainer import device as devices
from amdahl_trainer.ckpt import Checkpoints, Progress
from amdahl_trainer.config import Config
from amdahl_trainer.data import rows
from amdahl_trainer.data.loader import Loader
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.dp import Peers, Place
from amdahl_trainer.errors import ConfigError, Exit
from amdahl_trainer.evaluate import bits_per_byte
from amdahl_trainer.knobs import KnobFile, Knobs, Update
from amdahl_trainer.loop import Engine, Parts
from amdahl_trainer.model import Llama
from amdahl_trainer.report import Reporter, Telemetry


class StopRequest:
    """Remembers SIGTERM until the ranks next agree."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def __call__(self) -> bool:
        """Whether it came."""
        return self.came

    def _note(self, *_: object) -> None:
        self.came = True


def train(config: Config, environ: Mapping[str, str], begun_ns: int) -> Exit:
    """Run to the end or to SIGTERM. `begun_ns` is when the process started, nanoseconds of CLOCK_MONOTONIC.

    Raises:
        TrainerError: any expected failure, with its exit code.
    """
    stop = StopRequest()
    startup = _Startup(begun_ns)
    place = Place.from_environ(environ)
    micro_batch = configs.check_batch(config.batch, place.world)
    if config.run.torch_threads:
        torch.set_num_threads(config.run.torch_threads)
    device = devices.choose(place.local_rank)
    knob_path = environ.get("AMDAHL_KNOBS_FILE")
    reporter = Reporter(Telemetry.from_environ(environ), place, devices.name(device), begun_ns, live=bool(knob_path))
    why = "exit"
    engine: Engine | None = None
    startup.end("import")
    try:
        peers = dp.join(place, device, config.limits.comm_timeout_s)
        startup.end("rendezvous")
        engine = build(config, environ, place, device, peers, reporter, micro_batch, stop, startup)
        gc.disable()  # collected every gc_every steps instead, by all ranks at once
        finished = engine.run(lambda: _begin(reporter, startup, engine))
        why = "exit" if finished else "sigterm"
        reporter.say(f"{'finished' if finished else 'yielded'} at step {engine.progress.step}")
        engine.parts.loader.close()
    except BaseException as error:
        why = f"exception:{type(error).__name__}"
        raise
    finally:
        reporter.close(engine.steps if engine else 0, why)
    return Exit.FINISHED if finished else Exit.YIELDED


class _Startup:
    """The parts of the time before the first batch."""

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


def _begin(reporter: Reporter, startup: _Startup, engine: Engine | None) -> None:
    assert engine is not None, "the engine calls this"
    startup.end("data")
    reporter.recorder.startup(startup.total_ns, startup.parts)
    engine.parts.clock.ask()  # the first batch is in hand: its wait was startup
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process


def build(
    config: Config,
    environ: Mapping[str, str],
    place: Place,
    device: torch.device,
    peers: Peers,
    reporter: Reporter,
    micro_batch: int,
    stop: StopRequest,
    startup: _Startup,
) -> Engine:
    if place.rank == 0:
        _announce(config, reporter)
    corpora = _corpora(config, place, peers)
    startup.end("data")
    torch.manual_seed(config.run.seed)
    model = Llama(config.model).to(device)
    optimizer = optim.build(model, config.optim)
    startup.end("model")
    progress = _resume(config, model, optimizer, place, peers, reporter)
    clock = devices.clock(device)
    replica = dp.replicate(model, place, device, config.parallel.bucket_mb, clock.gradient)
    startup.end("restore")
    outcome = knobs.apply(knobs.from_environ(environ), Knobs.from_config(config), place, has_gpu=device.type == "cuda")
    reporter.recorder.knob(0, outcome.applied, outcome.ignored)
    loader = Loader(
        corpora.train,
        Order(len(corpora.train), config.run.seed),
        Share(place.rank, place.world, config.batch.global_sequences),
        outcome.knobs.loader,
    )
    parts = Parts(
        config=config,
        place=place,
        device=device,
        peers=peers,
        replica=replica,
        optimizer=optimizer,
        loader=loader,
        checkpoints=Checkpoints(config, place.world) if place.rank == 0 else None,
        clock=clock,
        ledger=reporter.new_ledger(startup.begun_ns),
        reporter=reporter,
        micro_batch=micro_batch,
        cost=flops.per_token(config.model, config.data.seq_len, corpora.train.mean_document),
        peak=flops.peak_flops(devices.name(device), config.precision.compute),
        evaluate=lambda: bits_per_byte(
            model,
            corpora,
            place,
            peers,
            sequences=config.eval.sequences,
            rows_at_once=micro_batch,
            doc_mask=config.data.doc_mask,
        ),
        wants_stop=stop,
        knob_file=KnobFile(environ.get("AMDAHL_KNOBS_FILE") if place.rank == 0 else None),
        is_trial=environ.get("AMDAHL_TRIAL") == "1",
    )
    engine = Engine(parts, progress, outcome.knobs, seq=0)
    window = knobs.window_from_environ(environ)
    if window is not None:
        engine.enter_window(Update(0, {}, window))
    first = peers.broadcast(parts.knob_file.poll())
    if first is not None:
        engine.apply(first)
    else:
        loader.open(engine.progress.position)
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


def _corpora(config: Config, place: Place, peers: Peers) -> rows.Corpora:
    """Built by one process of each machine; the others find it built."""
    if place.local_rank == 0:
        corpora = rows.ensure(config)
        peers.barrier()
        return corpora
    peers.barrier()
    return rows.ensure(config)


def _resume(
    config: Config,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    place: Place,
    peers: Peers,
    reporter: Reporter,
) -> Progress:
    found = ckpt.find(config) if place.rank == 0 else None
    path = peers.broadcast(None if found is None else str(found))
    if path is None:
        return Progress()
    state, progress = ckpt.read(Path(path), config)
    ckpt.restore(state, model, optimizer, place.rank)
    reporter.say(f"resumed {path}: step {progress.step}, {progress.position} samples consumed")
    return progress

"""What does a command hold while it works on a job: the manifest, the ledger with its lock, and the runner.

`World` is what lies outside the program, injected so that tests decide the time, the machine and the terminal.
"""

import io
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.console import Console

from amdahl_loop.adapters.code import digest_program
from amdahl_loop.adapters.local.machine import read_machine
from amdahl_loop.adapters.local.programs import inherit
from amdahl_loop.adapters.local.requests import working_dir
from amdahl_loop.adapters.local.runner import LocalRunner, default_state_dir
from amdahl_loop.adapters.manifests import Manifest, read_manifest
from amdahl_loop.adapters.packages import list_packages
from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.cli.drive import Sleep, sleep_until
from amdahl_loop.cli.train import Launch, become
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.ledger import family_of, fingerprint_job
from amdahl_loop.domain.plan import Snapshot
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.ports import Clock, Runner
from amdahl_loop.reconcile import Identity, Ports

if TYPE_CHECKING:
    from amdahl_loop.adapters.kube.client import KubeClient


def tolerate(stream: TextIO) -> TextIO:
    """The stream, writing `?` for what its encoding lacks: a name from a manifest must not end the loop."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def open_console(stream: TextIO) -> Console:
    """A console that guesses from the stream and the environment what it may do."""
    return Console(file=stream, highlight=False)


def local_device_type() -> str:
    """GPUs by name, else the processors."""
    return read_machine().device_type


async def connect(
    kubeconfig: Path | None, context: str | None, environment: Mapping[str, str]
) -> tuple["KubeClient", str]:
    """A way into a cluster, and the namespace that kubectl would take there; AccessError where there is none."""
    # Imported late: most commands need no cluster, and may run where the client library is not installed.
    from amdahl_loop.adapters.kube.client import KubeClient
    from amdahl_loop.adapters.kube.transport import default_namespace, open_transport

    client = KubeClient(await open_transport(kubeconfig, context, environment))
    return client, default_namespace(kubeconfig, context, environment)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything outside the program that a command touches."""

    make_runner: Callable[[Path, Path, str], Runner] = LocalRunner
    """A runner of a state folder, a manifest's folder, and the scope that names its loop."""
    train: Callable[[Launch], NoReturn] = become
    """Trains on; does not return."""
    device_type: Callable[[], str] = local_device_type
    """What this machine trains on, for the fingerprint."""
    connect: Callable[[Path | None, str | None, Mapping[str, str]], Awaitable[tuple["KubeClient", str]]] = connect
    """Opens a cluster: its client, and the namespace to take where none is named."""
    clock: Clock = time.time
    sleep: Sleep = sleep_until
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    stdout: TextIO = field(default_factory=lambda: tolerate(sys.stdout))
    stderr: TextIO = field(default_factory=lambda: tolerate(sys.stderr))

    open_console: Callable[[TextIO], Console] = open_console
    """How a stream is written to: in colours and in place on a terminal, as plain text elsewhere."""

    def console(self, is_error: bool = False) -> Console:
        """A console on standard output, or on standard error."""
        return self.open_console(self.stderr if is_error else self.stdout)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One command's hold on one job."""

    manifest: Manifest
    job: TrainingJob
    identity: Identity
    ledger: SqliteLedger
    ports: Ports

    async def snapshot(self) -> Snapshot:
        """What the ledger knows of the job now."""
        identity = self.identity
        return Snapshot(
            job=self.job,
            job_uid=identity.job_uid,
            fingerprint=identity.fingerprint,
            family=identity.family,
            memory=await self.ledger.recall(identity.job_uid, identity.fingerprint, identity.family),
            now_s=self.ports.clock(),
        )


@contextmanager
def open_session(path: Path, profile: ProfileName | None, ledger_path: Path, world: World) -> Iterator[Session]:
    """Read the manifest, lock the ledger, build the runner; the lock is let go at the end."""
    manifest = read_manifest(path)
    job = with_profile(manifest.job, profile)
    with SqliteLedger.open(ledger_path) as ledger:
        scope = f"loop-{hash_text(str(ledger_path.resolve()))[:12]}"
        runner = world.make_runner(default_state_dir(world.environment), manifest.path.parent, scope)
        yield Session(
            manifest=manifest,
            job=job,
            identity=identify(manifest, world.device_type(), world.environment),
            ledger=ledger,
            ports=Ports(runner=runner, ledger=ledger, clock=world.clock),
        )


def identify(manifest: Manifest, device_type: str, environ: Mapping[str, str]) -> Identity:
    """The job's uid, the fingerprint of its work on this machine, and its family."""
    job, trainer = manifest.job, manifest.job.spec.template.trainer
    folder = working_dir(trainer, manifest.path.parent)
    environment = inherit(environ) | {variable.name: variable.value for variable in trainer.env}
    code = digest_program(job, folder, list_packages(trainer.command[0], folder, environment))
    return Identity(
        job_uid=job.metadata.uid,
        fingerprint=fingerprint_job(job, device_type, code),
        family=family_of(job),
    )


def with_profile(job: TrainingJob, profile: ProfileName | None) -> TrainingJob:
    """The job under another profile than its manifest's, where one is asked for."""
    if profile is None:
        return job
    tuning = job.spec.tuning.model_copy(update={"profile": profile})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"tuning": tuning})})

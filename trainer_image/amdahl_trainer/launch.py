"""How do the ranks of one machine start and end as one job?

`python -m amdahl_trainer.launch --nproc 2 -- --config x.yaml` starts one process a rank, forwards SIGTERM, and ends
with one exit code: 0 if all finished, 75 if all yielded, else that of the rank that was the cause, which is named; the
others are ended. On several machines one launcher runs on each; in the pods of an Indexed Job it finds out by itself
how many there are, which one it is on, and where they meet. torchrun works as well, but reports 1 when every rank has
yielded in good order.

This process stays thin: standard library only, no torch. With one rank on a machine it becomes that rank.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from amdahl_trainer.errors import Exit

#: How often the ranks are looked at, seconds: small beside any start of a process.
POLL_S = 0.05

#: After a rank has failed, how long the others may take to end, seconds: they find out and tell which rank it was.
FAILURE_GRACE_S = 15.0

#: Where the kernel counts the processes that it killed for memory in this container.
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")

#: Ports that a kernel gives to nobody of itself (Linux's for outgoing connections begin at 32768).
QUIET_PORTS = range(20_000, 32_000)


def count_oom_kills() -> int:
    """Processes that the kernel has killed in this container because its memory was at its end; 0 if nobody counts."""
    with suppress(OSError):
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", "0"))
    return 0


@dataclass(frozen=True)
class Layout:
    """Ranks on this machine, machines, which of them this is, and where the ranks meet."""

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.nproc * self.nnodes

    def environ(self, local_rank: int) -> dict[str, str]:
        """What a rank is told, under torchrun's names."""
        return {
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            "WORLD_SIZE": str(self.world),
            "RANK": str(self.node_rank * self.nproc + local_rank),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.nproc),
        }


class Ended(NamedTuple):
    """How a rank ended: its exit code, 128 + n for signal n, and whether this launcher had asked it to, and why."""

    rank: int
    code: int
    asked: Literal["", "stop", "failure"] = ""


@dataclass
class Ranks:
    """The processes of a machine."""

    processes: list[subprocess.Popen[bytes]]
    first: int = 0
    ended: dict[int, Ended] = field(default_factory=dict)
    asked: Literal["", "stop", "failure"] = ""
    kill_at: float | None = None
    oom_kills: int = field(default_factory=count_oom_kills)

    def ask(self, why: Literal["stop", "failure"], grace_s: float) -> None:
        """Send SIGTERM to the ranks that still run; after the grace they are killed. The first reason stands."""
        self.asked = self.asked or why
        self.kill_at = self.kill_at or time.monotonic() + grace_s
        self.forward(signal.SIGTERM)

    def forward(self, number: int) -> None:
        """Send a signal to the ranks that still run."""
        for rank, process in enumerate(self.processes, self.first):
            if rank not in self.ended:
                process.send_signal(number)

    def reap(self) -> list[Ended]:
        """The ranks that ended since the last call."""
        found = []
        for rank, process in enumerate(self.processes, self.first):
            code = process.poll() if rank not in self.ended else None
            if code is not None:
                self.ended[rank] = Ended(rank, self._translate(code), self.asked)
                found.append(self.ended[rank])
        return found

    def _translate(self, code: int) -> int:
        """As a shell says it; a rank that the kernel killed for memory ran out of it."""
        if code == -signal.SIGKILL and not self.asked and count_oom_kills() > self.oom_kills:
            return Exit.OUT_OF_MEMORY
        return 128 - code if code < 0 else code


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks, wait for them, and return the job's exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    command = [sys.executable, "-m", "amdahl_trainer", *options.trainer]
    if options.layout.nproc == 1:
        if options.layout.world > 1:
            os.environ.update(options.layout.environ(0))
        os.execv(sys.executable, command)  # noqa: S606 (no shell is the point)
    return watch(start(command, options.layout), options.grace_s)


def start(command: Sequence[str], layout: Layout) -> Ranks:
    """One process a rank. On one machine they meet on a port that is free now."""
    if not layout.port:
        layout = Layout(layout.nproc, layout.nnodes, layout.node_rank, layout.host, free_port())
    cores = len(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": str(max(1, cores // layout.nproc))}  # or ranks fight for the cores
    processes = [
        subprocess.Popen(command, env={**threads, **os.environ, **layout.environ(local)})
        for local in range(layout.nproc)
    ]
    return Ranks(processes, layout.node_rank * layout.nproc)


def watch(ranks: Ranks, grace_s: float) -> int:
    """Wait for all ranks to end, make sure that they do, and say which one was the cause if that was no good end."""

    def stop(number: int, _: object) -> None:
        if number == signal.SIGINT and ranks.asked:
            ranks.forward(signal.SIGKILL)  # a person who asks twice
        ranks.ask("stop", grace_s)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while len(ranks.ended) < len(ranks.processes):
        for ended in sorted(ranks.reap(), key=_is_consequence):
            if ended.code == Exit.YIELDED:
                ranks.ask("stop", grace_s)  # the others are about to, or have not met it yet
            elif ended.code != Exit.FINISHED and ranks.asked != "failure":
                print(f"launch: {describe(ended)}; ending the others", file=sys.stderr, flush=True)
                ranks.asked, ranks.kill_at = "", None
                ranks.ask("failure", FAILURE_GRACE_S)
        if ranks.kill_at is not None and time.monotonic() > ranks.kill_at:
            ranks.forward(signal.SIGKILL)
        time.sleep(POLL_S)
    return combine(list(ranks.ended.values()))


def combine(ended: Sequence[Ended]) -> int:
    """The job's exit code, from its ranks' in the order in which they ended.

    A rank that fails takes the others with it: they end with the codes of peers, or by our signals, and are no cause.
    """
    codes = {one.code for one in ended}
    causes = [one.code for one in ended if not _is_good(one) and not _is_consequence(one)]
    of_peers = [one.code for one in ended if one.code in (Exit.PEER_DIED, Exit.PEER_HUNG)]
    if causes:
        return causes[0]
    if of_peers and Exit.YIELDED not in codes:
        return of_peers[0]
    return Exit.FINISHED if codes == {Exit.FINISHED} else Exit.YIELDED


def _is_good(one: Ended) -> bool:
    """Finished or yielded; SIGTERM ends a process that has not come to hear of it, and has nothing to save."""
    return one.code in (Exit.FINISHED, Exit.YIELDED) or (one.asked == "stop" and one.code == 128 + signal.SIGTERM)


def _is_consequence(one: Ended) -> bool:
    by_us = one.asked == "failure" and one.code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    return by_us or one.code in (Exit.PEER_DIED, Exit.PEER_HUNG)


def describe(ended: Ended) -> str:
    """The rank and how it ended, in words."""
    if ended.code > 128:
        return f"rank {ended.rank} ended with signal {signal.Signals(ended.code - 128).name}"
    known = {int(known): known.name.lower() for known in Exit}
    return f"rank {ended.rank} ended with exit code {ended.code} ({known.get(ended.code, 'unknown')})"


@dataclass(frozen=True)
class Options:
    """The command line."""

    layout: Layout
    grace_s: float
    trainer: tuple[str, ...]


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the command line, and from the environment what it does not say. Exits with usage where that cannot be."""
    parser = argparse.ArgumentParser(prog="amdahl_trainer.launch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--nproc",
        type=_positive,
        default=environ.get("AMDAHL_GPUS_PER_REPLICA") or "1",
        help="ranks on this machine; AMDAHL_GPUS_PER_REPLICA by default, else 1",
    )
    parser.add_argument(
        "--nnodes",
        type=_positive,
        default=environ.get("AMDAHL_REPLICAS") or "1",
        help="machines; AMDAHL_REPLICAS by default, else 1",
    )
    parser.add_argument("--node-rank", type=int, help="number of this machine; JOB_COMPLETION_INDEX by default, else 0")
    parser.add_argument("--master", help="HOST:PORT of the first machine; MASTER_ADDR and MASTER_PORT by default")
    parser.add_argument("--grace-s", type=float, default=120.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("trainer", nargs="*", help="after --, the arguments of amdahl_trainer")
    found = parser.parse_args(arguments)
    if found.nnodes == 1:
        return Options(Layout(found.nproc), found.grace_s, tuple(found.trainer))
    node_rank, index = found.node_rank, environ.get("JOB_COMPLETION_INDEX", "0")
    node_rank = int(index) if node_rank is None and index.isdigit() else node_rank
    if node_rank is None or not 0 <= node_rank < found.nnodes:
        parser.error(f"--node-rank {node_rank} of --nnodes {found.nnodes}: set it to 0 to {found.nnodes - 1}")
    master = found.master or f"{environ.get('MASTER_ADDR', '')}:{environ.get('MASTER_PORT', '')}"
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--master {master!r}: with --nnodes {found.nnodes} it must be HOST:PORT of the first machine")
    layout = Layout(found.nproc, found.nnodes, node_rank, host.strip("[]"), int(port))
    return Options(layout, found.grace_s, tuple(found.trainer))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; set it to 1 or more")
    return int(text)


def free_port() -> int:
    """One that nobody listens to, and that no outgoing connection can take before rank 0 does."""
    while True:
        port = random.SystemRandom().choice(QUIET_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


if __name__ == "__main__":
    sys.exit(main())

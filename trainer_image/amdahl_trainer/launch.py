"""How do several ranks on one machine start and end as one job?

`python -m amdahl_trainer.launch --nproc 2 -- --config x.yaml` starts one process a rank, forwards SIGTERM, and ends
with one exit code: 0 if all finished, 75 if all yielded, else that of the first rank that failed, which is named; the
others are ended. torchrun works as well, but reports 1 when every rank has yielded in good order.

This process stays thin: standard library only, no torch. With one rank it becomes that rank.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from amdahl_trainer.errors import Exit

#: How often the ranks are looked at, seconds: small beside any start of a process.
POLL_S = 0.05

#: After a rank has failed, how long the others may take to end on SIGTERM, seconds: they wait in a collective mostly.
FAILURE_GRACE_S = 5.0


@dataclass
class Ranks:
    """The processes of a job."""

    processes: list[subprocess.Popen[bytes]]
    stop_at: float | None = None
    codes: dict[int, int] = field(default_factory=dict)

    def forward(self, number: int) -> None:
        """Send a signal to the ranks that still run."""
        for rank, process in enumerate(self.processes):
            if rank not in self.codes:
                process.send_signal(number)

    def reap(self) -> list[tuple[int, int]]:
        """(rank, exit code) of the ranks that ended since the last call; a signal n counts as 128 + n."""
        ended = []
        for rank, process in enumerate(self.processes):
            code = process.poll() if rank not in self.codes else None
            if code is not None:
                self.codes[rank] = 128 - code if code < 0 else code
                ended.append((rank, self.codes[rank]))
        return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks, wait for them, and return the job's exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    command = [sys.executable, "-m", "amdahl_trainer", *options.trainer]
    if options.nproc == 1:
        os.execv(sys.executable, command)  # noqa: S606 (no shell is the point)
    return watch(start(command, options.nproc), options.grace_s)


def start(command: Sequence[str], nproc: int) -> Ranks:
    """One process a rank, that find each other on a free local port."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(nproc)}
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // nproc))}  # or ranks fight for the cores
    processes = []
    for rank in range(nproc):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(nproc)}
        processes.append(subprocess.Popen(command, env={**threads, **os.environ, **shared, **own}))
    return Ranks(processes)


def watch(ranks: Ranks, grace_s: float) -> int:
    """Wait for all ranks to end, and make sure that they do."""

    def stop(number: int, _: object) -> None:
        ranks.forward(number)
        ranks.stop_at = ranks.stop_at or time.monotonic() + grace_s

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    failed: int | None = None
    while len(ranks.codes) < len(ranks.processes):
        for rank, code in ranks.reap():
            if code not in (Exit.FINISHED, Exit.YIELDED) and failed is None:
                failed = code
                print(
                    f"launch: rank {rank} ended with {_describe(code)}; ending the others", file=sys.stderr, flush=True
                )
                ranks.forward(signal.SIGTERM)
                ranks.stop_at = time.monotonic() + FAILURE_GRACE_S
        if ranks.stop_at is not None and time.monotonic() > ranks.stop_at:
            ranks.forward(signal.SIGKILL)
        time.sleep(POLL_S)
    return combine(list(ranks.codes.values())) if failed is None else failed


def combine(codes: Sequence[int]) -> int:
    """The job's exit code if no rank failed: finished only if all finished."""
    return Exit.FINISHED if all(code == Exit.FINISHED for code in codes) else Exit.YIELDED


def _describe(code: int) -> str:
    if code > 128:
        return f"signal {signal.Signals(code - 128).name}"
    known = {int(known): known.name.lower() for known in Exit}
    return f"exit code {code} ({known.get(code, 'unknown')})"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="amdahl_trainer.launch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nproc", type=_positive, default=1, help="ranks on this machine")
    parser.add_argument("--grace-s", type=float, default=120.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("trainer", nargs="*", help="after --, the arguments of amdahl_trainer")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; set it to 1 or more")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

"""How does the local loop turn? Tick until nothing is left to do, and stop cleanly when told to.

Between two ticks only the state of the one run in progress is looked at: a tick reads and judges the whole ledger, and
that work would disturb the very trial it waits for.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from amdahl_loop.domain.plan import Action, Challenge, Launch, Observe, Wait
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Running, RunRequest, RunState
from amdahl_loop.ports import Clock, Runner
from amdahl_loop.reconcile import Identity, Ports, Tick, sweep, tick

POLL_S = 0.25
"""A run's end is noticed within this; a tenth of the shortest window."""

PAUSE_S = 60.0
"""Longest sleep between two passes that wait for a moment: a suspended machine or a mended clock is noticed soon."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the loop, except SIGHUP under `nohup`: then it outlives its terminal."""


class Watch(Protocol):
    """Who follows the loop: a live view, or a log."""

    def ticked(self, latest: Tick) -> None:
        """One pass is over."""

    def polled(self, state: RunState) -> None:
        """The run of the latest pass, a moment later."""


async def sleep_until(until_s: float, clock: Clock, stop: asyncio.Event) -> None:
    """Sleep until a moment, a stop, or the longest pause, whichever comes first."""
    try:
        await asyncio.wait_for(stop.wait(), min(PAUSE_S, max(POLL_S, until_s - clock())))
    except TimeoutError:
        return


Sleep = Callable[[float, Clock, asyncio.Event], Awaitable[None]]
"""How the loop waits for a moment; injected, since no test waits for hours."""


async def drive(
    job: TrainingJob,
    identity: Identity,
    ports: Ports,
    watch: Watch,
    stop: asyncio.Event,
    sleep: Sleep = sleep_until,
) -> Tick:
    """Tick until the loop halts or `stop` is set; then nothing that the runner started is left."""
    since_s = ports.clock()
    is_first = True
    try:
        while True:
            latest = await tick(job, identity, ports, since_s)
            watch.ticked(latest)
            if latest.is_over or stop.is_set():
                return latest
            request = request_of(latest.action)
            if is_first:  # a loop that was killed may have left runs; only the one that was just adopted is wanted
                await sweep(ports, keep=[request.run] if request else [])
                is_first = False
            if request is not None and latest.is_waiting:
                await _wait(request, ports.runner, watch, stop)
            if isinstance(latest.action, Wait):
                await sleep(latest.action.until_s, ports.clock, stop)
    finally:
        await sweep(ports)


def request_of(action: Action) -> RunRequest | None:
    """The run that an action is about, if it is about one."""
    return action.request if isinstance(action, Observe | Launch | Challenge) else None


async def _wait(request: RunRequest, runner: Runner, watch: Watch, stop: asyncio.Event) -> None:
    """Look at the run until it is no longer running or the loop is told to stop."""
    while not stop.is_set():
        state = await runner.find(request.run)
        watch.polled(state)
        if not isinstance(state, Running):
            return
        try:
            await asyncio.wait_for(stop.wait(), POLL_S)
        except TimeoutError:
            continue


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """The first stop signal sets the event; a second one cancels the task: what still runs dies with this process."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def receive() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in STOP_SIGNALS if not (is_detached and number == signal.SIGHUP)]
    for number in heard:
        loop.add_signal_handler(number, receive)
    try:
        yield stop
    finally:
        for number in heard:
            loop.remove_signal_handler(number)

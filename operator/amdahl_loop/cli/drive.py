"""How does the local loop turn? Tick until nothing is left to do, and stop cleanly when told to.

Between two ticks only the state of the one run in progress is looked at: a tick reads and judges the whole ledger, and
that work would disturb the very trial it waits for.
"""

import asyncio
from typing import Protocol

from amdahl_loop.domain.plan import Action, Challenge, Launch, Observe
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Running, RunRequest, RunState
from amdahl_loop.ports import Runner
from amdahl_loop.reconcile import Identity, Ports, Tick, tick

POLL_S = 0.25
"""A run's end is noticed within this; a tenth of the shortest window."""


class Watch(Protocol):
    """Who follows the loop: a live view, a log, or nobody."""

    def ticked(self, latest: Tick) -> None:
        """One pass is over."""

    def polled(self, state: RunState) -> None:
        """The run of the latest pass, a moment later."""


async def drive(
    job: TrainingJob, identity: Identity, ports: Ports, watch: Watch, stop: asyncio.Event
) -> Tick:
    """Tick until the loop halts, or until `stop` is set: then the run in progress is stopped and will be run anew."""
    since_s = ports.clock()
    latest: Tick | None = None
    try:
        while True:
            latest = await tick(job, identity, ports, since_s)
            watch.ticked(latest)
            if latest.is_over or stop.is_set():
                return latest
            if latest.is_waiting:
                await _wait(request_of(latest.action), ports.runner, watch, stop)
    finally:
        request = request_of(latest.action) if latest and latest.is_waiting else None
        if request is not None:
            await ports.runner.stop(request.run)


def request_of(action: Action) -> RunRequest | None:
    """The run that an action is about, if it is about one."""
    return action.request if isinstance(action, Observe | Launch | Challenge) else None


async def _wait(request: RunRequest | None, runner: Runner, watch: Watch, stop: asyncio.Event) -> None:
    """Look at the run until it is no longer running or the loop is told to stop."""
    while request is not None and not stop.is_set():
        state = await runner.find(request.run)
        watch.polled(state)
        if not isinstance(state, Running):
            return
        try:
            await asyncio.wait_for(stop.wait(), POLL_S)
        except TimeoutError:
            continue
